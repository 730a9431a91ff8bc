"""A stretch of a video file as lazy frames: found by time, reached by seeking."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lrm_jax.episodes.broken import BrokenEpisode, check_fps
from lrm_jax.episodes.frames import LazyFrames

_RATE_TOLERANCE = 0.01  # of a stated rate against the file's; 29.97 and 30 are the same
_SEEK_OVER = 48  # frames: gaps up to this are decoded through, as a seek may land as far back


class Header(NamedTuple):
    """What a video file says of itself. frames: 0 where it does not say. fps: frames per second, of
    the grid that its frames lie on."""

    frames: int
    height: int
    width: int
    fps: float


def header(path: str | os.PathLike[str]) -> Header:
    """The header of a video file; BrokenEpisode if there is none that can be read."""
    path = Path(path)
    try:
        stat = path.stat()
    except OSError:
        raise BrokenEpisode("video", f"{path.name}: there is no such video file") from None
    return _header(str(path), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=4096)  # many episodes lie in one file
def _header(path: str, changed: int, size: int) -> Header:
    import av

    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise BrokenEpisode("video", f"{Path(path).name}: no video in it, or it is cut off")
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            grid = stream.base_rate  # exact where the average is not: 30000/1001, not 29.96
            if rate and grid and abs(grid / rate - 1) < _RATE_TOLERANCE:
                rate = grid
            frames = stream.frames
            if not frames and stream.duration and rate:  # Matroska does not count its frames
                frames = round(float(stream.duration * stream.time_base * rate))
            return Header(
                frames, stream.height, stream.width, float(rate) if rate else float("nan")
            )
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise BrokenEpisode(
            "video", f"{Path(path).name}: not a video that can be read ({_first_line(error)})"
        ) from error


class VideoFrames(LazyFrames):
    """`count` frames of a video file from time `begin` on, at `fps`.

    begin: seconds from the file's first frame. fps: frames per second, 0 for what the file says.
    Frame k is the k-th of the file from `begin` on.

    Raises:
      BrokenEpisode: no video; a rate other than the file's; fewer frames in the file than asked
        for; when decoding, a frame that is missing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        count: int = 0,
        begin: float = 0.0,
        fps: float = 0.0,
    ):
        self._path = Path(path)
        found = header(path)
        own = check_fps(found.fps, f"the rate of {self._path.name}")
        if fps and abs(own / check_fps(fps, "the stated rate") - 1) > _RATE_TOLERANCE:
            raise BrokenEpisode(
                "fps", f"{self._path.name} has {own:g} frames/s, but {fps:g} are stated"
            )
        self.fps = float(fps or own)
        # Counted by the file's own rate: 30 for 29.97 would be a frame off after half a minute.
        self._rate, self._begin = own, float(begin)
        first = round(self._begin * own)
        count = count or found.frames - first
        if found.frames and first + count > found.frames:
            raise BrokenEpisode(
                "video",
                f"{self._path.name} is cut off: frames {first} to {first + count - 1} are due, "
                f"there are {found.frames}",
            )
        if count < 1:
            raise BrokenEpisode("empty", f"{self._path.name} has no frame")
        super().__init__(count, found.height, found.width)

    def _decode(self, places: np.ndarray) -> np.ndarray:
        import av

        frames = np.empty((len(places), *self.shape[1:]), np.uint8)
        done = 0
        try:
            with av.open(str(self._path)) as container:
                stream = container.streams.video[0]
                while done < len(places):
                    before = done
                    for place, frame in self._from(container, stream, int(places[done])):
                        if place < places[done]:
                            continue
                        if place > places[done]:
                            break
                        if frame.is_corrupt:
                            raise BrokenEpisode(
                                "video", f"{self._path.name}: frame {place} is damaged"
                            )
                        picture = frame.to_ndarray(format="rgb24")
                        if picture.shape != self.shape[1:]:
                            raise BrokenEpisode(
                                "size", f"{self._path.name}: frame {place} has another size"
                            )
                        frames[done] = picture
                        done += 1
                        if done == len(places) or places[done] - place > _SEEK_OVER:
                            break
                    if done == before:
                        raise BrokenEpisode(
                            "video",
                            f"{self._path.name} is cut off: frame {places[done]} of "
                            f"{len(self)} is missing",
                        )
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise BrokenEpisode(
                "video",
                f"{self._path.name}: frame {places[done]} cannot be read ({_first_line(error)})",
            ) from error
        return frames

    def _from(self, container, stream, place: int):
        """(place, frame) in the order shown, from the key frame at or before `place` on."""
        base, start = stream.time_base, stream.start_time or 0
        at = self._begin + (place - 0.5) / self._rate  # half a frame early: times are rounded
        container.seek(start + max(int(at / base), 0), stream=stream, backward=True)
        for frame in container.decode(stream):
            if frame.pts is not None:
                seconds = float((frame.pts - start) * base)
                yield round((seconds - self._begin) * self._rate), frame


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
