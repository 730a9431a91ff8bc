"""What a judgement costs: matrix-product FLOPs and activation bytes, counted from the
configuration.

One multiply-add is two FLOPs. Norms, softmax and activations are left out (a few per cent).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lrm_jax.qwen3_vl.config import Config

TRAIN = 3  # forward, gradient of the activations, gradient of the weights


def image_flops(config: Config, patches: int) -> int:
    """FLOPs of the vision tower on one image of `patches` patches, DeepStack and final merger
    included."""
    v = config.vision_config
    h = v.hidden_size
    tower = patches * (v.patch_features * h + v.depth * (4 * h * h + 2 * h * v.intermediate_size))
    attention = v.depth * 2 * patches * patches * h
    joined = h * v.merge_unit
    merger = patches // v.merge_unit * (joined * joined + joined * v.out_hidden_size)
    return 2 * (tower + attention + merger * (1 + config.num_deepstack))


def row_flops(config: Config, tokens: int, reads: int) -> int:
    """FLOPs of the decoder on one row of `tokens` tokens, logits at `reads` places."""
    t = config.text_config
    query, key = t.num_attention_heads * t.head_dim, t.num_key_value_heads * t.head_dim
    layer = t.hidden_size * (2 * query + 2 * key + 3 * t.intermediate_size)
    attention = 2 * tokens * query
    return 2 * (
        tokens * t.num_hidden_layers * (layer + attention) + reads * t.hidden_size * t.vocab_size
    )


def image_bytes(config: Config, patches: int, itemsize: int) -> int:
    """Bytes alive at once while one image goes through a block of the vision tower (an
    estimate)."""
    v = config.vision_config
    wide = 6 * v.hidden_size + v.intermediate_size + v.patch_features
    return patches * (wide * itemsize + v.num_heads * patches * 8)


def feature_bytes(config: Config, patches: int, itemsize: int) -> int:
    """Bytes of one image's features, DeepStack levels included."""
    return (
        patches
        // config.vision_config.merge_unit
        * config.text_config.hidden_size
        * itemsize
        * (1 + config.num_deepstack)
    )


def row_bytes(config: Config, tokens: int, reads: int, itemsize: int) -> int:
    """Bytes alive at once while one row goes through a decoder layer (an estimate)."""
    t = config.text_config
    wide = (6 + config.num_deepstack) * t.hidden_size + 3 * t.intermediate_size
    wide += (t.num_attention_heads + 2 * t.num_key_value_heads) * t.head_dim * 2
    return (
        tokens * (wide * itemsize + t.num_attention_heads * tokens * 8) + reads * t.vocab_size * 8
    )


def micro_batches(count: int, size: int, multiple: int = 1) -> jax.Array:
    """Indices 0 ... count-1 in equal groups of at most `size`, int32 [groups, <= size]; the last
    one is repeated. multiple: groups are rounded up to a multiple of it."""
    groups = -(-count // max(1, min(size, count)))
    each = -(-count // groups)
    each += -each % multiple
    groups = -(-count // each)
    return jnp.minimum(jnp.arange(groups * each), count - 1).reshape(groups, each)
