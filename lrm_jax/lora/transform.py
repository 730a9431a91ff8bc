"""LoRA as a transform over a parameter tree: parameters in, an adapter tree out.

An adapter tree is what it adds to the variables of the network:
  {"lora": factors, "params": replacements}
"lora" has at the path of each adapted linear map
  a float32 [.., in, r], b float32 [.., r, out], scale float32 [..], dropout float32 [..] (if any),
where .. is the layer axis of a scanned stack, or nothing. The map becomes x W + scale (x a) b.
"params" holds whole leaves in place of the base's (PEFT's modules_to_save); it is absent if there
are none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lrm_jax.lora.config import LoraConfig
from lrm_jax.lora.sites import Leaf, get, put, replaced, sites
from lrm_jax.run.errors import UserError

Tree = dict[str, Any]


def init(rng: jax.Array, params: Tree, config: LoraConfig, leaves: Sequence[Leaf]) -> Tree:
    """A fresh adapter: A uniform in +-1/sqrt(in), B zero, so that the network is as before.

    These are PEFT's initial values (`kaiming_uniform_` with a = sqrt(5)).

    Args:
      rng: a key.
      params: the base's parameters, of which `config.modules_to_save` are copied as float32.
      config: what to adapt.
      leaves: of `params`, with their names in the checkpoint (`qwen3_vl.leaves(config)`).

    Raises:
      UserError: `config` names modules that the model lacks, or for modules_to_save only some of
        the layers that are stacked in a leaf.
    """
    places = sites(config, leaves)
    sizes = [math.prod(site.tree_shapes()["a"]) for site in places]
    # One call for all: a generator for every leaf would take long to compile.
    numbers = jax.random.uniform(rng, (sum(sizes),), jnp.float32, -1.0, 1.0)
    if not isinstance(numbers, jax.core.Tracer):
        numbers = np.asarray(numbers)
    factors: Tree = {}
    at = 0
    for site, size in zip(places, sizes, strict=True):
        shapes = site.tree_shapes()
        a = numbers[at : at + size].reshape(shapes["a"]) * shapes["a"][-2] ** -0.5
        at += size
        # Columns beyond a layer's own rank are padding, and stay zero (see `sites`).
        own = np.arange(site.rank) < np.asarray(site.ranks)[:, None]
        a = a * (own[:, None, :] if site.leaf.stacked else own[0])
        put(factors, (*site.path, "a"), jnp.asarray(a, jnp.float32))
        put(factors, (*site.path, "b"), jnp.zeros(shapes["b"], jnp.float32))
        put(factors, (*site.path, "scale"), scales_of(site))
        if config.dropout:
            rate = jnp.full(shapes["scale"], config.dropout, jnp.float32)
            put(factors, (*site.path, "dropout"), rate)
    taken = replaced(config, leaves)
    whole: Tree = {}
    for leaf in {id(leaf): leaf for leaf, _ in taken.values()}.values():
        if any(name not in taken for name in leaf.names):
            where = "/".join(leaf.path)
            raise UserError(f"modules_to_save: it names only some layers of {where}")
        put(whole, leaf.path, jnp.array(get(params, leaf.path), jnp.float32))
    return {"lora": factors, "params": whole} if whole else {"lora": factors}


def scales_of(site: Any) -> jax.Array:
    """The leaf "scale" of a site: float32 [] or, of a stack of layers, [L]."""
    return jnp.asarray(site.scales if site.leaf.stacked else site.scales[0], jnp.float32)


def variables(params: Tree, adapter: Tree) -> Tree:
    """What `Qwen3VL.apply` takes: {"params": with the adapter's replacements, "lora": factors}.

    With a key "lora" among the `rngs` of `apply`, the side path drops inputs; without it
    the network is deterministic.
    """
    return {"params": overlaid(params, adapter.get("params", {})), "lora": adapter["lora"]}


def overlaid(params: Tree, whole: Tree) -> Tree:
    """`params` with the leaves of `whole` in place of its own; neither is changed."""
    out = dict(params)
    for key, value in whole.items():
        out[key] = overlaid(params[key], value) if isinstance(value, dict) else value
    return out


def merge(params: Tree, adapter: Tree) -> Tree:
    """Parameters with the adapter in them, in the dtypes of `params`: W + scale a b.

    The sum is float32 and rounded once; in bfloat16 this is not the same as the side path, which
    adds to a rounded x W.
    """
    whole = overlaid(params, adapter.get("params", {}))
    whole = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), whole, params)
    return _added(whole, adapter["lora"], 1.0)


def unmerge(params: Tree, adapter: Tree, base: Tree | None = None) -> Tree:
    """The inverse of `merge`, up to the rounding of W + scale a b in the dtype of `params`.

    Args:
      params: merged parameters.
      adapter: that was merged.
      base: the base's parameters, or the part of them that the adapter replaces; needed only where
        it replaces any.

    Raises:
      ValueError: the adapter replaces leaves and `base` is not given.
    """
    if whole := adapter.get("params"):
        if base is None:
            raise ValueError("the adapter replaced whole leaves: pass base to get them back")
        params = overlaid(params, _part(base, whole))
    return _added(params, adapter["lora"], -1.0)


def trainable(adapter: Tree) -> Tree:
    """True for leaves that training changes (a, b, replacements), False for scale and dropout."""

    def label(path, _):
        return path[0].key != "lora" or path[-1].key in ("a", "b")

    return jax.tree_util.tree_map_with_path(label, adapter)


def only_trainable(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optimizer` for an adapter tree: leaves that are not trainable stay as they are.

    (`optax.masked` alone would add their gradients to them.)
    """

    def labels(adapter):
        return jax.tree.map(lambda t: "train" if t else "keep", trainable(adapter))

    return optax.multi_transform({"train": optimizer, "keep": optax.set_to_zero()}, labels)


def num_trainable(config: LoraConfig, leaves: Sequence[Leaf]) -> int:
    """How many numbers training changes, padding not counted: PEFT's trainable parameters."""
    count = 0
    for site in sites(config, leaves):
        fan_in, fan_out = site.leaf.tree_shape[-2:]
        count += sum(site.ranks) * (fan_in + fan_out)
    return count + sum(math.prod(leaf.shape) for leaf, _ in replaced(config, leaves).values())


def factors_of(lora: Tree, path: tuple[str, ...] = ()):
    """(path, {"a": ..., "b": ..., ...}) of every adapted linear map of a "lora" collection."""
    if "a" in lora and not isinstance(lora["a"], dict):
        yield path, lora
        return
    for key, value in lora.items():
        yield from factors_of(value, (*path, key))


def _added(params: Tree, lora: Tree, sign: float) -> Tree:
    out = jax.tree.map(lambda x: x, params)
    for path, pair in factors_of(lora):
        kernel = get(params, (*path, "kernel"))
        if kernel is None:
            raise ValueError(f"the parameters have no kernel at {'/'.join(path)}")
        scale = sign * jnp.broadcast_to(jnp.float32(pair.get("scale", 1.0)), kernel.shape[:-2])
        put(out, (*path, "kernel"), _sum(kernel, pair["a"], pair["b"], scale))
    return out


@jax.jit
def _sum(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
    """W + scale a b; of a stack one layer at a time, whose float32 copy is all that is needed."""
    if kernel.ndim > 2:
        return jax.lax.map(lambda parts: _sum(*parts), (kernel, a, b, scale))
    delta = scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    return (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)


def _part(tree: Tree, like: Tree) -> Tree:
    return {k: _part(tree[k], v) if isinstance(v, dict) else tree[k] for k, v in like.items()}
