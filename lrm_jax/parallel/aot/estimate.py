"""Hand calculation for the programs: FLOPs, bytes through HBM, bytes between chips.

The compiler's own FLOP count takes a loop's body once, so FLOPs come from the configuration. The
bytes between chips follow from the sharding rules alone; beside what the compiled program shows
they tell whether the compiler did what the rules intend.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import jax
from jax.sharding import Mesh

from lrm_jax.parallel.aot.programs import READS, TARGETS, Program, Shape
from lrm_jax.parallel.rules import path_name
from lrm_jax.qwen3_vl import Config, grid_of, names
from lrm_jax.rewards import cost


def flops(name: str, config: Config, shape: Shape, rank: int, remat: str) -> tuple[float, float]:
    """(FLOPs the model calls for, FLOPs that run) of one step over all rows.

    A base that is frozen takes no gradient: backward through the decoder costs one forward more for
    the activations, attention twice its forward; the vision tower runs forward only. Full
    rematerialisation runs the decoder's layers once more.
    """
    _, height, width = grid_of(config, shape.side, shape.side)
    images = float(shape.rows * shape.images * cost.image_flops(config, height * width))
    text = config.text_config
    forward = float(shape.rows * cost.row_flops(config, shape.tokens, READS))
    logits = 2.0 * shape.rows * READS * text.hidden_size * text.vocab_size
    attention = 4.0 * shape.rows * shape.tokens**2
    attention *= text.num_hidden_layers * text.num_attention_heads * text.head_dim
    factors = factor_flops(config, shape.rows * shape.tokens, rank)
    if name == "score":
        total = images + forward + factors
        return total, total
    model = images + 2 * forward + attention + 3 * factors
    again = {"none": 0.0, "dots": attention, "full": forward - logits + factors}[remat]
    return model, model + again


def factor_flops(config: Config, tokens: float, rank: int) -> float:
    """FLOPs of the side paths of one adapter over that many tokens, forward."""
    widths = sum(
        sum(leaf.tree_shape[-2:]) * len(leaf.names)
        for leaf in names.leaves(config)
        if leaf.path[0] == "language_model" and leaf.is_kernel and leaf.path[-2] in TARGETS
    )
    return 2.0 * tokens * rank * widths


def collective_bytes(
    name: str, program: Program, config: Config, shape: Shape, mesh: Mesh, remat: str = "full"
) -> dict[str, float]:
    """Bytes that one chip receives in one step, by what they are.

    Gathers: a parameter cut n ways arrives as (n-1)/n of itself, once for each pass that uses it:
    forward, and in training once more backward (the recomputed forward shares it). Sums of factor
    gradients: (n-1)/n of the factor scattered over fsdp, twice that over data. With tensor > 1 the
    features of the rows' images come from where those were encoded, the rows' embeddings are summed
    over the parts of the vocabulary, and every half layer ends in a sum of the rows' activations,
    forward and backward; a layer that is computed again needs the first half's sum again.
    """
    train = name == "lora_train"
    found = dict.fromkeys(
        (
            "decoder gathers",
            "vision gathers",
            "output layer gathers",
            "factor gathers",
            "factor gradients",
            "image features",
            "embedding sum",
            "tensor sums",
        ),
        0.0,
    )
    once = parameter_gathers(program.base, config, mesh)
    found["vision gathers"] = once["vision"]
    found["decoder gathers"] = once["decoder"] * (2 if train else 1)
    found["output layer gathers"] = once["output layer"]
    for _, leaf in _leaves(program.adapters):
        gathered = _gathered(leaf, mesh, ("fsdp",))
        found["factor gathers"] += gathered * (2 if train else 1)
        if train:
            copies = mesh.shape["data"]
            found["factor gradients"] += gathered + 2 * _own(leaf) * (copies - 1) / copies
    here = shape.rows // (mesh.shape["data"] * mesh.shape["fsdp"])
    _, height, width = grid_of(config, shape.side, shape.side)
    shared = between_tensor(
        config, mesh, images=here * shape.images, patches=height * width, tokens=here * shape.tokens
    )
    found |= shared
    if train:
        found["tensor sums"] *= 2.5 if remat == "full" else 2
    return found


def between_tensor(
    config: Config, mesh: Mesh, *, images: float, patches: int, tokens: float
) -> dict[str, float]:
    """Bytes that one chip receives from its neighbours along `tensor`, forward: features of its
    rows' `images`, the embeddings of its rows' `tokens` (the table is cut over the vocabulary), and
    two sums of activations a layer."""
    tensor, width = mesh.shape["tensor"], config.text_config.hidden_size
    merged = patches // config.vision_config.merge_unit
    features = images * merged * width * 2 * (1 + config.num_deepstack)
    away = (tensor - 1) / tensor
    one = 2 * tokens * width * 2 * away  # a sum that all get: scattered, then gathered
    return {
        "image features": features * away,
        "embedding sum": one,
        "tensor sums": 2 * config.text_config.num_hidden_layers * one,
    }


def gathers(tree: Any, mesh: Mesh) -> float:
    """Bytes that one chip receives when every leaf becomes whole along fsdp, once."""
    return sum(_gathered(leaf, mesh, ("fsdp",)) for _, leaf in _leaves(tree))


def parameter_gathers(base: Any, config: Config, mesh: Mesh) -> dict[str, float]:
    """Bytes that one chip receives when each parameter becomes whole where it is used, once: of the
    "vision" tower, the "decoder" and the "output layer"."""
    found = dict.fromkeys(("vision", "decoder", "output layer"), 0.0)
    for path, leaf in _leaves(base):
        if path.startswith("visual/"):
            found["vision"] += _gathered(leaf, mesh, ("fsdp", "tensor"))
        elif path.startswith("language_model/"):
            found["decoder"] += _gathered(leaf, mesh, ("fsdp",))
        elif path.startswith("lm_head/") or config.tie_word_embeddings:
            found["output layer"] += _gathered(leaf, mesh, ("fsdp",))
    return found


def hbm_bytes(
    name: str, program: Program, config: Config, shape: Shape, mesh: Mesh, held: float
) -> float:
    """Bytes through one chip's HBM, at least: `held` (arguments and results) once, every gathered
    parameter written and read in each pass, each layer's saved input written and read."""
    train = name == "lora_train"
    whole = whole_bytes(program.base, mesh)
    passes = whole["visual"] + whole["rest"] * (2 if train else 1)
    here = shape.rows // (mesh.shape["data"] * mesh.shape["fsdp"])
    text = config.text_config
    saved = here * shape.tokens * text.hidden_size * 2 * text.num_hidden_layers if train else 0
    return float(held + 2 * passes + 2 * saved)


