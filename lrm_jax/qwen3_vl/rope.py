"""Rotary position embeddings: interleaved multi-axis (text) and row/column (vision)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.qwen3_vl.config import TextConfig, VisionConfig


def mrope_axes(head_dim: int, section: tuple[int, ...]) -> np.ndarray:
    """The axis (0 time, 1 row, 2 column) that turns each frequency, int [head_dim/2].

    Interleaved: T H W T H W ... until rows and columns have used up their section, T from there on.
    """
    axes = np.zeros(head_dim // 2, np.int32)
    axes[1 : 3 * section[1] : 3] = 1
    axes[2 : 3 * section[2] : 3] = 2
    return axes


def _inverse_frequencies(theta: float, dim: int) -> np.ndarray:
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return (1.0 / np.float32(theta) ** exponent).astype(np.float32)


def text_rotation(positions: jax.Array, config: TextConfig, dtype) -> tuple[jax.Array, jax.Array]:
    """cos and sin, each [B, S, 1, head_dim/2] in `dtype`, for positions int [3, B, S]."""
    axes = mrope_axes(config.head_dim, config.mrope_section)
    turned = jnp.moveaxis(positions.astype(jnp.float32)[axes], 0, -1)
    angles = (turned * _inverse_frequencies(config.rope_theta, config.head_dim))[:, :, None]
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def vision_rotation(places: jax.Array, config: VisionConfig) -> tuple[jax.Array, jax.Array]:
    """cos and sin, each float32 [N, P, 1, head_dim/2], for (row, column) int [N, P, 2]."""
    frequencies = _inverse_frequencies(config.rope_theta, config.head_dim // 2)
    angles = places.astype(jnp.float32)[..., None] * frequencies  # [N, P, 2, head_dim/4]
    angles = angles.reshape(*places.shape[:2], 1, config.head_dim // 2)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns the pairs (x[i], x[i + D/2]) of x [B, S, H, D]; in the wider dtype of x and cos."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
