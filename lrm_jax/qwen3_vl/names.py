"""Which tensor of a checkpoint is which leaf of the parameter tree.

The tree keeps the checkpoint's names, except that kernels are [in, out], scanned layers are stacked
on a leading axis (`visual/blocks_<first>`, `language_model/layers`), and the token table stands at
the top.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from lrm_jax.qwen3_vl.config import Config, TextConfig, VisionConfig
from lrm_jax.qwen3_vl.text import num_unrolled
from lrm_jax.qwen3_vl.vision import segments

EMBEDDINGS = "model.language_model.embed_tokens.weight"
HEAD = "lm_head.weight"

# Names moved between versions of transformers, and adapter files keep those of their time:
# (beginning there, beginning in a checkpoint as it stands on the hub); the first that fits holds.
SPELLINGS = (
    ("model.visual.", "model.visual."),
    ("model.language_model.model.", "model.language_model."),
    ("model.language_model.", "model.language_model."),
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head", "lm_head"),
    ("language_model.", "model.language_model."),
    ("visual.", "model.visual."),
    ("model.", "model.language_model."),
)

Shapes = dict[str, dict[str, tuple[int, ...]]]  # module -> leaf -> shape of the file's tensor


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf of the tree.

    path: its keys in the tree.
    names: its tensors in the checkpoint; several, if `stacked`, along the leading axis.
    shape: of one tensor in the file. A kernel is that tensor as a matrix [out, in], transposed.
    """

    path: tuple[str, ...]
    names: tuple[str, ...]
    shape: tuple[int, ...]
    stacked: bool = False

    @property
    def is_kernel(self) -> bool:
        return self.path[-1] == "kernel"

    def from_file(self, tensor: np.ndarray) -> np.ndarray:
        return tensor.reshape(tensor.shape[0], -1).T if self.is_kernel else tensor

    def to_file(self, array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array.T if self.is_kernel else array).reshape(self.shape)

    @property
    def tree_shape(self) -> tuple[int, ...]:
        shape = self.shape
        if self.is_kernel:
            shape = (int(np.prod(shape[1:])), shape[0])
        return (len(self.names), *shape) if self.stacked else shape


def leaves(config: Config) -> list[Leaf]:
    """Every leaf of the parameter tree of a model with this configuration."""
    return list(_leaves(config))


def _leaves(config: Config) -> Iterator[Leaf]:
    vision, text = config.vision_config, config.text_config

    yield from _modules("visual", ["model.visual"], _vision_ends(vision), stacked=False)
    shape = (vision.num_position_embeddings, vision.hidden_size)
    yield Leaf(("visual", "pos_embed"), ("model.visual.pos_embed.weight",), shape)
    for first, length in segments(vision):
        names = [f"model.visual.blocks.{i}" for i in range(first, first + length)]
        yield from _modules(f"visual/blocks_{first}", names, _vision_block(vision), stacked=True)

    here, first = "model.language_model.layers", num_unrolled(config)
    for i in range(first):
        yield from _modules(
            f"language_model/layers_{i}", [f"{here}.{i}"], _decoder_layer(text), stacked=False
        )
    if text.num_hidden_layers > first:
        names = [f"{here}.{i}" for i in range(first, text.num_hidden_layers)]
        yield from _modules("language_model/layers", names, _decoder_layer(text), stacked=True)
    norm = {"norm": {"scale": (text.hidden_size,)}}
    yield from _modules("language_model", ["model.language_model"], norm, stacked=False)

    yield Leaf(("embed_tokens",), (EMBEDDINGS,), (text.vocab_size, text.hidden_size))
    if not config.tie_word_embeddings:
        yield Leaf(("lm_head", "kernel"), (HEAD,), (text.vocab_size, text.hidden_size))


def _modules(path: str, places: list[str], shapes: Shapes, stacked: bool) -> Iterator[Leaf]:
    for module, sizes in shapes.items():
        # The only module whose own name differs: a list in the checkpoint, numbered names here.
        theirs = module.replace("deepstack_merger_", "deepstack_merger_list.").replace("/", ".")
        theirs = theirs.replace("patch_embed", "patch_embed.proj")
        for leaf, shape in sizes.items():
            suffix = "bias" if leaf == "bias" else "weight"
            names = tuple(f"{place}.{theirs}.{suffix}" for place in places)
            yield Leaf((*path.split("/"), *module.split("/"), leaf), names, shape, stacked)


def _linear(fan_in: int, fan_out: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {"kernel": (fan_out, fan_in), **({"bias": (fan_out,)} if bias else {})}


def _layer_norm(size: int) -> dict[str, tuple[int, ...]]:
    return {"scale": (size,), "bias": (size,)}


def _vision_ends(c: VisionConfig) -> Shapes:
    width, joined = c.hidden_size, c.hidden_size * c.merge_unit
    patch = (c.in_channels, c.temporal_patch_size, c.patch_size, c.patch_size)
    shapes: Shapes = {"patch_embed": {"kernel": (width, *patch), "bias": (width,)}}
    mergers = [("merger", width)]
    mergers += [(f"deepstack_merger_{k}", joined) for k in range(len(c.deepstack_visual_indexes))]
    for name, norm in mergers:
        shapes[f"{name}/norm"] = _layer_norm(norm)
        shapes[f"{name}/linear_fc1"] = _linear(joined, joined)
        shapes[f"{name}/linear_fc2"] = _linear(joined, c.out_hidden_size)
    return shapes


def _vision_block(c: VisionConfig) -> Shapes:
    width, inner = c.hidden_size, c.intermediate_size
    return {
        "norm1": _layer_norm(width),
        "norm2": _layer_norm(width),
        "attn/qkv": _linear(width, 3 * width),
        "attn/proj": _linear(width, width),
        "mlp/linear_fc1": _linear(width, inner),
        "mlp/linear_fc2": _linear(inner, width),
    }


def _decoder_layer(c: TextConfig) -> Shapes:
    width, inner, bias = c.hidden_size, c.intermediate_size, c.attention_bias
    query, shared = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    return {
        "input_layernorm": {"scale": (width,)},
        "post_attention_layernorm": {"scale": (width,)},
        "self_attn/q_norm": {"scale": (c.head_dim,)},
        "self_attn/k_norm": {"scale": (c.head_dim,)},
        "self_attn/q_proj": _linear(width, query, bias),
        "self_attn/k_proj": _linear(width, shared, bias),
        "self_attn/v_proj": _linear(width, shared, bias),
        "self_attn/o_proj": _linear(query, width, bias),
        "mlp/gate_proj": _linear(width, inner, bias=False),
        "mlp/up_proj": _linear(width, inner, bias=False),
        "mlp/down_proj": _linear(inner, width, bias=False),
    }
