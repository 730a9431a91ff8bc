"""Sizes and resizing of pictures as the released models' image processor has them, on the device.

transformers' Qwen2-VL processor (which Qwen3-VL uses) rounds both sides to whole merge blocks
within bounds on the number of pixels, and resizes uint8 pictures with an antialiased bicubic filter
(Keys, a = -0.5): along the width, rounded to uint8, then along the height, rounded again. Its
libraries weigh in fixed point; in float32 a pixel comes out one grey level apart at most.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lrm_jax.qwen3_vl.config import Config
from lrm_jax.run import atomic
from lrm_jax.run.errors import UserError

ASPECT = 200  # the processor refuses longer pictures
# Where a checkpoint has settings, these files hold them: transformers 4 and 5.
_FILES = {"image": "preprocessor_config.json", "video": "video_preprocessor_config.json"}
_JOINT = "processor_config.json"


@dataclasses.dataclass(frozen=True)
class PixelBounds:
    """How many pixels a picture may have; of a video all its frames together."""

    fewest: int
    most: int

    def __post_init__(self):
        if not 0 < self.fewest <= self.most:
            raise UserError(f"pixels: at least {self.fewest} and at most {self.most} is no range")


def read_bounds(folder: Path, kind: str = "image") -> PixelBounds | None:
    """The bounds that a checkpoint's processor has for an "image" or a "video".

    None if the folder has no such file. UserError if it normalises otherwise than to [-1, 1], or
    holds no bounds.
    """
    path = folder / _FILES[kind]
    if path.is_file():
        raw = atomic.read_json(path)
    elif (folder / _JOINT).is_file():
        path = folder / _JOINT
        joint = atomic.read_json(path)
        raw = joint.get(f"{kind}_processor") if isinstance(joint, dict) else None
        if raw is None:
            return None
    else:
        return None
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no settings of an {kind} processor")
    for name in ("image_mean", "image_std"):
        if any(value != 0.5 for value in raw.get(name, ())):
            raise UserError(f"{path}: {name} is {raw[name]}; only 0.5, as released, is supported")
    size = raw.get("size") if isinstance(raw.get("size"), Mapping) else {}
    found = (
        raw.get("min_pixels", size.get("shortest_edge")),
        raw.get("max_pixels", size.get("longest_edge")),
    )
    if not all(isinstance(value, int) for value in found):
        raise UserError(f"{path}: no size with shortest_edge and longest_edge, in pixels")
    return PixelBounds(*found)


def nearest_size(height: int, width: int, config: Config, most: int) -> tuple[int, int]:
    """The size nearest to a picture's own that the vision tower takes, about `most` pixels at
    most: for models that come without a processor."""
    block = _block(config)
    shrink = min(1.0, (most / (height * width)) ** 0.5)
    rows, columns = (max(1, round(s * shrink / block)) * block for s in (height, width))
    return rows, columns


def image_size(height: int, width: int, config: Config, bounds: PixelBounds) -> tuple[int, int]:
    """(height, width) that the processor gives a picture, pixels. UserError for an aspect above
    200."""
    block = _block(config)
    _check_aspect(height, width)
    size = _rounded(height, width, block)
    return _within(size, height, width, 1, size[0] * size[1], block, bounds)


def video_size(
    frames: int, height: int, width: int, config: Config, bounds: PixelBounds
) -> tuple[int, int]:
    """(height, width) that the processor gives the pictures of a video of `frames` frames."""
    block, time = _block(config), config.vision_config.temporal_patch_size
    if min(height, width) < block:
        scale = max(block / height, block / width)
        height, width = int(height * scale), int(width * scale)
    _check_aspect(height, width)
    frames = max(frames, time)  # the last frame is repeated
    size = _rounded(height, width, block)
    area = round(frames / time) * time * size[0] * size[1]
    return _within(size, height, width, frames, area, block, bounds)


def _block(config: Config) -> int:
    return config.vision_config.patch_size * config.vision_config.spatial_merge_size


def _check_aspect(height: int, width: int) -> None:
    if max(height, width) > ASPECT * min(height, width):
        raise UserError(
            f"frames of {height}x{width} pixels: one side is over {ASPECT} times longer"
        )


def _rounded(height: int, width: int, block: int) -> tuple[int, int]:
    return round(height / block) * block, round(width / block) * block


def _within(size, height, width, frames, area, block, bounds) -> tuple[int, int]:
    """`size` if its `area` is within the bounds, else the picture's own size scaled into them."""
    if area > bounds.most:
        shrink = math.sqrt(frames * height * width / bounds.most)
        return tuple(max(block, math.floor(s / shrink / block) * block) for s in (height, width))
    if area < bounds.fewest:
        grow = math.sqrt(bounds.fewest / (frames * height * width))
        return tuple(math.ceil(s * grow / block) * block for s in (height, width))
    return size


@functools.partial(jax.jit, static_argnums=1)
def bicubic(frames: jax.Array, size: tuple[int, int]) -> jax.Array:
    """uint8 [N, H, W, C] resized to uint8 [N, *size, C] as the processor does it."""
    count, height, _, channels = frames.shape
    for shape in ((count, height, size[1], channels), (count, *size, channels)):
        if shape != frames.shape:  # the pass that has nothing to do is exact
            made = jax.image.resize(frames.astype(jnp.float32), shape, "cubic", antialias=True)
            frames = jnp.clip(jnp.round(made), 0, 255).astype(jnp.uint8)
    return frames


@functools.partial(jax.jit, static_argnums=1)
def linear(frames: jax.Array, size: tuple[int, int]) -> jax.Array:
    """uint8 [N, H, W, C] resized to uint8 [N, *size, C], antialiased triangle filter."""
    shape: Any = (frames.shape[0], *size, frames.shape[3])
    made = jax.image.resize(frames.astype(jnp.float32), shape, "linear", antialias=True)
    return jnp.clip(jnp.round(made), 0, 255).astype(jnp.uint8)
