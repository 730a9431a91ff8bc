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
