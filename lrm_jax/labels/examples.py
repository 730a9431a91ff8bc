"""Clips to training examples: single frames for progress and completion, pairs of frames for
contrastive."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lrm_jax.labels.store import REWIND, SUCCESS, Clip
from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError

KEYFRAMES = 11  # at p = 0.0, 0.1, ..., 1.0


@dataclasses.dataclass(frozen=True)
class ExampleSettings:
    """How examples are drawn from clips.

    frames: which single frames. "keyframes", the paper's: 11 of a clip, in a demonstration those
      at p = t / T = k / 10 of the time T until it is done, in any other clip evenly spread.
      "spread": `frames_per_clip` of them over the clip, of a demonstration first the keyframes; the
      others fall between them or after.
    jitter: moves each frame but the keyframes by up to half the distance to its neighbour.
    pairs_per_clip: pairs from each clip whose progress is known.
    min_offset, max_offset: the smallest and the largest distance of a pair, frames; a max_offset of
      0 is the clip's length.
    offsets: how distances are drawn between the two: "log_uniform", so that half of all pairs are
      closer than their geometric mean, or "uniform".
    min_gap: pairs whose progress differs by less are no examples, unless it is equal (a tie).
    hard_share: this share of the pairs that are drawn is hard: their distance is uniform over
      min_offset to hard_offset frames, and hard_gap stands for min_gap.
    The order of the two frames is a fair coin's.
    tie_share: at most this share of a clip's pairs are ties, with the answer "neither".
    """

    frames: str = field("spread", choices=("spread", "keyframes"))
    frames_per_clip: int = field(22, ge=1)
    jitter: bool = True
    pairs_per_clip: int = field(16, ge=1)
    min_offset: int = field(2, ge=1)
    max_offset: int = field(0, ge=0)
    offsets: str = field("log_uniform", choices=("log_uniform", "uniform"))
    min_gap: float = field(0.03, ge=0)
    hard_share: float = field(0.0, ge=0, le=1)
    hard_offset: int = field(4, ge=1)
    hard_gap: float = field(0.0, ge=0)
    tie_share: float = field(0.1, ge=0, le=1)

    def validate(self):
        if 0 < self.max_offset < self.min_offset:
            raise UserError(
                f"max_offset is {self.max_offset}: must be 0 or at least min_offset "
                f"({self.min_offset})"
            )
        if self.hard_share and self.hard_offset < self.min_offset:
            raise UserError(
                f"hard_offset is {self.hard_offset}: must be at least min_offset "
                f"({self.min_offset})"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class StillExamples:
    """E frames to be judged one at a time.

    initial, current: int64 [E] into the frame store; the clip's first frame, and the one judged.
    task: int32 [E] into the sentences. clip: int32 [E], examples of one clip share initial and
      task.
    labels: float32 [E] by head name, NaN where there is none. kind: int8 [E] into KINDS.
    """

    initial: np.ndarray
    current: np.ndarray
    task: np.ndarray
    clip: np.ndarray
    labels: dict[str, np.ndarray]
    kind: np.ndarray

    def __len__(self) -> int:
        return len(self.current)


@dataclasses.dataclass(frozen=True, eq=False)
class PairExamples:
    """E pairs of frames, in random order.

    initial, previous, current: int64 [E] into the frame store. task: int32 [E] into the sentences.
    closer: float32 [E], 1 if `current` is closer to done, -1 if `previous` is, 0 for neither.
    offset: int32 [E], frames from `previous` to `current` as shown; negative if they are swapped.
    kind: int8 [E] into KINDS.
    """

    initial: np.ndarray
    previous: np.ndarray
    current: np.ndarray
    task: np.ndarray
    closer: np.ndarray
    offset: np.ndarray
    kind: np.ndarray

    def __len__(self) -> int:
        return len(self.current)

    def swapped(self) -> PairExamples:
        """The same pairs in the other order, with the answers turned over."""
        return dataclasses.replace(
            self,
            previous=self.current,
            current=self.previous,
            closer=-self.closer,
            offset=-self.offset,
        )


def sentences_of(clips: Sequence[Clip]) -> tuple[str, ...]:
    """The different sentences of `clips`, sorted."""
    return tuple(sorted({c.task for c in clips}))


def still_examples(
    clips: Sequence[Clip], sentences: Sequence[str], settings: ExampleSettings, seed: int
) -> StillExamples:
    """Frames of every clip that is shown forwards (rewinds add none), with every label the clips
    have."""
    rng = np.random.default_rng([seed, 2])
    number = {s: i for i, s in enumerate(sentences)}
    used = [(i, c) for i, c in enumerate(clips) if c.kind != REWIND]
    if not used:
        raise UserError("there are no clips to make examples from")
    drawn = [(i, c, draw_frames(c, settings, rng)) for i, c in used]
    names = dict.fromkeys(n for _, c in used for n in c.labels)

    def join(of, dtype):
        return np.concatenate(
            [np.broadcast_to(of(i, c, at), len(at)) for i, c, at in drawn]
        ).astype(dtype)

    def label(name):
        return lambda i, c, at: c.labels[name][at] if name in c.labels else np.nan

    return StillExamples(
        initial=join(lambda i, c, at: c.frames[0], np.int64),
        current=join(lambda i, c, at: c.frames[at], np.int64),
        task=join(lambda i, c, at: number[c.task], np.int32),
        clip=join(lambda i, c, at: i, np.int32),
        labels={n: join(label(n), np.float32) for n in names},
        kind=join(lambda i, c, at: c.kind, np.int8),
    )


def pair_examples(
    clips: Sequence[Clip], sentences: Sequence[str], settings: ExampleSettings, seed: int
) -> PairExamples:
    """Pairs of frames of every clip whose progress is known, shown in random order."""
    rng = np.random.default_rng([seed, 3])
    number = {s: i for i, s in enumerate(sentences)}
    used = [c for c in clips if comparable(c, settings)]
    if not used:
        raise UserError("no clip has known progress: there are no pairs to compare")
    drawn = [(c, *draw_pairs(c, settings.pairs_per_clip, settings, rng)) for c in used]

    def join(of, dtype):
        return np.concatenate(
            [np.broadcast_to(of(c, a, b, s), len(a)) for c, a, b, s in drawn]
        ).astype(dtype)

    return PairExamples(
        initial=join(lambda c, a, b, s: c.frames[0], np.int64),
        previous=join(lambda c, a, b, s: c.frames[a], np.int64),
        current=join(lambda c, a, b, s: c.frames[b], np.int64),
        task=join(lambda c, a, b, s: number[c.task], np.int32),
        closer=join(lambda c, a, b, s: s, np.float32),
        offset=join(lambda c, a, b, s: b - a, np.int32),
        kind=join(lambda c, a, b, s: c.kind, np.int8),
    )


def keyframes(clip: Clip) -> np.ndarray:
    """The 11 frames at p = k / 10 of the time until a demonstration is done, int64 [11]."""
    # Not `clip.done`: without a simulator its positive window opens before T.
    is_done = np.nan_to_num(clip.progress) >= 1 - 1e-6
    done = int(np.argmax(is_done)) if is_done.any() else len(clip.frames) - 1
    return np.round(np.arange(KEYFRAMES) * done / (KEYFRAMES - 1)).astype(np.int64)


def draw_frames(clip: Clip, settings: ExampleSettings, rng: np.random.Generator) -> np.ndarray:
    """Places of a clip's single-frame examples, ascending and different, int64 [<=
    frames_per_clip], or of keyframes [<= 11]."""
    if settings.frames == "keyframes":
        if clip.kind == SUCCESS:
            return np.unique(keyframes(clip))
        return np.unique(np.round(np.linspace(0, len(clip.frames) - 1, KEYFRAMES)).astype(np.int64))
    count, wanted = len(clip.frames), min(settings.frames_per_clip, len(clip.frames))
    fixed = np.unique(keyframes(clip))[:wanted] if clip.kind == SUCCESS else np.zeros(0, np.int64)
    rest = np.setdiff1d(np.arange(count), fixed)
    extra = wanted - len(fixed)
    if extra <= 0:
        return fixed
    step = len(rest) / extra
    places = (np.arange(extra) + (rng.random(extra) if settings.jitter else 0.5)) * step
    return np.unique(
        np.concatenate([fixed, rest[np.minimum(places.astype(np.int64), len(rest) - 1)]])
    )


def comparable(clip: Clip, settings: ExampleSettings) -> bool:
    """Whether pairs can be drawn from a clip: all of its progress is known and it is long
    enough."""
    return bool(np.isfinite(clip.progress).all()) and len(clip.frames) > settings.min_offset


def draw_pairs(
    clip: Clip, wanted: int, settings: ExampleSettings, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places of `previous` and `current`, int64 [<= wanted], and `closer` float32, in random order
    of the two.

    Fewer than `wanted` where the clip hardly moves: pairs in between (`min_gap`) are thrown away.
    """
    count, tries = len(clip.frames), 6 * wanted
    longest = min(settings.max_offset or count - 1, count - 1)
    shortest = settings.min_offset
    if settings.offsets == "uniform":
        offset = rng.integers(shortest, max(longest, shortest), tries, endpoint=True)
    else:
        low, high = np.log(shortest), np.log(longest)
        offset = np.round(np.exp(rng.uniform(low, max(high, low), tries))).astype(np.int64)
    hard = np.zeros(tries, bool)
    if settings.hard_share > 0:
        hard = rng.random(tries) < settings.hard_share
        near = rng.integers(shortest, settings.hard_offset, tries, endpoint=True)
        offset = np.where(hard, near, offset)
    offset = np.clip(offset, shortest, longest)
    first = np.floor(rng.random(tries) * (count - offset)).astype(np.int64)
    second = first + offset
    closer = comparison(clip.progress[first], clip.progress[second], settings, hard)
    allowed = int(np.floor(settings.tie_share * wanted + rng.random()))
    surplus = (closer == 0) & (np.cumsum(closer == 0) > allowed)
    keep = np.flatnonzero(np.isfinite(closer) & ~surplus)[:wanted]
    first, second, closer = first[keep], second[keep], closer[keep]
    swap = rng.random(len(keep)) < 0.5
    return (
        np.where(swap, second, first),
        np.where(swap, first, second),
        np.where(swap, -closer, closer),
    )


def comparison(
    previous: np.ndarray,
    current: np.ndarray,
    settings: ExampleSettings,
    hard: np.ndarray | bool = False,
) -> np.ndarray:
    """Which of two frames is closer to done, from their progress: 1 current, -1 previous, 0 equal,
    NaN no example. hard: whether the pair is a hard one, to which `hard_gap` applies.

    Antisymmetric: exchanging the arguments changes the sign.
    """
    gap = np.asarray(current, np.float64) - np.asarray(previous, np.float64)
    least = np.where(hard, settings.hard_gap, settings.min_gap)
    return np.where(np.abs(gap) >= least, np.sign(gap), np.where(gap == 0, 0.0, np.nan))
