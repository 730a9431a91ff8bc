"""A transformers processor's outputs, as the fixed-shape arrays that the network takes.

Every dimension is padded to one of a few sizes per octave, so that the number of compiled programs
stays small whatever a user sends.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.struct
import numpy as np

from lrm_jax.parallel.mesh import AXES, ROW_AXES
from lrm_jax.parallel.rows import shards
from lrm_jax.qwen3_vl.config import Config
from lrm_jax.qwen3_vl.inputs import VisionInputs, VisionTables, grid_tables, rope_positions

# What processors add and the network does not need: it finds images by their tokens.
IGNORED = frozenset({"mm_token_type_ids", "token_type_ids", "second_per_grid_ts", "video_metadata"})


@flax.struct.dataclass
class Batch:
    """Padded inputs of `Qwen3VL`: B rows, S places, N images; numpy arrays.

    tokens, visual_index: int32 [B, S]. positions: int32 [3, B, S]. valid: bool [B, S].
    last: int32 [B], the place of each row's last token. next_position: int32 [B], of the token
    after it. real: bool [B], False for rows that only fill the batch. owner: int32 [N], the row of
    each image. vision: None if the batch has no images.
    """

    tokens: Any
    positions: Any
    valid: Any
    visual_index: Any
    last: Any
    next_position: Any
    real: Any
    owner: Any
    vision: VisionInputs | None


def bucket(size: int, smallest: int = 1) -> int:
    """The next padded size: `smallest` times 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, ...

    From 4 times `smallest` on there are four sizes per octave: at most a quarter is padding.
    """
    units = max(-(-size // smallest), 1)
    step = 1 << max(units.bit_length() - 3, 0)
    return smallest * (-(-units // step) * step)


def sizes(largest: int, smallest: int = 1) -> list[int]:
    """Every padded size that `bucket` gives to sizes up to `largest`: some eight, and four for each
    doubling beyond 8 times `smallest`."""
    return sorted({bucket(n, smallest) for n in range(1, largest + 1)})


def most_programs(config: Config, rows: int, length: int, images: int, patches: int) -> int:
    """How many programs batches can need at the very most that have up to so many rows, tokens in
    the longest row, images (a video counts one for each temporal patch) and patches in the largest
    image. Batches without an image need their own.

    It is a product of four short lists; users who send pictures of one size and rows of similar
    length meet a handful.
    """
    text = len(sizes(rows)) * len(sizes(length, 64))
    pictures = len(sizes(images)) * len(sizes(patches, 16 * config.vision_config.merge_unit))
    return text * (1 + pictures)


def pack(config: Config, outputs: Mapping[str, Any]) -> Batch:
    """Pads and indexes a processor's outputs; where a mesh is set, to numbers of rows and images
    that it divides.

    Args:
      config: the model's.
      outputs: input_ids [B, S]; optional attention_mask [B, S] (either side padded); pixel_values
        [patches, C*T*p*p] with image_grid_thw [images, 3]; pixel_values_videos with video_grid_thw.

    Raises:
      ValueError: arrays that do not fit together (image tokens against grids against patches), an
        empty row, an array that no Qwen3-VL processor returns.
    """
    given = {k: v for k, v in outputs.items() if v is not None and k not in IGNORED}
    tokens = np.asarray(given.pop("input_ids"))
    if tokens.ndim != 2:
        raise ValueError(f"input_ids must be [batch, length], not {list(tokens.shape)}")
    keep = np.asarray(given.pop("attention_mask", np.ones_like(tokens))).astype(bool)
    if keep.shape != tokens.shape:
        raise ValueError(f"attention_mask is {keep.shape}, input_ids is {tokens.shape}")
    if not keep.any(axis=1).all():
        raise ValueError("a row of attention_mask is all zeros")
    images = _Images(config, given)
    if given:
        raise ValueError(f"unknown processor outputs: {', '.join(sorted(given))}")

    rows, length = tokens.shape
    full = (_divided(bucket(rows), ROW_AXES), bucket(length, 64))
    batch = Batch(
        tokens=np.zeros(full, np.int32),
        positions=np.zeros((3, *full), np.int32),
        valid=np.zeros(full, bool),
        visual_index=np.full(full, -1, np.int32),
        last=np.zeros(full[0], np.int32),
        next_position=np.zeros(full[0], np.int32),
        real=np.arange(full[0]) < rows,
        owner=np.zeros(0, np.int32),
        vision=None,
    )
    owner = []
    for b in range(rows):
        kept = np.flatnonzero(keep[b])
        row = tokens[b, kept]
        numbers = images.take(row)
        positions, delta = rope_positions(row, [images.grids[n] for n in numbers], config)
        batch.tokens[b, kept] = row
        batch.positions[:, b, kept] = positions
        batch.valid[b, kept] = True
        batch.last[b] = kept[-1]
        batch.next_position[b] = len(row) + delta
        visual = kept[images.is_visual(row)]
        if numbers:
            batch.visual_index[b, visual] = np.concatenate([images.indices(n) for n in numbers])
        owner += [(n, b) for n in numbers]
    images.check_used(len(owner))
    if not images.grids:
        return batch
    vision = images.inputs()
    rows_of = np.zeros(vision.patches.shape[0], np.int32)
    for n, b in owner:
        rows_of[n] = b
    return batch.replace(owner=rows_of, vision=vision)


def _divided(size: int, axes: tuple[str, ...]) -> int:
    parts = shards(axes)
    return -(-size // parts) * parts


class _Images:
    """Images, then temporal patches of videos, numbered; rows take them in order of appearance."""

    def __init__(self, config: Config, given: dict[str, Any]):
        self.config = config
        self.unit = config.vision_config.merge_unit
        self.grids: list[tuple[int, int, int]] = []
        self.pixels: list[np.ndarray] = []
        self.waiting: dict[int, list[int]] = {}
        for token, pixels, grid in (
            (config.image_token_id, "pixel_values", "image_grid_thw"),
            (config.video_token_id, "pixel_values_videos", "video_grid_thw"),
        ):
            if (pixels in given) != (grid in given):
                raise ValueError(f"{pixels} and {grid} go together, only one was given")
            first = len(self.grids)
            if pixels in given:
                self._add(np.asarray(given.pop(pixels)), np.asarray(given.pop(grid)), pixels)
            self.waiting[token] = list(range(first, len(self.grids)))
        areas = [h * w for _, h, w in self.grids]
        self.patches = bucket(max(areas, default=0), 16 * self.unit)

    def _add(self, pixels: np.ndarray, grids: np.ndarray, name: str):
        vision = self.config.vision_config
        if pixels.ndim != 2 or pixels.shape[1] != vision.patch_features:
            raise ValueError(
                f"{name} must be [patches, {vision.patch_features}], not {list(pixels.shape)}"
            )
        if int(grids.prod(axis=1).sum()) != len(pixels):
            raise ValueError(f"{name} has {len(pixels)} patches, its grids {grids.prod(1).sum()}")
        at = 0
        for time, height, width in grids.tolist():
            if time > 1 and name == "pixel_values":
                raise ValueError("image_grid_thw: an image has one temporal patch; pass a video")
            for _ in range(time):
                self.grids.append((1, height, width))
                self.pixels.append(pixels[at : at + height * width])
                at += height * width

    def is_visual(self, row: np.ndarray) -> np.ndarray:
        return np.isin(row, list(self.waiting))

    def tokens_of(self, number: int) -> int:
        _, height, width = self.grids[number]
        return height * width // self.unit

    def take(self, row: np.ndarray) -> list[int]:
        """The numbers of the images in a row of tokens."""
        taken, at = [], 0
        places = np.flatnonzero(self.is_visual(row))
        while at < len(places):
            queue = self.waiting[int(row[places[at]])]
            if not queue:
                raise ValueError("the text has more image or video tokens than the pixels fill")
            taken.append(queue.pop(0))
            at += self.tokens_of(taken[-1])
        return taken

    def check_used(self, used: int):
        if used != len(self.grids):
            raise ValueError(f"{len(self.grids)} images or video frames, the text places {used}")

    def indices(self, number: int) -> np.ndarray:
        return number * (self.patches // self.unit) + np.arange(self.tokens_of(number))

    def inputs(self) -> VisionInputs:
        count, vision = _divided(bucket(len(self.grids)), AXES), self.config.vision_config
        tables = VisionTables(
            pos_index=np.zeros((count, self.patches, 4), np.int32),
            pos_weight=np.zeros((count, self.patches, 4), np.float32),
            place=np.zeros((count, self.patches, 2), np.int32),
            valid=np.zeros((count, self.patches), bool),
        )
        patches = np.zeros((count, self.patches, vision.patch_features), np.float32)
        for n, (_, height, width) in enumerate(self.grids):
            own, size = _tables(vision, height, width), height * width
            patches[n, :size] = self.pixels[n]
            tables.pos_index[n, :size] = own.pos_index[0]
            tables.pos_weight[n, :size] = own.pos_weight[0]
            tables.place[n, :size] = own.place[0]
            tables.valid[n, :size] = True
        return VisionInputs(patches=patches, tables=tables)


_tables = functools.lru_cache(maxsize=256)(grid_tables)
