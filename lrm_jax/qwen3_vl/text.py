"""The decoder: grouped-query attention, DeepStack after its first layers, optional KV cache."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lrm_jax.parallel.mesh import ROW_AXES, constrain
from lrm_jax.qwen3_vl import rope
from lrm_jax.qwen3_vl.attention import Mask, dot_product_attention
from lrm_jax.qwen3_vl.config import Config, TextConfig
from lrm_jax.qwen3_vl.layers import Linear, RMSNorm
from lrm_jax.qwen3_vl.remat import rematerialised


@flax.struct.dataclass
class KVCache:
    """Keys and values of T slots, in the order they were written.

    unrolled: one (keys, values) for each unrolled layer, each [B, T, K, D].
    scanned: (keys, values) of the scanned layers, each [L, B, T, K, D]; None if there are none.
    valid: bool [B, T], slots that hold a real token.
    length: int32 [], slots written so far (padding included).
    """

    unrolled: tuple[tuple[jax.Array, jax.Array], ...]
    scanned: tuple[jax.Array, jax.Array] | None
    valid: jax.Array
    length: jax.Array


def num_unrolled(config: Config) -> int:
    """Layers that stand outside the scan: those that receive DeepStack features."""
    return min(config.num_deepstack, config.text_config.num_hidden_layers)


def empty_cache(config: Config, batch: int, slots: int, dtype=jnp.float32) -> KVCache:
    """A cache with nothing written."""
    text, first = config.text_config, num_unrolled(config)
    shape = (batch, slots, text.num_key_value_heads, text.head_dim)
    rest = text.num_hidden_layers - first

    def pair(shape):
        return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)

    return KVCache(
        unrolled=tuple(pair(shape) for _ in range(first)),
        scanned=pair((rest, *shape)) if rest else None,
        valid=jnp.zeros((batch, slots), bool),
        length=jnp.zeros((), jnp.int32),
    )


class TextAttention(nn.Module):
    config: TextConfig
    dtype: Any
    param_dtype: Any
    attention: str = "xla"

    @nn.compact
    def __call__(self, x, cache, rotation, mask, start, adapter_ids):
        c, kinds = self.config, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        # Backward, the three products' gradients of x stand next to each other in the sum and the
        # side paths' behind them: the compiler then adds up before it sums over `tensor`, once.
        side = x.astype(jnp.float32)

        def heads(number, name):
            linear = Linear(number * c.head_dim, use_bias=c.attention_bias, name=name, **kinds)
            return linear(x, adapter_ids, side).reshape(*x.shape[:2], number, c.head_dim)

        query = heads(c.num_attention_heads, "q_proj")
        key = heads(c.num_key_value_heads, "k_proj")
        value = heads(c.num_key_value_heads, "v_proj")
        query = rope.rotate(RMSNorm(c.rms_norm_eps, name="q_norm", **kinds)(query), *rotation)
        key = rope.rotate(RMSNorm(c.rms_norm_eps, name="k_norm", **kinds)(key), *rotation)
        if cache is not None:
            key = jax.lax.dynamic_update_slice_in_dim(
                cache[0], key.astype(cache[0].dtype), start, axis=1
            )
            value = jax.lax.dynamic_update_slice_in_dim(
                cache[1], value.astype(cache[1].dtype), start, axis=1
            )
            cache = (key, value)
        out = dot_product_attention(query, key, value, mask, implementation=self.attention)
        out = out.reshape(*x.shape[:2], c.num_attention_heads * c.head_dim)
        out = Linear(c.hidden_size, use_bias=c.attention_bias, name="o_proj", **kinds)(
            out, adapter_ids
        )
        return out, cache


class TextMLP(nn.Module):
    config: TextConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x, adapter_ids):
        c, kinds = self.config, dict(use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype)
        gate = Linear(c.intermediate_size, name="gate_proj", **kinds)(x, adapter_ids)
        up = Linear(c.intermediate_size, name="up_proj", **kinds)(x, adapter_ids)
        return Linear(c.hidden_size, name="down_proj", **kinds)(nn.silu(gate) * up, adapter_ids)


class DecoderLayer(nn.Module):
    config: TextConfig
    dtype: Any
    param_dtype: Any
    attention: str = "xla"

    @nn.compact
    def __call__(self, x, cache, rotation, mask, start, adapter_ids):
        c, kinds = self.config, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = constrain(x, ROW_AXES)
        y = RMSNorm(c.rms_norm_eps, name="input_layernorm", **kinds)(x)
        attention = TextAttention(c, attention=self.attention, name="self_attn", **kinds)
        y, cache = attention(y, cache, rotation, mask, start, adapter_ids)
        x = x + y
        y = RMSNorm(c.rms_norm_eps, name="post_attention_layernorm", **kinds)(x)
        return x + TextMLP(c, name="mlp", **kinds)(y, adapter_ids), cache


class TextModel(nn.Module):
    """`layers_0` ... receive DeepStack features and are unrolled; `layers` stacks the others."""

    config: Config
    dtype: Any
    param_dtype: Any
    remat: str
    attention: str = "xla"

    @nn.compact
    def __call__(
        self,
        embeds: jax.Array,
        positions: jax.Array,
        mask: jax.Array | Mask,
        additions: list[jax.Array],
        cache: KVCache | None = None,
        adapter_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """embeds [B, S, D], positions [3, B, S], mask a Mask or bool [B, S, T], additions of
        [B, S, D].

        Returns the normalised hidden states [B, S, D] and the cache with this run's keys and
        values.
        """
        text, kinds = self.config.text_config, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        rotation = rope.text_rotation(positions, text, self.dtype)
        start = None if cache is None else cache.length
        x, first = embeds, num_unrolled(self.config)
        # Few queries over a cache are bound by reading it, which no kernel here makes faster.
        attention = self.attention if cache is None else "xla"
        if attention == "xla" and isinstance(mask, Mask):
            mask = mask.dense(embeds.shape[1])  # once for all layers
        layers = dict(attention=attention, **kinds)
        layer = rematerialised(DecoderLayer, self.remat, scanned=False)
        unrolled = []
        for number in range(first):
            slots = None if cache is None else cache.unrolled[number]
            x, slots = layer(text, name=f"layers_{number}", **layers)(
                x, slots, rotation, mask, start, adapter_ids
            )
            unrolled.append(slots)
            if additions:
                x = x + additions[number]
        scanned = None if cache is None else cache.scanned
        rest = text.num_hidden_layers - first
        if rest:
            stack = nn.scan(
                rematerialised(DecoderLayer, self.remat, scanned=True),
                variable_axes={"params": 0, "lora": 0},
                split_rngs={"params": True, "lora": True},
                in_axes=(0, *(nn.broadcast,) * 4),
                length=rest,
            )(text, name="layers", **layers)
            x, scanned = stack(x, scanned, rotation, mask, start, adapter_ids)
        x = RMSNorm(text.rms_norm_eps, name="norm", **kinds)(x)
        if cache is not None:
            cache = cache.replace(unrolled=tuple(unrolled), scanned=scanned)
        return x, cache
