"""Episodes to labelled clips: demonstrations by time, failures by the simulator, wrong sentences,
rewinds.

The method labels a frame of a successful demonstration with its place in time, p = t / T (Large
Reward Models, 2603.16065; `lrm_method.md` 1.2). Time says nothing about failures, nor about frames
after success. There the simulator's own progress (privileged, for labels only) takes over, carried
to the scale of t / T by what the demonstrations themselves show: the mean of t / T at each value of
the simulator's progress.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from lrm_jax.labels.motion import PauseSettings, kept_frames
from lrm_jax.labels.store import FAILURE, REWIND, SUCCESS, WRONG_SENTENCE, Clip, FrameStore
from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError

_DONE = 1.0 - 1e-6  # the simulator's progress from which on the task is done
_BINS = 40


@dataclasses.dataclass(frozen=True)
class ClipSettings:
    """How clips are labelled.

    progress: "time", the paper's labels as above, or "simulator", the simulator's progress
      everywhere.
    positive_fraction: the positive window of completion where nobody says when the task was done:
      the last share of a successful episode's frames. ambiguous_fraction: share of the episode's
      frames before the first one that counts as done whose completion is left unlabelled.
    assume_success: episodes that do not say whether they succeeded count as successes, as
      collections of demonstrations are meant; otherwise they are an error.
    cut_off: the success cut-off: frames after the success are left out, but for a positive window
      of `positive_fraction` of the episode (where someone says when the task was done).
    failures: whether failed episodes are shown at all.
    wrong_sentences: how many other sentences each episode is shown under.
    wrong_from: where they come from: "scene", what the episode itself names (see `make_clips`), or
      "anywhere": where it names too few, sentences of other episodes too, at progress 0. A
      collection that words one task in several ways then gets wrong labels: a paraphrase of the
      true sentence counts as wrong.
    rewinds: share of the episodes that are shown with a part of them played backwards.
    pauses: whether and how pauses are left out, before all else.
    """

    progress: str = field("time", choices=("time", "simulator"))
    positive_fraction: float = field(0.05, gt=0, le=1)
    ambiguous_fraction: float = field(0.02, ge=0, le=1)
    assume_success: bool = False
    cut_off: bool = False
    failures: bool = True
    wrong_sentences: int = field(1, ge=0)
    wrong_from: str = field("scene", choices=("scene", "anywhere"))
    rewinds: float = field(0.25, ge=0, le=1)
    pauses: PauseSettings = field(default_factory=PauseSettings)


def normal_sentence(sentence: str) -> str:
    """Lower case, single spaces, no full stop: what decides whether two sentences are the same."""
    return " ".join(sentence.lower().split()).rstrip(" .!")


class HeldOut:
    """Sentences that training must never see, whatever they are attached to."""

    def __init__(self, sentences: Iterable[str]):
        self.sentences = frozenset(map(normal_sentence, sentences))

    def __contains__(self, sentence: str) -> bool:
        return normal_sentence(sentence) in self.sentences

    def check(self, sentences: Iterable[str]) -> None:
        """UserError if one of `sentences` is held out: the last gate before training."""
        for sentence in sentences:
            if sentence in self:
                raise UserError(f"held-out sentence {sentence!r} reached the training labels")


def time_map(episodes: Sequence[Any]) -> Callable[[np.ndarray], np.ndarray]:
    """A non-decreasing map of the simulator's progress to t / T, learnt from the successful
    `episodes`.

    Without successes that carry the simulator's progress it is the identity.
    """
    pairs = []
    for e in episodes:
        if e.success and e.progress is not None:
            done = done_index(e)
            pairs.append(np.stack([e.progress[: done + 1], np.arange(done + 1) / max(done, 1)], 1))
    if not pairs:
        return lambda p: np.asarray(p, np.float32)
    known = np.concatenate(pairs)
    bins = np.clip((known[:, 0] * _BINS).astype(int), 0, _BINS)
    centres, means = [0.0], [0.0]
    for b in np.unique(bins):
        inside = known[bins == b]
        if b < _BINS:  # the last bin is progress 1, which is time 1 by definition
            centres.append(float(inside[:, 0].mean()))
            means.append(float(inside[:, 1].mean()))
    centres, means = np.append(centres, 1.0), np.append(np.maximum.accumulate(means), 1.0)
    return lambda p: np.interp(p, centres, means).astype(np.float32)


def known_done(episode: Any) -> int | None:
    """The first frame at which a successful episode is done: by the simulator's progress, else by
    `meta["success_frame"]` (an annotation, a dataset's reward); None if neither says."""
    if episode.progress is not None and (np.asarray(episode.progress) >= _DONE).any():
        return int(np.argmax(np.asarray(episode.progress) >= _DONE))
    frame = (getattr(episode, "meta", None) or {}).get("success_frame")
    if frame is None:
        return None
    if not 0 <= frame < len(episode.frames):
        raise UserError(
            f"success_frame is {frame}: the episode has frames 0 to {len(episode.frames) - 1}"
        )
    return int(frame)


def done_index(episode: Any) -> int:
    """The first frame at which a successful episode is done; its last one if nobody says."""
    done = known_done(episode)
    return len(episode.frames) - 1 if done is None else done


@dataclasses.dataclass(frozen=True, eq=False)
class _Shown:
    """What is left of an episode: `frames` are places in the store, int64 [K]; progress and meta
    belong to these frames."""

    frames: np.ndarray
    task: str
    success: bool
    progress: np.ndarray | None
    meta: dict[str, Any]


def shown(number: int, episode: Any, store: FrameStore, settings: ClipSettings) -> _Shown:
    """An episode without its pauses and what follows its success, as `settings` have it."""
    success, meta = episode.success, dict(episode.meta or {})
    if success is None:
        if not settings.assume_success:
            raise UserError(
                f"episode {number} does not say whether it succeeded: labels need that "
                "(clips.assume_success takes such episodes for successes)"
            )
        success = True
    done = known_done(episode) if success else None
    kept = kept_frames(episode, settings.pauses, done)
    if settings.cut_off and done is not None:
        window = int(np.ceil(settings.positive_fraction * len(kept)))
        # At least two frames are left of an episode that is done at once.
        kept = kept[: max(int(np.searchsorted(kept, done)) + window, 2)]
    if len(kept) < 2:
        raise UserError(f"episode {number} never moves: nothing is left of it without its pauses")
    if done is not None:
        meta["success_frame"] = int(np.searchsorted(kept, done))
    meta["progress_by_task"] = {
        t: np.asarray(p)[kept] for t, p in meta.get("progress_by_task", {}).items()
    }
    progress = None if episode.progress is None else np.asarray(episode.progress)[kept]
    return _Shown(store.of(number)[kept], episode.task, success, progress, meta)


def make_clips(
    episodes: Sequence[Any],
    store: FrameStore,
    settings: ClipSettings,
    seed: int,
    held_out: HeldOut | None = None,
) -> list[Clip]:
    """Labelled clips of `episodes`, in an order and with choices that depend on `seed` alone.

    Episodes with a held-out sentence give nothing at all, and no clip is made with one. Each
    episode may name other sentences of its scene: `meta["progress_by_task"]`, {sentence:
    simulator's progress [T]}, or `meta["other_tasks"]`, sentences that share no step with the true
    one (their progress is then 0). No simulator is needed: without its progress a success is
    labelled by time and a failure by "not done" alone.

    Raises:
      UserError: an episode that does not say whether it succeeded (unless that is assumed), one
        whose pauses cannot be found, a success frame beyond its end; or nothing is left.
    """
    held_out = held_out or HeldOut(())
    rng = np.random.default_rng([seed, 1])
    parts = [shown(i, e, store, settings) for i, e in enumerate(episodes)]
    scale = (
        time_map(parts) if settings.progress == "time" else lambda p: np.asarray(p, np.float32)
    )
    anywhere = ()
    if settings.wrong_from == "anywhere":
        anywhere = sorted({p.task for p in parts if p.task not in held_out})
    clips: list[Clip] = []
    for number, episode in enumerate(parts):
        if episode.task in held_out or not (episode.success or settings.failures):
            continue
        clip = (success_clip if episode.success else failure_clip)(number, episode, settings, scale)
        clips.append(clip)
        others = wrong_sentence_clips(number, episode, scale, held_out)
        chosen = rng.permutation(len(others))[: settings.wrong_sentences]
        clips += [others[i] for i in sorted(chosen)]
        if anywhere and len(chosen) < settings.wrong_sentences:
            more = foreign_sentences(
                episode, anywhere, settings.wrong_sentences - len(chosen), rng
            )
            clips += [_never(number, episode.frames, task) for task in more]
        if rng.random() < settings.rewinds and np.isfinite(clip.progress).all():
            clips.append(rewind(clip, rng))
    if not clips:
        raise UserError(
            "every episode has a held-out sentence, or failed where failures are left out: nothing "
            "is left to train on"
        )
    held_out.check(c.task for c in clips)
    return clips


def success_clip(number: int, episode: _Shown, settings: ClipSettings, scale) -> Clip:
    """A demonstration: p = t / T up to the frame T at which it is done, the simulator's word from
    there on."""
    frames = episode.frames
    count, done = len(frames), done_index(episode)
    at = np.arange(count)
    if settings.progress == "simulator" and episode.progress is not None:
        progress = np.asarray(episode.progress, np.float32).copy()
    else:
        progress = np.minimum(at / max(done, 1), 1.0).astype(np.float32)
        if episode.progress is not None:
            progress[done:] = scale(episode.progress[done:])
    if episode.progress is not None:
        is_done = (episode.progress >= _DONE).astype(np.float32)
        first = done
    elif known_done(episode) is not None:
        is_done, first = (at >= done).astype(np.float32), done
    else:
        first = min(done, int(np.floor(count * (1 - settings.positive_fraction))))
        is_done = (at >= first).astype(np.float32)
    margin = int(np.ceil(settings.ambiguous_fraction * count))
    is_done[max(first - margin, 0) : first] = np.nan
    return Clip(frames, number, episode.task, progress, is_done, SUCCESS)


def failure_clip(number: int, episode: _Shown, settings: ClipSettings, scale) -> Clip:
    """A failing episode: never done; progress from the simulator, unknown without one."""
    del settings
    frames = episode.frames
    if episode.progress is None:
        progress = np.full(len(frames), np.nan, np.float32)
        is_done = np.zeros(len(frames), np.float32)
    else:
        # It may have been done for a moment and undone again.
        is_done = (np.asarray(episode.progress) >= _DONE).astype(np.float32)
        progress = scale(episode.progress)
    return Clip(frames, number, episode.task, progress, is_done, FAILURE)


def foreign_sentences(
    episode: _Shown, sentences: Sequence[str], wanted: int, rng: np.random.Generator
) -> list[str]:
    """Up to `wanted` different `sentences` that the episode's scene does not know."""
    own = [episode.task, *episode.meta["progress_by_task"], *episode.meta.get("other_tasks", ())]
    taken, found = set(map(normal_sentence, own)), []
    for i in rng.permutation(len(sentences)):
        if len(found) == wanted:
            break
        if (plain := normal_sentence(sentences[i])) not in taken:
            taken.add(plain)
            found.append(sentences[i])
    return found


def _never(number: int, frames: np.ndarray, task: str) -> Clip:
    """Frames under a sentence that nothing in them has to do with."""
    zeros = np.zeros(len(frames), np.float32)
    return Clip(frames, number, task, zeros, zeros.copy(), WRONG_SENTENCE)


def wrong_sentence_clips(
    number: int, episode: _Shown, scale, held_out: HeldOut
) -> list[Clip]:
    """The same frames under other sentences of the scene, held-out ones left out."""
    frames, meta = episode.frames, episode.meta
    known = {
        t: scale(np.asarray(p, np.float32)) for t, p in meta.get("progress_by_task", {}).items()
    }
    raw = {t: np.asarray(p) for t, p in meta.get("progress_by_task", {}).items()}
    for task in meta.get("other_tasks", ()):
        known.setdefault(task, np.zeros(len(frames), np.float32))
    clips = []
    for task, progress in known.items():
        if task in held_out or normal_sentence(task) == normal_sentence(episode.task):
            continue
        done = (raw[task] >= _DONE) if task in raw else np.zeros(len(frames), bool)
        clips.append(Clip(frames, number, task, progress, done.astype(np.float32), WRONG_SENTENCE))
    return clips


def rewind(clip: Clip, rng: np.random.Generator) -> Clip:
    """The clip up to a random frame, and from there backwards again, with the labels of the frames
    shown.

    Progress falls on the way back; a pair of frames that was in order is out of order there.
    """
    count = len(clip.frames)
    turn = int(rng.integers(count // 2, count))
    back = int(rng.integers(0, max(turn // 2, 1)))
    at = np.concatenate([np.arange(turn + 1), np.arange(turn - 1, back - 1, -1)])
    return Clip(clip.frames[at], clip.episode, clip.task, clip.progress[at], clip.done[at], REWIND)
