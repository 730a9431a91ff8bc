"""The vision tower: every image attends to itself; DeepStack features are tapped on the way."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lrm_jax.parallel.mesh import AXES, constrain
from lrm_jax.qwen3_vl import rope
from lrm_jax.qwen3_vl.attention import Mask, dot_product_attention
from lrm_jax.qwen3_vl.config import VisionConfig
from lrm_jax.qwen3_vl.inputs import VisionFeatures, VisionInputs
from lrm_jax.qwen3_vl.layers import LayerNorm, Linear
from lrm_jax.qwen3_vl.remat import rematerialised


class VisionAttention(nn.Module):
    config: VisionConfig
    dtype: Any
    param_dtype: Any
    attention: str = "xla"

    @nn.compact
    def __call__(self, x, rotation, mask, adapter_ids):
        c, kinds = self.config, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        qkv = Linear(3 * c.hidden_size, name="qkv", **kinds)(x, adapter_ids)
        query, key, value = jnp.split(qkv, 3, axis=-1)
        heads = (*x.shape[:2], c.num_heads, c.head_dim)
        query, key = query.reshape(heads), key.reshape(heads)
        # The rotation is float32, so in bfloat16 this turns in float32 and rounds once.
        query = rope.rotate(query, *rotation).astype(self.dtype)
        key = rope.rotate(key, *rotation).astype(self.dtype)
        out = dot_product_attention(
            query, key, value.reshape(heads), mask, implementation=self.attention, rows=AXES
        )
        return Linear(c.hidden_size, name="proj", **kinds)(out.reshape(x.shape), adapter_ids)


class VisionMLP(nn.Module):
    config: VisionConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x, adapter_ids):
        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = Linear(self.config.intermediate_size, name="linear_fc1", **kinds)(x, adapter_ids)
        x = nn.gelu(x, approximate=True)
        return Linear(self.config.hidden_size, name="linear_fc2", **kinds)(x, adapter_ids)


class VisionBlock(nn.Module):
    config: VisionConfig
    dtype: Any
    param_dtype: Any
    attention: str = "xla"

    @nn.compact
    def __call__(self, x, rotation, mask, adapter_ids):
        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = constrain(x, AXES)
        y = LayerNorm(name="norm1", **kinds)(x)
        attention = VisionAttention(self.config, attention=self.attention, name="attn", **kinds)
        x = x + attention(y, rotation, mask, adapter_ids)
        y = LayerNorm(name="norm2", **kinds)(x)
        x = x + VisionMLP(self.config, name="mlp", **kinds)(y, adapter_ids)
        return x, None


class PatchMerger(nn.Module):
    """[N, P, d] to [N, P/m^2, D]: normalise, join each merge block, MLP with the exact (erf) GELU.

    The final merger normalises single patches, the DeepStack mergers whole blocks
    (`norm_after_join`).
    """

    config: VisionConfig
    dtype: Any
    param_dtype: Any
    norm_after_join: bool

    @nn.compact
    def __call__(self, x, adapter_ids):
        c, kinds = self.config, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        norm = LayerNorm(name="norm", **kinds)
        joined = (x.shape[0], x.shape[1] // c.merge_unit, x.shape[2] * c.merge_unit)
        x = norm(x.reshape(joined)) if self.norm_after_join else norm(x).reshape(joined)
        x = Linear(joined[-1], name="linear_fc1", **kinds)(x, adapter_ids)
        x = nn.gelu(x, approximate=False)
        return Linear(c.out_hidden_size, name="linear_fc2", **kinds)(x, adapter_ids)


class VisionTower(nn.Module):
    """Blocks are scanned between the taps: `blocks_<first>` stacks blocks first, first+1, ..."""

    config: VisionConfig
    dtype: Any
    param_dtype: Any
    remat: str
    attention: str = "xla"

    @nn.compact
    def __call__(
        self, inputs: VisionInputs, adapter_ids: jax.Array | None = None
    ) -> VisionFeatures:
        c, tables, kinds = (
            self.config,
            inputs.tables,
            dict(dtype=self.dtype, param_dtype=self.param_dtype),
        )
        x = Linear(c.hidden_size, name="patch_embed", **kinds)(inputs.patches, adapter_ids)
        table = self.param(
            "pos_embed",
            nn.initializers.normal(c.initializer_range),
            (c.num_position_embeddings, c.hidden_size),
            self.param_dtype,
        )
        corners = jnp.take(table, jnp.asarray(tables.pos_index), axis=0, mode="clip")
        place = jnp.einsum("npkd,npk->npd", corners.astype(jnp.float32), tables.pos_weight)
        x = x + place.astype(self.dtype)
        rotation = rope.vision_rotation(jnp.asarray(tables.place), c)
        mask = None if tables.valid is None else Mask(valid=jnp.asarray(tables.valid))

        block = rematerialised(VisionBlock, self.remat, scanned=True)
        taps = {}
        for first, length in segments(c):
            stack = nn.scan(
                block,
                variable_axes={"params": 0, "lora": 0},
                split_rngs={"params": True, "lora": True},
                in_axes=nn.broadcast,
                length=length,
            )(c, attention=self.attention, name=f"blocks_{first}", **kinds)
            x, _ = stack(x, rotation, mask, adapter_ids)
            last = first + length - 1
            if last in c.deepstack_visual_indexes:
                # The merger goes by the tap's place in the list, the level by the order of the
                # blocks.
                number = c.deepstack_visual_indexes.index(last)
                merger = PatchMerger(
                    c, norm_after_join=True, name=f"deepstack_merger_{number}", **kinds
                )
                taps[last] = merger(x, adapter_ids)
        embeds = PatchMerger(c, norm_after_join=False, name="merger", **kinds)(x, adapter_ids)
        levels = [taps[i] for i in sorted(taps)]
        stacked = jnp.stack(levels) if levels else jnp.zeros((0, *embeds.shape), embeds.dtype)
        return VisionFeatures(embeds=embeds, deepstack=stacked)


def segments(config: VisionConfig) -> list[tuple[int, int]]:
    """(first block, number of blocks) of each run of blocks that ends at a tap or at the top."""
    ends = sorted({*config.deepstack_visual_indexes, config.depth - 1})
    starts = [0, *(end + 1 for end in ends[:-1])]
    return [(start, end + 1 - start) for start, end in zip(starts, ends, strict=True)]
