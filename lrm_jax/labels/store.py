"""All frames of a set of episodes in one array, and clips: sequences of frames under one sentence,
labelled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lrm_jax.run.errors import UserError

# Where a clip comes from; `Clip.kind` indexes it.
KINDS = ("success", "failure", "wrong_sentence", "rewind", "scene", "blank")
SUCCESS, FAILURE, WRONG_SENTENCE, REWIND, SCENE, BLANK = range(len(KINDS))


@dataclasses.dataclass(frozen=True, eq=False)
class FrameStore:
    """Frames of episodes end to end: frames uint8 [F, H, W, 3], starts int64 [episodes + 1]."""

    frames: np.ndarray
    starts: np.ndarray

    @classmethod
    def from_episodes(cls, episodes: Sequence[Any]) -> FrameStore:
        """Copies the frames of `episodes` together; UserError if their sizes differ or there are
        none."""
        if not episodes:
            raise UserError("there are no episodes to make labels from")
        sizes = {tuple(e.frames.shape[1:]) for e in episodes}
        if len(sizes) > 1:
            raise UserError(
                f"episodes have frames of different sizes {sorted(sizes)}: resize them first"
            )
        lengths = [len(e.frames) for e in episodes]
        if min(lengths) < 2:
            raise UserError("an episode has fewer than two frames")
        frames = np.concatenate([np.asarray(e.frames, np.uint8) for e in episodes])
        return cls(frames, np.concatenate([[0], np.cumsum(lengths)]))

    @classmethod
    def joined(cls, stores: Sequence[FrameStore]) -> FrameStore:
        """The episodes of several stores, one store after the other; UserError if their frames'
        sizes differ."""
        if len(stores) == 1:
            return stores[0]
        if len(sizes := {s.frames.shape[1:] for s in stores}) > 1:
            raise UserError(f"tasks have frames of different sizes {sorted(sizes)}")
        ends = np.cumsum([0, *(len(s.frames) for s in stores)])
        starts = [s.starts[:-1] + end for s, end in zip(stores, ends[:-1], strict=True)]
        frames = np.concatenate([s.frames for s in stores])
        return cls(frames, np.concatenate([*starts, ends[-1:]]))

    def of(self, episode: int) -> np.ndarray:
        """Indices of an episode's frames in `frames`, int64 [T]."""
        return np.arange(self.starts[episode], self.starts[episode + 1])


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """Frames in the order in which they are shown, the sentence they are judged under, and what is
    known.

    frames: int64 [T] into the store. episode: which episode they are from. task: the sentence.
    progress: float32 [T] in [0, 1], NaN where unknown. done: float32 [T], 1 done, 0 not, NaN not to
      be used.
    kind: index into KINDS. facts: float32 [T] by name, answers to scene questions; NaN where
      unknown.
    """

    frames: np.ndarray
    episode: int
    task: str
    progress: np.ndarray
    done: np.ndarray
    kind: int
    facts: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name, values in self.labels.items():
            if len(values) != len(self.frames):
                raise ValueError(
                    f"a clip has {len(self.frames)} frames but {len(values)} {name} labels"
                )
            known = values[np.isfinite(values)]
            if known.size and (known.min() < 0 or known.max() > 1):
                raise ValueError(f"a clip's {name} labels must lie in [0, 1]")

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """float32 [T] by the name of the head that answers it."""
        return {"progress": self.progress, "completion": self.done, **self.facts}
