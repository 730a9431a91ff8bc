"""The one exception that means "this episode is broken", and the checks that all episodes pass."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lrm_jax.run.errors import UserError

if TYPE_CHECKING:
    from lrm_jax.episodes.episode import Episode

# What can be wrong with an episode; the report counts by these.
KINDS = (
    "video",  # cut off, or not a video
    "image",  # a picture that cannot be decoded
    "record",  # a damaged or missing record of a file
    "column",  # a column, feature or data set that others have is missing
    "empty",  # fewer than two frames
    "fps",  # no rate, or the frames' times contradict the stated one
    "sentence",  # none, or not UTF-8
    "dtype",  # values of another type than stated
    "size",  # frames of different or other than the stated sizes
    "length",  # frames, actions and stated length disagree
)


class BrokenEpisode(UserError):
    """One episode cannot be used; others of its source may be fine.

    kind: one of KINDS. The message is one line that says what is wrong.
    """

    def __init__(self, kind: str, message: str):
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is not among the kinds {KINDS}")
        super().__init__(message)
        self.kind = kind


def check(episode: Episode) -> Episode:
    """The episode, if its frames (not decoded), rate and sentence can be used.

    Raises:
      BrokenEpisode: fewer than two frames, frames that are not uint8 [T, H, W, 3], a rate that is
        not a positive number, no sentence, or progress of another length than the frames.
    """
    frames = episode.frames
    if frames.dtype != np.uint8:
        raise BrokenEpisode("dtype", f"frames are {frames.dtype}, not uint8")
    if len(frames.shape) != 4 or frames.shape[-1] != 3 or 0 in frames.shape[1:]:
        raise BrokenEpisode("size", f"frames have shape {list(frames.shape)}, not [T, H, W, 3]")
    if len(frames) < 2:
        raise BrokenEpisode("empty", f"it has {len(frames)} frames: at least 2 are needed")
    check_fps(episode.fps)
    if not episode.task.strip():
        raise BrokenEpisode("sentence", "its sentence is empty")
    if episode.progress is not None and len(episode.progress) != len(frames):
        raise BrokenEpisode(
            "length", f"{len(frames)} frames, but {len(episode.progress)} values of progress"
        )
    return episode


def check_fps(fps: float, what: str = "the rate") -> float:
    """`fps` if it is a positive, finite number; BrokenEpisode otherwise."""
    if not isinstance(fps, (int, float)) or not math.isfinite(fps) or fps <= 0:
        raise BrokenEpisode("fps", f"{what} is {fps!r}: it must be a positive number of frames/s")
    return float(fps)


def text(value: object, what: str = "the sentence") -> str:
    """`value`, a str or UTF-8 bytes, as a str; BrokenEpisode otherwise."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, (bytes, np.bytes_)):
        try:
            return bytes(value).decode("utf-8")
        except UnicodeDecodeError as error:
            raise BrokenEpisode("sentence", f"{what} is not UTF-8 ({error})") from error
    if not isinstance(value, str):
        raise BrokenEpisode("sentence", f"{what} is a {type(value).__name__}, not text")
    try:
        value.encode("utf-8")  # h5py hands broken bytes on as lone surrogates
    except UnicodeEncodeError as error:
        raise BrokenEpisode("sentence", f"{what} is not UTF-8 ({error.reason})") from error
    return str(value)
