"""Linear map with an optional LoRA side path, and the two normalisations of Qwen3-VL."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Dtype = Any

_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class Linear(nn.Module):
    """y = x W + b, plus s (x A) B where the variable collection "lora" has factors at this path.

    The kernel is [in, out]. The collection's leaves are
      one adapter:       a [in, r],    b [r, out],    scale [] (optional, 1 if absent)
      stacked adapters:  a [n, in, r], b [n, r, out], scale [n] or [] (optional)
      either:            dropout [] (optional), the share of x's entries that the side path drops
    With stacked adapters `adapter_ids` [rows] picks one for each row of x (its first axis); -1
    picks none. The side path is computed in the adapter's own dtype (float32 over a bfloat16 base),
    as PEFT does. It drops inputs only if `apply` is given a key "lora" among its rngs.

    All stacked adapters are applied as one wide low-rank map of which each row keeps its own
    columns: n r is small beside `in`, and the alternative, a gather of factors per row, would copy
    them once per row.
    """

    features: int
    use_bias: bool = True
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        adapter_ids: jax.Array | None = None,
        side: jax.Array | None = None,
    ) -> jax.Array:
        """`side` stands in for x on the side path, for callers with several maps of one x."""
        kernel = self.param("kernel", _init, (x.shape[-1], self.features), self.param_dtype)
        y = matmul(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
            y = y + bias.astype(self.dtype)
        if not self.has_variable("lora", "a"):
            return y
        a, b = self.get_variable("lora", "a"), self.get_variable("lora", "b")
        scale = self.get_variable("lora", "scale") if self.has_variable("lora", "scale") else None
        x = (x if side is None else side).astype(a.dtype)
        if self.has_variable("lora", "dropout") and self.has_rng("lora"):
            x = dropped(x, self.get_variable("lora", "dropout"), self.make_rng("lora"))
        return (y + lora_delta(x, a, b, scale, adapter_ids)).astype(y.dtype)


def dropped(x: jax.Array, rate: jax.Array, rng: jax.Array) -> jax.Array:
    """x with a share `rate` (an array, below 1) of entries set to 0, the rest made up for it."""
    kept = jax.random.bernoulli(rng, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., in] times kernel [in, out].

    As a product of two matrices: the gradient of one with more axes contracts several at once, for
    which XLA's CPU compiler copies transposed activations (1.4 times an MLP gradient's time).
    """
    flat = jnp.dot(x.reshape(-1, x.shape[-1]), kernel)
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


def lora_delta(
    x: jax.Array,
    a: jax.Array,
    b: jax.Array,
    scale: jax.Array | None,
    adapter_ids: jax.Array | None,
) -> jax.Array:
    """s (x A) B in the dtype of A; shapes as in `Linear`."""
    x = x.astype(a.dtype)
    if a.ndim == 2:
        low = matmul(x, a)
        return matmul(low if scale is None else low * scale, b)
    if adapter_ids is None:
        raise ValueError("stacked LoRA adapters need adapter_ids, one number for each row")
    n, _, rank = a.shape
    pick = (adapter_ids[:, None] == jnp.arange(n)).astype(a.dtype)  # [rows, n]; -1 matches none.
    if scale is not None:
        pick = pick * scale
    low = jnp.einsum("b...i,nir->b...nr", x, a)
    low = low * pick.reshape(pick.shape[0], *(1,) * (x.ndim - 2), n, 1)
    return matmul(low.reshape(*x.shape[:-1], n * rank), b.reshape(n * rank, b.shape[-1]))


class RMSNorm(nn.Module):
    """x / rms(x) in float32, rounded before the learned scale as transformers does."""

    eps: float
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return wide.astype(self.dtype) * scale.astype(self.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation in float32 with the two-pass variance (E[x^2] - E[x]^2 loses digits)."""

    eps: float = 1e-6
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), self.param_dtype)
        wide = x.astype(jnp.float32)
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(self.dtype)
