"""Where the parameters of Qwen3-VL and of its adapters live on a (data, fsdp, tensor) mesh.

Decoder: the first product of a pair is cut over its outputs by `tensor` (whole heads, inner width),
the second over its inputs, so that one sum over `tensor` ends each half of a layer; the other side
is cut by `fsdp` and gathered where it is used. Vision tower: images are many and independent, so
they are cut over all axes and its parameters are cut over both fsdp and tensor and gathered; its
fused q/k/v kernel would not fall into heads. Norms, biases and the position table are small, and
copied.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lrm_jax.parallel import rules
from lrm_jax.parallel.placement import put
from lrm_jax.parallel.rules import Rule
from lrm_jax.qwen3_vl import names
from lrm_jax.qwen3_vl.config import Config
from lrm_jax.run.progress import note

_BOTH = ("fsdp", "tensor")

PARAMS: tuple[Rule, ...] = (
    (r"embed_tokens", ("tensor", "fsdp")),
    (r"lm_head/kernel", ("fsdp", "tensor")),
    (r"language_model/.*/(q|k|v|gate|up)_proj/kernel", ("fsdp", "tensor")),
    (r"language_model/.*/(o|down)_proj/kernel", ("tensor", "fsdp")),
    (r"language_model/.*/(q|k|v)_proj/bias", ("tensor",)),
    (r"language_model/.*/o_proj/bias", ()),
    (r"language_model/(.*/)?(\w*norm)/scale", ()),
    # The inner width of the largest tower, 4304, divides by 16 at most: the hidden side is cut.
    (r"visual/.*/(proj|mlp/linear_fc2)/kernel", (None, _BOTH)),
    (r"visual/.*kernel", (_BOTH, None)),
    (r"visual/.*(bias|scale|pos_embed)", ()),
)

# Factors a [in, r], b [r, out] follow the kernel they stand beside: where it is cut by tensor so is
# the factor's long side, and fsdp cuts the same side further (the rank is too small to cut).
LORA: tuple[Rule, ...] = (
    (r"language_model/.*/(q|k|v|gate|up)_proj/a", ("fsdp", None)),
    (r"language_model/.*/(q|k|v|gate|up)_proj/b", (None, ("tensor", "fsdp"))),
    (r"language_model/.*/(o|down)_proj/a", (("tensor", "fsdp"), None)),
    (r"language_model/.*/(o|down)_proj/b", (None, "fsdp")),
    (r"lm_head/a", ("fsdp", None)),
    (r"lm_head/b", (None, ("tensor", "fsdp"))),
    (r"visual/.*/a", (_BOTH, None)),
    (r"visual/.*/b", (None, _BOTH)),
    (r".*/(scale|dropout)", ()),
)


def homes(config: Config, mesh: Mesh) -> dict[str, Any]:
    """The sharding of every parameter, as `weights.read_params` takes them; what does not divide is
    copied."""
    tree: dict[str, Any] = {}
    for leaf in names.leaves(config):
        node = tree
        for key in leaf.path[:-1]:
            node = node.setdefault(key, {})
        node[leaf.path[-1]] = jax.ShapeDtypeStruct(leaf.tree_shape, np.float32)
    return _plan(tree, PARAMS, mesh)


def place_adapter(adapter: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """An adapter tree, also of stacked adapters, on its devices: factors beside the kernels that
    they belong to, replaced leaves where the base's lie."""
    placed = {}
    for part, own in (("lora", LORA), ("params", PARAMS)):
        if part in adapter:
            placed[part] = put(adapter[part], _plan(adapter[part], own, mesh))
    return placed


def _plan(tree: Any, own: tuple[Rule, ...], mesh: Mesh) -> Any:
    """The shardings; a line says what is copied to every device because it does not divide."""
    plan = rules.plan(tree, own, mesh, indivisible="replicate")
    for fallback in plan.fallbacks:
        note(f"sharding: {fallback}")
    return plan.shardings
