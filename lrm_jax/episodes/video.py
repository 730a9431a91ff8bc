"""Frames from what users have: a video, a folder of images, an array file."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lrm_jax.run.errors import UserError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
ARRAYS = (".npy", ".npz")
FPS = 10.0  # of inputs that say nothing of their rate


class Video(NamedTuple):
    """frames: uint8 [T, H, W, 3], T >= 1. fps: frames per second."""

    frames: np.ndarray
    fps: float


def read_video(path: str | os.PathLike[str]) -> Video:
    """Reads a video file, a folder of images (in natural order), or a `.npy`/`.npz` array.

    Raises:
      UserError: nothing there, not such a file, no frame in it, frames that differ in size, or an
        array that is not uint8 [T, H, W, 3].
    """
    path = Path(path)
    if path.is_dir():
        frames, fps = _folder(path), FPS
    elif not path.is_file():
        raise UserError(f"{path}: there is no such file or folder")
    elif path.suffix.lower() in ARRAYS:
        frames, fps = _array(path), FPS
    else:
        frames, fps = _container(path)
    return Video(frames, fps)


def read_picture(path: str | os.PathLike[str]) -> np.ndarray:
    """One picture, uint8 [H, W, 3]: an image file, or the last frame of what `read_video` reads."""
    path = Path(path)
    if path.is_file() and path.suffix.lower() in IMAGES:
        return _image(path)
    return read_video(path).frames[-1]


def natural(name: str) -> list[tuple[int, int | str]]:
    """A sorting key by which frame_9 stands before frame_10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(p)) if p.isdigit() else (1, p) for p in parts]


def _folder(path: Path) -> np.ndarray:
    files = sorted(
        (f for f in path.iterdir() if f.suffix.lower() in IMAGES and not f.name.startswith(".")),
        key=lambda f: natural(f.name),
    )
    if not files:
        raise UserError(f"{path}: no image in this folder ({', '.join(IMAGES)})")
    return _stacked([_image(f) for f in files], path, [f.name for f in files])


def _image(file: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{file}: not an image that can be read ({error})") from error


def _stacked(frames: list[np.ndarray], path: Path, names: list[str]) -> np.ndarray:
    for frame, name in zip(frames, names, strict=True):
        if frame.shape != frames[0].shape:
            (h, w), (height, width) = frame.shape[:2], frames[0].shape[:2]
            raise UserError(
                f"{path}: {name} is {w}x{h} pixels, {names[0]} is {width}x{height}: "
                "all frames must have one size"
            )
    return np.stack(frames)


def _array(path: Path) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            array = loaded
        else:
            with loaded:
                names = loaded.files
                if len(names) != 1 and "frames" not in names:
                    raise UserError(
                        f"{path}: it holds {len(names)} arrays; name the one to score 'frames'"
                    )
                array = loaded["frames" if "frames" in names else names[0]]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not an array file that can be read ({error})") from error
    if array.dtype != np.uint8:
        raise UserError(f"{path}: the array is {array.dtype}: give uint8, 0 to 255")
    if array.ndim != 4 or array.shape[-1] != 3:
        raise UserError(f"{path}: the array has shape {list(array.shape)}: give [T, H, W, 3]")
    if 0 in array.shape:
        raise UserError(f"{path}: the array has shape {list(array.shape)}: there is no frame")
    return array


def _container(path: Path) -> tuple[np.ndarray, float]:
    import av

    frames: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path}: there is no video in this file, or it is cut off")
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            stated = stream.frames
            for frame in container.decode(stream):
                frames.append(frame.to_ndarray(format="rgb24"))
    except UserError:
        raise
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        where = f" after frame {len(frames)}" if frames else ""
        raise UserError(f"{path}: not a video that can be read{where} ({reason})") from error
    if not frames:
        raise UserError(f"{path}: the video has no frame")
    if stated and len(frames) < stated:
        raise UserError(
            f"{path}: the video is cut off: {len(frames)} of {stated} frames can be read"
        )
    names = [f"frame {i}" for i in range(len(frames))]
    return _stacked(frames, path, names), float(rate) if rate else FPS
