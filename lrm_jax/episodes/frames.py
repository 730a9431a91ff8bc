"""Frames that are decoded when they are asked for, and not before."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lrm_jax.episodes.broken import BrokenEpisode


class LazyFrames:
    """uint8 [T, H, W, 3] that stays encoded until it is indexed.

    It is used like an array of frames: `len`, `shape`, `dtype`, `frames[3]`, `frames[2:9]`,
    `frames[places]` with places int [K] (or of any shape) or bool [T], and `np.asarray(frames)`.
    Each access decodes afresh what it returns; frames asked for twice are decoded once.

    A subclass gives `_decode`, which raises BrokenEpisode for what cannot be read.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, count: int, height: int, width: int):
        self.shape = (int(count), int(height), int(width), 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        places = np.arange(len(self))[index]
        wanted, inverse = np.unique(places, return_inverse=True)
        if not len(wanted):
            return np.zeros((*np.shape(places), *self.shape[1:]), np.uint8)
        found = self._decode(wanted)
        if found.shape[1:] != self.shape[1:] or found.dtype != np.uint8:
            raise BrokenEpisode(
                "size",
                f"frames are {found.dtype} {list(found.shape[1:])}, not uint8 "
                f"{list(self.shape[1:])} as stated",
            )
        return found[inverse.reshape(np.shape(places))]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("frames are decoded: they cannot be had without a copy")
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)

    def _decode(self, places: np.ndarray) -> np.ndarray:
        """Frames uint8 [K, H, W, 3] at places int64 [K], ascending, different, within [0, T)."""
        raise NotImplementedError


class EncodedFrames(LazyFrames):
    """T pictures as a file format's bytes: JPEG, PNG, whatever Pillow reads.

    pictures: sequence of T bytes objects. The first one's header gives the size.
    """

    def __init__(self, pictures: Sequence[bytes]):
        if not len(pictures):
            raise BrokenEpisode("empty", "there is no frame")
        width, height = _opened(pictures[0], 0).size
        super().__init__(len(pictures), height, width)
        self._pictures = pictures

    def _decode(self, places: np.ndarray) -> np.ndarray:
        frames = [_pixels(self._pictures[p], p) for p in places]
        for place, frame in zip(places, frames, strict=True):
            if frame.shape != self.shape[1:]:
                raise BrokenEpisode(
                    "size", f"frame {place} is {list(frame.shape)}, frame 0 {list(self.shape[1:])}"
                )
        return np.stack(frames)


class ReadFrames(LazyFrames):
    """T frames that `read` returns: (places int64 [K], ascending) -> uint8 [K, H, W, 3]."""

    def __init__(
        self, count: int, height: int, width: int, read: Callable[[np.ndarray], np.ndarray]
    ):
        super().__init__(count, height, width)
        self._decode = read


class ChosenFrames(LazyFrames):
    """Some frames of others, in a given order, resized when they are decoded.

    frames: uint8 [T, H, W, 3], lazy or not. places: int [K]; all if None. size: (height, width) in
    pixels; as they are if None. flip: turned upside down. Resizing is Pillow's bicubic filter over
    the whole picture, as transformers' image processors do it; the aspect changes with it.
    """

    def __init__(
        self,
        frames: Any,
        places: np.ndarray | None = None,
        size: tuple[int, int] | None = None,
        flip: bool = False,
    ):
        self._frames, self._flip = frames, flip
        self._places = np.arange(len(frames))[slice(None) if places is None else places]
        height, width = size or frames.shape[1:3]
        super().__init__(len(self._places), height, width)

    def _decode(self, places: np.ndarray) -> np.ndarray:
        found = np.asarray(self._frames[self._places[places]])
        if self._flip:
            found = np.ascontiguousarray(found[:, ::-1])
        if found.shape[1:3] == self.shape[1:3]:
            return found
        return np.stack([resized(frame, *self.shape[1:3]) for frame in found])


def resized(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """A frame uint8 [H, W, 3] as [height, width, 3]: bicubic, antialiased where it shrinks."""
    from PIL import Image

    picture = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def _opened(data: bytes, place: int):
    from PIL import Image

    try:
        return Image.open(io.BytesIO(data))
    except (OSError, SyntaxError, ValueError) as error:
        raise BrokenEpisode("image", f"frame {place} is no picture ({error})") from error


def _pixels(data: bytes, place: int) -> np.ndarray:
    with _opened(data, place) as picture:
        try:
            return np.asarray(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise BrokenEpisode("image", f"frame {place} cannot be read ({error})") from error
