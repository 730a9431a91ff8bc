"""The one attention function of the model, so that a kernel can replace it in one place."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Finite, so that a row whose keys are all masked averages instead of becoming NaN (also in its
# gradient).
MASKED = -1e30


def dot_product_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None
) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v with grouped key/value heads; scores and softmax in float32.

    Args:
      query: [B, S, H, D].
      key, value: [B, T, K, D] with H a multiple of K; query head h reads key head h // (H / K).
      mask: bool, broadcastable to [B, S, T], True where a query may look; None for everywhere. A
        query that may look nowhere yields the mean of all values, which the caller must treat as
        undefined.

    Returns:
      [B, S, H, D] in the query's dtype.
    """
    batch, length, heads, dim = query.shape
    groups = key.shape[2]
    query = query.reshape(batch, length, groups, heads // groups, dim)
    scores = (
        jnp.einsum("bsngd,btnd->bngst", query, key, preferred_element_type=jnp.float32) * dim**-0.5
    )
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    out = jnp.einsum("bngst,btnd->bsngd", weights, value)
    return out.reshape(batch, length, heads, dim)
