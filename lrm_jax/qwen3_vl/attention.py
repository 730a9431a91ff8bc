"""The one attention function of the model: plain XLA, or a kernel of the device at hand."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lrm_jax.parallel.mesh import ROW_AXES
from lrm_jax.run.errors import UserError, did_you_mean

# Finite, so that a row whose keys are all masked averages instead of becoming NaN (also in its
# gradient).
MASKED = -1e30
# What each implementation runs on; "xla" is the reference, and the only one that decodes from a
# cache.
IMPLEMENTATIONS = {"xla": None, "splash": "tpu", "cudnn": "gpu"}


@flax.struct.dataclass
class Mask:
    """Where the places of a row may look, as kernels need to know it: parts that must all agree.

    valid: bool [B, S], False for padding, which nobody but padding may look at; None if there is
      none. pattern: bool [S, S], which place (first) may look where (second), the same for all rows
      and True on its diagonal; None for everywhere. causal: nobody looks ahead.
    """

    valid: Any = None
    pattern: Any = None
    causal: bool = flax.struct.field(pytree_node=False, default=False)

    def dense(self, length: int) -> jax.Array | None:
        """bool [B or 1, S, S] for rows of S = `length` places; None for everywhere."""
        parts = []
        if self.valid is not None:
            parts.append(jnp.asarray(self.valid)[:, None, :])
        if self.pattern is not None:
            parts.append(jnp.asarray(self.pattern)[None])
        if self.causal:
            parts.append(jnp.tril(jnp.ones((1, length, length), bool)))
        if not parts:
            return None
        out = parts[0]
        for part in parts[1:]:
            out = out & part
        return out


def dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | Mask | None,
    *,
    implementation: str = "xla",
    rows: tuple[str, ...] = ROW_AXES,
) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v with grouped key/value heads; scores and softmax in float32.

    Args:
      query: [B, S, H, D].
      key, value: [B, T, K, D] with H a multiple of K; query head h reads key head h // (H / K).
      mask: a Mask (S = T), or bool, broadcastable to [B, S, T], True where a query may look; None
        for everywhere. A query that may look nowhere yields the mean of all values, and one that is
        padding whatever its kernel makes of it: finite numbers that mean nothing.
      implementation: of `IMPLEMENTATIONS`. "splash" takes no array as mask.
      rows: mesh axes that cut B, where a mesh is set; for "splash".

    Returns:
      [B, S, H, D] in the query's dtype.

    Raises:
      UserError: an implementation that is unknown, or that the device lacks.
    """
    check(implementation)
    if implementation == "splash":
        from lrm_jax.qwen3_vl import kernels

        return kernels.splash(query, key, value, mask, rows=rows)
    if isinstance(mask, Mask):
        mask = mask.dense(query.shape[1])
    if implementation == "cudnn":
        from lrm_jax.qwen3_vl import kernels

        return kernels.fused(query, key, value, mask, "cudnn")
    return _plain(query, key, value, mask)


def _plain(query, key, value, mask: jax.Array | None) -> jax.Array:
    """In XLA. The queries of all heads of a group stand in one matrix, and what divides the weights
    divides their product with the values instead, which has fewer numbers: forward and backward
    together take 0.6 of the time of einsums over five axes and a softmax, on a CPU."""
    batch, length, heads, dim = query.shape
    slots, groups = key.shape[1:3]
    each = heads // groups
    query = query.reshape(batch, length, groups, each, dim).transpose(0, 2, 3, 1, 4)
    query = query.reshape(batch, groups, each * length, dim)
    key, value = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
    wide = dict(preferred_element_type=jnp.float32)
    scores = jnp.einsum("bnsd,bntd->bnst", query, key, **wide) * dim**-0.5
    scores = scores.reshape(batch, groups, each, length, slots)
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, MASKED)
    largest = jax.lax.stop_gradient(jnp.max(scores, -1, keepdims=True))
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, -1, keepdims=True)
    weights = weights.astype(value.dtype).reshape(batch, groups, each * length, slots)
    out = jnp.einsum("bnst,bntd->bnsd", weights, value, **wide)
    out = out.reshape(batch, groups, each, length, dim) / total
    return out.astype(query.dtype).transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, dim)


def check(implementation: str) -> None:
    """UserError unless `implementation` is known and runs on the devices that are computed for."""
    if implementation not in IMPLEMENTATIONS:
        raise UserError(
            f"attention: {implementation!r} is unknown; "
            f"{did_you_mean(implementation, tuple(IMPLEMENTATIONS))}"
        )
    needs, here = IMPLEMENTATIONS[implementation], _platform()
    if needs not in (None, here):
        raise UserError(
            f"attention: {implementation!r} runs on a {needs.upper()}, this is a {here.upper()}; "
            "choose 'xla'"
        )


def _platform() -> str:
    """tpu, gpu or cpu: of the mesh that is set, whose devices need not be there, or this host's."""
    mesh = jax.sharding.get_abstract_mesh()
    kind = getattr(mesh.abstract_device, "device_kind", "") if not mesh.empty else ""
    return "tpu" if kind.startswith("TPU") else jax.default_backend()
