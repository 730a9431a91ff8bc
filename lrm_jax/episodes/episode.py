"""The Episode: what every reader produces and labels, cloning and evaluation consume."""

import dataclasses
from typing import Any

import numpy as np

from lrm_jax.episodes.frames import LazyFrames


@dataclasses.dataclass(frozen=True, eq=False)
class Episode:
    """One trajectory under one camera.

    frames: uint8 [T,H,W,3], an array or `LazyFrames`, which decodes what is indexed.
    task: the sentence. fps: frames per second of ``frames``.
    success: whether the task was done at the end, None if nobody said.
    proprio: float32 [S+1,P], actions: float32 [S,A], at the control rate; a frame is every
    ``meta["stride"]``-th control step (1 if absent).
    progress: float32 [T], the simulator's dense progress: privileged, for labels and evaluation.
    source, camera: where it comes from. meta: anything else, by name.
    """

    frames: np.ndarray | LazyFrames
    task: str
    fps: float
    success: bool | None = None
    proprio: np.ndarray | None = None
    actions: np.ndarray | None = None
    progress: np.ndarray | None = None
    source: str = ""
    camera: str = ""
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
