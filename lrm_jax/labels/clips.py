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

from lrm_jax.labels.store import FAILURE, REWIND, SUCCESS, WRONG_SENTENCE, Clip, FrameStore
from lrm_jax.run.errors import UserError

_DONE = 1.0 - 1e-6  # the simulator's progress from which on the task is done
_BINS = 40


@dataclasses.dataclass(frozen=True)
class ClipSettings:
    """How clips are labelled.

    progress: "time", the paper's labels as above, or "simulator", the simulator's progress
      everywhere.
    positive_fraction: where no simulator says when the task was done, the last share of a
      successful episode's frames that counts as done. ambiguous_fraction: share of the episode's
      frames before the first one that counts as done whose completion is left unlabelled.
    wrong_sentences: how many other sentences each episode is shown under.
    rewinds: share of the episodes that are shown with a part of them played backwards.
    """

    progress: str = "time"
    positive_fraction: float = 0.05
    ambiguous_fraction: float = 0.02
    wrong_sentences: int = 1
    rewinds: float = 0.25

    def validate(self):
        if self.progress not in ("time", "simulator"):
            raise UserError(f"progress is {self.progress!r}: choose 'time' or 'simulator'")


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


def done_index(episode: Any) -> int:
    """The first frame at which a successful episode is done: by the simulator's progress, else its
    last one."""
    if episode.progress is not None and (episode.progress >= _DONE).any():
        return int(np.argmax(episode.progress >= _DONE))
    return len(episode.frames) - 1


def make_clips(
    episodes: Sequence[Any],
    store: FrameStore,
    settings: ClipSettings,
    seed: int,
    held_out: HeldOut | None = None,
) -> list[Clip]:
    """Labelled clips of `episodes`, in an order and with choices that depend on `seed` alone.

    Episodes with a held-out sentence give nothing at all, and no clip is made with one. Each
    episode may name
    other sentences of its scene: `meta["progress_by_task"]`, {sentence: simulator's progress [T]},
    or `meta["other_tasks"]`, sentences that share no step with the true one (their progress is then
    0).
    """
    held_out = held_out or HeldOut(())
    settings.validate()
    rng = np.random.default_rng([seed, 1])
    scale = (
        time_map(episodes) if settings.progress == "time" else lambda p: np.asarray(p, np.float32)
    )
    clips: list[Clip] = []
    for number, episode in enumerate(episodes):
        if episode.success is None:
            raise UserError(f"episode {number} does not say whether it succeeded: labels need that")
        if episode.task in held_out:
            continue
        clip = (success_clip if episode.success else failure_clip)(
            number, episode, store, settings, scale
        )
        clips.append(clip)
        others = wrong_sentence_clips(number, episode, store, scale, held_out)
        chosen = rng.permutation(len(others))[: settings.wrong_sentences]
        clips += [others[i] for i in sorted(chosen)]
        if rng.random() < settings.rewinds and np.isfinite(clip.progress).all():
            clips.append(rewind(clip, rng))
    if not clips:
        raise UserError("every episode has a held-out sentence: nothing is left to train on")
    held_out.check(c.task for c in clips)
    return clips


def success_clip(
    number: int, episode: Any, store: FrameStore, settings: ClipSettings, scale
) -> Clip:
    """A demonstration: p = t / T up to the frame T at which it is done, the simulator's word from
    there on."""
    frames = store.of(number)
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
    else:
        first = min(done, int(np.floor(count * (1 - settings.positive_fraction))))
        is_done = (at >= first).astype(np.float32)
    margin = int(np.ceil(settings.ambiguous_fraction * count))
    is_done[max(first - margin, 0) : first] = np.nan
    return Clip(frames, number, episode.task, progress, is_done, SUCCESS)


def failure_clip(
    number: int, episode: Any, store: FrameStore, settings: ClipSettings, scale
) -> Clip:
    """A failing episode: never done; progress from the simulator, unknown without one."""
    del settings
    frames = store.of(number)
    if episode.progress is None:
        progress = np.full(len(frames), np.nan, np.float32)
        is_done = np.zeros(len(frames), np.float32)
    else:
        # It may have been done for a moment and undone again.
        is_done = (np.asarray(episode.progress) >= _DONE).astype(np.float32)
        progress = scale(episode.progress)
    return Clip(frames, number, episode.task, progress, is_done, FAILURE)


def wrong_sentence_clips(
    number: int, episode: Any, store: FrameStore, scale, held_out: HeldOut
) -> list[Clip]:
    """The same frames under other sentences of the scene, held-out ones left out."""
    frames = store.of(number)
    meta = episode.meta or {}
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
