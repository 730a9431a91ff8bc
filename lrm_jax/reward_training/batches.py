"""Batches as indices: which frames to encode, which rows refer to them, what the answers are.

Frames of the whole training set lie on the device as one uint8 array; the host only draws numbers.
A row of a batch is one clip: its first frame, and a few frames to be judged by every head. Each
frame is encoded once a step; pairs for contrastive are made of the same frames. The draw depends on
(seed, step) alone, so a resumed run sees what an uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import numpy as np

from lrm_jax.labels.examples import ExampleSettings, comparable, comparison, draw_frames, draw_pairs
from lrm_jax.labels.store import KINDS, Clip
from lrm_jax.reward_training.config import Phase
from lrm_jax.run.errors import UserError, did_you_mean


@flax.struct.dataclass
class Batch:
    """B rows of K judged frames and P pairs each; H heads that judge single frames.

    frames: int32 [B, 1 + K] into the frame array; column 0 is the initial frame. sentence: int32
      [B].
    labels: float32 [B, K, H], NaN where there is none. pairs: int32 [B, P, 2], (previous, current)
    as columns of `frames`. closer: float32 [B, P], 1 current, -1 previous, 0 neither, NaN for no
    pair.
    """

    frames: np.ndarray
    sentence: np.ndarray
    labels: np.ndarray
    pairs: np.ndarray
    closer: np.ndarray


class Sampler:
    """Draws batches of a phase from clips.

    clips: the training clips. sentences: what `Batch.sentence` numbers. heads: names of the heads
    that judge single frames, in the order of `Batch.labels`.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        sentences: Sequence[str],
        heads: Sequence[str],
        phase: Phase,
        examples: ExampleSettings,
        seed: int,
    ):
        self._number = {s: i for i, s in enumerate(sentences)}
        self._heads, self._phase, self._examples, self._seed = tuple(heads), phase, examples, seed
        for kind in phase.kinds:
            if kind not in KINDS:
                raise UserError(f"phase {phase.name!r}, kinds: {did_you_mean(kind, KINDS)}")
        wanted = phase.kinds or dict.fromkeys(KINDS, 1.0)
        # A clip that none of the heads has a label for would teach nothing.
        useful = [c for c in clips if self._has_labels(c)]
        self._by_kind = {
            k: [c for c in useful if c.kind == KINDS.index(k)] for k, w in wanted.items() if w > 0
        }
        self._by_kind = {k: v for k, v in self._by_kind.items() if v}
        if not self._by_kind:
            raise UserError(
                f"phase {phase.name!r}: no clip of kinds {sorted(wanted)} has labels for its heads"
            )
        self._lengths = {
            k: np.cumsum([len(c.frames) for c in v])
            for k, v in self._by_kind.items() if phase.draw == "frames"
        }  # fmt: skip
        weights = np.array([wanted[k] for k in self._by_kind], np.float64)
        self._weights = weights / weights.sum()

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        rng = np.random.default_rng([self._seed, 5, step])
        rows, count, pairs = self._phase.rows, self._phase.frames_per_row, self._phase.pairs_per_row
        made = Batch(
            frames=np.zeros((rows, 1 + count), np.int32),
            sentence=np.zeros(rows, np.int32),
            labels=np.full((rows, count, len(self._heads)), np.nan, np.float32),
            pairs=np.zeros((rows, pairs, 2), np.int32),
            closer=np.full((rows, pairs), np.nan, np.float32),
        )
        kinds = rng.choice(len(self._weights), rows, p=self._weights)
        names = list(self._by_kind)
        for row, kind in enumerate(kinds):
            self._fill(made, row, self._drawn(names[kind], rng), rng)
        return made

    def _drawn(self, kind: str, rng: np.random.Generator) -> Clip:
        clips = self._by_kind[kind]
        if kind in self._lengths:
            ends = self._lengths[kind]
            return clips[np.searchsorted(ends, rng.integers(ends[-1]), side="right")]
        return clips[rng.integers(len(clips))]

    def _has_labels(self, clip: Clip) -> bool:
        labels = clip.labels
        single = any(n in labels and np.isfinite(labels[n]).any() for n in self._heads)
        return single or (self._phase.pairs_per_row > 0 and comparable(clip, self._examples))

    def _fill(self, made: Batch, row: int, clip: Clip, rng: np.random.Generator) -> None:
        count, pairs = self._phase.frames_per_row, self._phase.pairs_per_row
        places: list[int] = []
        asked: list[tuple[int, int, float]] = []  # columns of previous and current, answer
        paired = pairs > 0 and comparable(clip, self._examples)
        if paired and count >= 2:
            # Pairs whose distances follow the stated distribution come first; `_more_pairs` only
            # fills up.
            wanted = min(pairs, count // 2)
            for before, after, closer in zip(
                *draw_pairs(clip, wanted, self._examples, rng), strict=True
            ):
                asked.append((len(places) + 1, len(places) + 2, closer))
                places += [int(before), int(after)]
        single = draw_frames(clip, self._examples, rng)
        missing = count - len(places)
        chosen = rng.choice(single, missing, replace=missing > len(single))
        places += [int(p) for p in chosen]
        if paired:
            self._more_pairs(clip, places, asked, rng)
        made.frames[row] = clip.frames[[0, *places]]
        made.sentence[row] = self._number[clip.task]
        labels = clip.labels
        for i, name in enumerate(self._heads):
            if name in labels:
                made.labels[row, :, i] = labels[name][places]
        for i, (before, after, closer) in enumerate(asked[:pairs]):
            made.pairs[row, i] = before, after
            made.closer[row, i] = closer

    def _more_pairs(self, clip, places, asked, rng) -> None:
        """Fills up the pairs with others of the row's frames, the first frame of the clip among
        them."""
        shown = [0, *places]
        order = rng.permutation(len(shown) ** 2)
        for pair in order:
            if len(asked) >= self._phase.pairs_per_row:
                return
            a, b = divmod(int(pair), len(shown))
            closer = float(
                comparison(clip.progress[shown[a]], clip.progress[shown[b]], self._examples)
            )
            if a != b and closer in (-1.0, 1.0):
                asked.append((a, b, closer))
