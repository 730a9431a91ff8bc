"""What the network takes: patches, index tables and positions.

Everything that depends on data in its shape (grids, positions) is computed here on the host in
numpy; pixels become patches on the device. A camera has one size, so its tables (`fixed_grid`) are
constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.qwen3_vl.config import Config, VisionConfig

Array = Any  # numpy or jax


@flax.struct.dataclass
class VisionTables:
    """Where each patch sits. The leading dimension is N (images), or 1 for one shared grid.

    pos_index: int32 [., P, 4], the four corners in the learned position table.
    pos_weight: float32 [., P, 4], their bilinear weights.
    place: int32 [., P, 2], (row, column) in the patch grid, for the rotary embedding.
    valid: bool [., P], False for padding; None if every patch is real.
    """

    pos_index: Array
    pos_weight: Array
    place: Array
    valid: Array | None = None


@flax.struct.dataclass
class VisionInputs:
    """N images (or temporal patches of a video): patches float [N, P, C*T*p*p] and their tables."""

    patches: Array
    tables: VisionTables


@flax.struct.dataclass
class VisionFeatures:
    """Encoded images: embeds [N, M, D], DeepStack levels [K, N, M, D].

    M = P / merge_size^2 tokens an image, D the width of the text model.
    """

    embeds: Array
    deepstack: Array

    def by_row(self, rows: int) -> VisionFeatures:
        """Each row's own images apart: embeds [rows, N / rows, M, D], DeepStack likewise.

        Where rows are cut over devices, features then stay where they were made; images that rows
        share are gathered by every device, all of them.
        """
        apart = (rows, -1, *self.embeds.shape[1:])
        levels = (len(self.deepstack), *apart)
        return VisionFeatures(self.embeds.reshape(apart), self.deepstack.reshape(levels))


def _vision(config: Config | VisionConfig) -> VisionConfig:
    return config.vision_config if isinstance(config, Config) else config


def grid_of(config: Config | VisionConfig, height_px: int, width_px: int) -> tuple[int, int, int]:
    """(1, rows, columns) in patches; ValueError unless both sides hold whole merge blocks."""
    vision = _vision(config)
    block = vision.patch_size * vision.spatial_merge_size
    if height_px % block or width_px % block or min(height_px, width_px) < block:
        raise ValueError(
            f"image of {height_px}x{width_px} pixels: both sides must be multiples of {block}"
        )
    return 1, height_px // vision.patch_size, width_px // vision.patch_size


def grid_tables(config: Config | VisionConfig, rows: int, columns: int) -> VisionTables:
    """Tables (numpy, leading dimension 1) of a grid of patches, in merge-block order."""
    vision = _vision(config)
    merge, side = vision.spatial_merge_size, vision.grid_per_side
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")

    def blocks(x):
        x = x.reshape(rows // merge, merge, columns // merge, merge)
        return x.transpose(0, 2, 1, 3).reshape(-1)

    row, column = blocks(row), blocks(column)

    def corners(index, size):
        # Corner-aligned: the first and last patch sit on the first and last table entry.
        at = index.astype(np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
        low = np.floor(at)
        taps = np.minimum(low.astype(np.int32)[:, None] + np.arange(2, dtype=np.int32), side - 1)
        return taps, np.stack([1 - (at - low), at - low], -1)

    row_tap, row_weight = corners(row, rows)
    col_tap, col_weight = corners(column, columns)
    return VisionTables(
        pos_index=(row_tap[:, :, None] * side + col_tap[:, None, :]).reshape(1, -1, 4),
        pos_weight=(row_weight[:, :, None] * col_weight[:, None, :])
        .reshape(1, -1, 4)
        .astype(np.float32),
        place=np.stack([row, column], -1).astype(np.int32)[None],
    )


def fixed_grid(config: Config | VisionConfig, height_px: int, width_px: int) -> VisionTables:
    """Tables of a camera of one size, as numpy constants with leading dimension 1."""
    _, rows, columns = grid_of(config, height_px, width_px)
    return grid_tables(config, rows, columns)


def patchify(frames: jax.Array, config: Config | VisionConfig) -> jax.Array:
    """uint8 [N, H, W, C] to float32 patches [N, P, C*T*p*p] in [-1, 1].

    Equals transformers' image processor without resizing, up to float32 rounding.
    Patches come in merge-block order (block row, block column, row in block, column in block); the
    features of a patch in (channel, time, row, column) order. A single frame fills all T time
    slots. Jittable.
    """
    return patchify_clips(frames[:, None], config)


def patchify_clips(clips: jax.Array, config: Config | VisionConfig) -> jax.Array:
    """`patchify` for the temporal patches of videos: uint8 [N, T, H, W, C], or [N, 1, ...] where
    one frame fills all time slots."""
    vision = _vision(config)
    n, slots, height, width, channels = clips.shape
    if channels != vision.in_channels:
        raise ValueError(f"frames have {channels} channels, the model takes {vision.in_channels}")
    _, rows, columns = grid_of(vision, height, width)
    merge, patch, time = vision.spatial_merge_size, vision.patch_size, vision.temporal_patch_size
    if slots not in (1, time):
        raise ValueError(f"clips have {slots} frames, a temporal patch takes {time}")
    x = jnp.asarray(clips).reshape(
        n, slots, rows // merge, merge, patch, columns // merge, merge, patch, channels
    )
    x = x.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)  # N, blocks, in block, channel, time, row, column
    x = (x.astype(jnp.float32) - 127.5) / 127.5
    x = jnp.broadcast_to(x, (*x.shape[:6], time, patch, patch))
    return x.reshape(n, rows * columns, vision.patch_features)


def rope_positions(
    tokens: np.ndarray, grids: Sequence[Sequence[int]], config: Config
) -> tuple[np.ndarray, int]:
    """Positions of one unpadded row: (time, row, column), int32 [3, S], and the decode offset.

    Text counts up on all three axes. An image block takes (t, row, column) offsets from where it
    starts, and the text after it starts one past the largest of them. A token generated at index i
    >= S sits at i + delta on all axes.

    Args:
      tokens: int [S].
      grids: one (t, rows, columns) or (rows, columns) in patches for each image block, in order of
        appearance, images and videos alike. A video has one block for each temporal patch.
      config: the model's.

    Raises:
      ValueError: the image tokens in the row are not those that the grids call for.
    """
    tokens = np.asarray(tokens)
    visual = (tokens == config.image_token_id) | (tokens == config.video_token_id)
    positions = np.empty((3, tokens.shape[0]), np.int32)
    merge = config.vision_config.spatial_merge_size
    at, start = 0, 0
    for number, grid in enumerate(grids):
        time, rows, columns = (1, *grid) if len(grid) == 2 else grid
        rows, columns = int(rows) // merge, int(columns) // merge
        count = int(time) * rows * columns
        text = int(np.argmax(visual[at:])) if visual[at:].any() else len(tokens) - at
        block = slice(at + text, at + text + count)
        if count != len(tokens[block]) or not visual[block].all() or np.ptp(tokens[block]):
            raise ValueError(
                f"image block {number} needs {count} image tokens in a row, the text has fewer"
            )
        positions[:, at : at + text] = start + np.arange(text)
        start += text
        offsets = np.indices((int(time), rows, columns)).reshape(3, -1)
        positions[:, block] = start + offsets
        start += max(rows, columns)
        at += text + count
    if visual[at:].any():
        raise ValueError(
            f"{int(visual[at:].sum())} image tokens are left over after {len(grids)} image blocks"
        )
    positions[:, at:] = start + np.arange(len(tokens) - at)
    top = int(positions.max()) + 1 if len(tokens) else 0
    return positions, top - len(tokens)
