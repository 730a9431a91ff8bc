"""The network over pictures and merged rows, in micro-batches within a memory budget."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.qwen3_vl import Qwen3VL, VisionFeatures, VisionInputs, fixed_grid, patchify_clips
from lrm_jax.qwen3_vl.batching import bucket
from lrm_jax.rewards import cost
from lrm_jax.rewards.judges.paths import Rows, chunks


def encode(
    model: Qwen3VL, variables: Any, frames: jax.Array, clips: np.ndarray, memory_bytes: int
) -> VisionFeatures:
    """Features of temporal patches.

    Args:
      frames: uint8 [F, H, W, 3], all at one size that the vision tower takes.
      clips: int [U, time], the frames of each temporal patch; all one frame for an image.
    Returns:
      U features, and more behind them that pad their number.
    """
    size = frames.shape[1:3]
    patch = model.config.vision_config.patch_size
    patches = (size[0] // patch) * (size[1] // patch)
    each = memory_bytes // cost.image_bytes(model.config, patches, jnp.dtype(model.dtype).itemsize)
    frames = jnp.pad(frames, ((0, bucket(len(frames)) - len(frames)), *((0, 0),) * 3))
    clips = clips[np.minimum(np.arange(bucket(len(clips))), len(clips) - 1)]
    grid = fixed_grid(model.config, *size)
    made = [
        _encode(model, variables, frames, clips[index], grid) for index in chunks(len(clips), each)
    ]
    if len(made) == 1:
        return made[0]
    return VisionFeatures(
        jnp.concatenate([m.embeds for m in made]), jnp.concatenate([m.deepstack for m in made], 1)
    )


@functools.partial(jax.jit, static_argnums=0)
def _encode(model, variables, frames, clips, grid):
    patches = patchify_clips(jnp.take(frames, clips, axis=0), model.config)
    return model.apply(variables, VisionInputs(patches, grid), method="encode")


def log_probabilities(
    model: Qwen3VL, variables: Any, rows: Rows, features: VisionFeatures, memory_bytes: int
) -> np.ndarray:
    """Log-probability of each candidate, the sum over its tokens, float32 [B, C]."""
    run = functools.partial(_log_probabilities, model, variables, features)
    return _by_chunks(model, rows, run, rows.reads.shape[1], memory_bytes)


def states(
    model: Qwen3VL, variables: Any, rows: Rows, features: VisionFeatures, memory_bytes: int
) -> np.ndarray:
    """Hidden states behind the final norm at the places that are read, float32 [B, R, D]."""
    return _by_chunks(
        model, rows, functools.partial(_states, model, variables, features), 0, memory_bytes
    )


def _by_chunks(model, rows: Rows, run, logits: int, memory_bytes: int) -> np.ndarray:
    count, length = rows.tokens.shape
    size = cost.row_bytes(model.config, length, logits, jnp.dtype(model.dtype).itemsize)
    made = []
    for index in chunks(count, memory_bytes // size):
        chosen = {
            name: getattr(rows, name)[index]
            for name in ("tokens", "mask", "picture", "offset", "reads", "read_of", "token", "used")
        }
        made.append(np.asarray(run({**chosen, "positions": rows.positions[:, index]})))
    return np.concatenate(made)[:count]


def _hidden(model, variables, features, rows):
    visual = jnp.where(
        rows["picture"] >= 0, rows["picture"] * features.embeds.shape[1] + rows["offset"], -1
    )
    arguments = rows["tokens"], rows["positions"], rows["mask"], visual, features
    found = model.apply(variables, *arguments, method="hidden")
    return jnp.take_along_axis(found, rows["reads"][..., None], axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _states(model, variables, features, rows):
    return _hidden(model, variables, features, rows).astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _log_probabilities(model, variables, features, rows):
    read = model.apply(variables, _hidden(model, variables, features, rows), method="logits")
    read = jax.nn.log_softmax(read, axis=-1)
    parts = jax.vmap(lambda r, of, token: r[of, token])(read, rows["read_of"], rows["token"])
    return jnp.sum(jnp.where(rows["used"], parts, 0.0), -1)
