"""Logits and greedy generation for a packed batch, as two jitted functions of plain trees."""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lrm_jax.qwen3_vl.batching import Batch
from lrm_jax.qwen3_vl.model import Qwen3VL
from lrm_jax.qwen3_vl.text import empty_cache


@flax.struct.dataclass
class Towers:
    """Vision towers of which each row sees with one.

    trees: parameters in place of params["visual"], one tree for each tower. ids: int32 [B].
    """

    trees: tuple[Any, ...]
    ids: Any


def _variables(params: Any, lora: Any) -> dict[str, Any]:
    return {"params": params} if lora is None else {"params": params, "lora": lora}


def _features(
    model: Qwen3VL,
    variables: Any,
    batch: Batch,
    adapter_ids: jax.Array | None,
    towers: Towers | None,
):
    """The images' features, each through the tower of the row that it stands in."""
    if batch.vision is None:
        return None
    ids = None if adapter_ids is None else jnp.asarray(adapter_ids)[batch.owner]

    def encode(visual):
        own = {**variables, "params": {**variables["params"], "visual": visual}}
        return model.apply(own, batch.vision, ids, method="encode")

    if towers is None:
        return encode(variables["params"]["visual"])
    which = jnp.asarray(towers.ids)[batch.owner][:, None, None]
    features = encode(towers.trees[0])
    for number, tree in enumerate(towers.trees[1:], 1):
        features = jax.tree.map(
            lambda new, old, number=number: jnp.where(which == number, new, old),
            encode(tree),
            features,
        )
    return features


@functools.partial(jax.jit, static_argnames="model")
def logits(
    model: Qwen3VL,
    params: Any,
    lora: Any,
    batch: Batch,
    adapter_ids: jax.Array | None,
    towers: Towers | None = None,
) -> jax.Array:
    """float32 [B, S, V]: the next-token logits at every place of the packed batch.

    lora: the "lora" collection, or None. adapter_ids: int32 [B] with stacked adapters. towers:
    where rows have vision towers of their own.
    """
    variables = _variables(params, lora)
    features = _features(model, variables, batch, adapter_ids, towers)
    hidden = model.apply(
        variables, batch.tokens, batch.positions, batch.valid, batch.visual_index, features,
        adapter_ids, method="hidden",
    )  # fmt: skip
    return model.apply(variables, hidden, adapter_ids, method="logits")


@functools.partial(jax.jit, static_argnames=("model", "slots", "stops", "pad"))
def greedy(
    model: Qwen3VL,
    params: Any,
    lora: Any,
    batch: Batch,
    adapter_ids: jax.Array | None,
    limit: jax.Array,
    towers: Towers | None = None,
    *,
    slots: int,
    stops: tuple[int, ...],
    pad: int,
) -> tuple[jax.Array, jax.Array]:
    """Tokens of the highest logit one after another, until all rows have stopped or `limit` is met.

    Args:
      limit: int32 [], at most `slots`.
      towers: where rows have vision towers of their own.
      slots: room for new tokens in the cache.
      stops: tokens that end a row (themselves included in its output); `pad` fills it from there.

    Returns:
      tokens int32 [B, slots] and how many of the slots are used, int32 [].
    """
    variables = _variables(params, lora)
    rows, length = batch.tokens.shape
    cache = empty_cache(model.config, rows, length + slots, model.dtype)
    features = _features(model, variables, batch, adapter_ids, towers)
    hidden, cache = model.apply(
        variables, batch.tokens, batch.positions, batch.valid, batch.visual_index, features,
        cache, adapter_ids, method="extend",
    )  # fmt: skip

    def best(states):
        scores = model.apply(variables, states, adapter_ids, method="logits")
        return jnp.argmax(scores, -1).astype(jnp.int32)

    def advance(state):
        step, token, done, out, cache = state
        token = jnp.where(done, pad, token)
        out = out.at[:, step].set(token)
        done = done | jnp.isin(token, jnp.asarray(stops, jnp.int32))
        positions = jnp.broadcast_to((batch.next_position + step)[None, :, None], (3, rows, 1))
        hidden, cache = model.apply(
            variables, token[:, None], positions, batch.real[:, None],
            jnp.full((rows, 1), -1, jnp.int32), None, cache, adapter_ids, method="extend",
        )  # fmt: skip
        return step + 1, best(hidden[:, 0]), done, out, cache

    state = (
        jnp.zeros((), jnp.int32),
        best(hidden[jnp.arange(rows), batch.last]),
        ~jnp.asarray(batch.real),
        jnp.full((rows, slots), pad, jnp.int32),
        cache,
    )
    state = jax.lax.while_loop(lambda s: (s[0] < limit) & ~s[2].all(), advance, state)
    return state[3], state[0]
