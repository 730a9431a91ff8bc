"""Pauses in an episode, found by motion: frames that show nothing new are left out.

Labels by time (p = t / T) call standing still progress. A frame that is left out costs nothing:
it looks like the one before.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError


@dataclasses.dataclass(frozen=True)
class PauseSettings:
    """When a robot counts as standing still.

    trim: whether pauses are left out at all.
    by: "proprioception" (each dimension relative to its range in the episode), "frames" (mean
      absolute difference of pixels), or "auto", which takes proprioception where there is any.
    still: a frame belongs to a pause if it has moved away from the last frame that does not by less
      than this share of the episode's fast motion (the 95th percentile between neighbouring
      frames). Measured from there, slow motion adds up and is no pause.
    keep: so many frames of each pause are kept.
    """

    trim: bool = False
    by: str = field("auto", choices=("auto", "proprioception", "frames"))
    still: float = field(0.05, ge=0, lt=1)
    keep: int = field(1, ge=0)


def kept_frames(episode: Any, settings: PauseSettings, needed: int | None = None) -> np.ndarray:
    """Places of the frames that are kept, int64 [K], ascending; the first one and `needed` always
    are.

    UserError: pauses are to be found by a proprioception that the episode lacks or that does not
    reach to its last frame.
    """
    count = len(episode.frames)
    if not settings.trim:
        return np.arange(count)
    values = positions(episode, settings.by)
    limit = settings.still * np.quantile(_apart(values[1:], values[:-1]), 0.95)
    kept, last, paused = [0], 0, 0
    for t in range(1, count):
        if _apart(values[t], values[last]) >= limit and np.any(values[t] != values[last]):
            last, paused = t, 0
        else:
            paused += 1
            if paused > settings.keep and t != needed:
                continue
        kept.append(t)
    return np.asarray(kept, np.int64)


def positions(episode: Any, by: str) -> np.ndarray:
    """What moves, one row a frame: float32 [T, P] proprioception over its range, or [T, pixels]."""
    proprio = getattr(episode, "proprio", None)
    if by == "proprioception" and proprio is None:
        raise UserError("pauses: this episode has no proprioception; find them by 'frames'")
    if by == "frames" or proprio is None:
        return np.asarray(episode.frames, np.float32).reshape(len(episode.frames), -1)
    at = np.arange(len(episode.frames)) * int((episode.meta or {}).get("stride", 1))
    if at[-1] >= len(proprio):
        raise UserError(
            f"pauses: {len(proprio)} rows of proprioception do not reach the last of "
            f"{len(at)} frames (one every {at[1] - at[0]} control steps)"
        )
    values = np.asarray(proprio, np.float32)[at]
    span = np.ptp(values, axis=0)
    return values / np.where(span > 0, span, 1.0)


def _apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.abs(one - other).mean(-1)