def whole_bytes(base: Any, mesh: Mesh) -> dict[str, float]:
    """Bytes of the parameters of the "visual" tower, and of the "rest" but the embedding, as a chip
    uses them."""
    found = {"visual": 0.0, "rest": 0.0}
    for path, leaf in _leaves(base):
        if path != "embed_tokens":
            found["visual" if path.startswith("visual/") else "rest"] += _whole(leaf, mesh)
    return found


def _leaves(tree: Any) -> Iterable[tuple[str, Any]]:
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _own(leaf: Any) -> float:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _axes(leaf: Any) -> set[str]:
    return {a for e in leaf.sharding.spec if e for a in ((e,) if isinstance(e, str) else e)}


def _gathered(leaf: Any, mesh: Mesh, over: tuple[str, ...]) -> float:
    """Bytes that arrive when a shard of the leaf becomes whole along the mesh axes `over`."""
    parts = math.prod(mesh.shape[a] for a in over if a in _axes(leaf))
    return _own(leaf) * (parts - 1)


def _whole(leaf: Any, mesh: Mesh) -> float:
    over = ("fsdp", "tensor") if leaf.sharding.spec[-2:-1] == (("fsdp", "tensor"),) else ("fsdp",)
    return _own(leaf) + _gathered(leaf, mesh, over)
