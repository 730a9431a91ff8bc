"""What a user gives to be scored: frames and sentences, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lrm_jax.rewards.engine import RewardEngine
from lrm_jax.run.errors import UserError


class Given(NamedTuple):
    """What a user gave: frames uint8 [T, B, H, W, 3], whether as one video [T, ...], a task each,
    goals [B, ...] at the engine's size or None."""

    frames: np.ndarray
    single: bool
    tasks: list[str]
    goal: Any
    engine: RewardEngine

    @property
    def time(self) -> int:
        return len(self.frames)

    def user_order(self, x: Any) -> np.ndarray:
        """[>= T, >= B, ...] as [B, T, ...], or [T, ...] for one video."""
        x = np.moveaxis(np.asarray(x), 0, 1)[: len(self.tasks), : self.time]
        return x[0] if self.single else x


def tasks_of(task: str | Sequence[str], count: int) -> list[str]:
    """A sentence for each of `count` videos, from one for all or one for each; else UserError."""
    tasks = [task] * count if isinstance(task, str) else list(task)
    if len(tasks) != count:
        raise UserError(f"{count} videos but {len(tasks)} tasks: give one for all or one for each")
    return tasks


def checked_frames(frames: Any) -> np.ndarray:
    """A user's frames as an array; UserError unless uint8 [T, H, W, 3] or [B, T, H, W, 3]."""
    frames = np.asarray(frames)
    shape = list(frames.shape)
    if frames.dtype != np.uint8:
        raise UserError(f"frames are {frames.dtype}: give uint8, 0 to 255")
    if frames.ndim not in (4, 5) or shape[-1] != 3:
        raise UserError(f"frames have shape {shape}: give [T, H, W, 3] or [B, T, H, W, 3]")
    if 0 in shape:
        raise UserError(f"frames have shape {shape}: there is nothing to score")
    return frames
