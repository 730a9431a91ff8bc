"""Closed-answer scoring: one forward gives the log-probability of every answer a head may give.

The model is made to write the scaffold and would then write an answer token by token. The
probability of an answer is the product over its tokens, each under the full vocabulary; all of them
are read from one forward over the token tree (`lrm_jax.rewards.layout`). Normalised over the answer
set this is a distribution: what sampling would give if every text outside the set were thrown away.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.qwen3_vl import Mask, Qwen3VL, VisionFeatures
from lrm_jax.rewards.layout import AnswerTable, Tables


@flax.struct.dataclass
class Distribution:
    """What a head answered: probability float32 [..., A] over its answers; valid bool [...].

    An entry is invalid if the network produced a number that is not finite for it; its
    probabilities are NaN.
    """

    probability: jax.Array
    valid: jax.Array

    def expectation(self, values: Any) -> jax.Array:
        """The mean of `values` [A] under the distribution, float32 [...]; NaN where invalid."""
        return jnp.sum(self.probability * jnp.asarray(values, jnp.float32), -1)

    @property
    def entropy(self) -> jax.Array:
        """In nats, float32 [...], between 0 and log A; NaN where invalid."""
        p = self.probability
        return -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), p), -1)


def read_log_probabilities(
    model: Qwen3VL,
    variables: Any,
    tables: Tables,
    features: VisionFeatures,
    sentence: jax.Array,
    frames: jax.Array,
    adapter_ids: jax.Array | None = None,
    rngs: dict[str, jax.Array] | None = None,
) -> jax.Array:
    """Log-softmax over the vocabulary at each place that a layout reads.

    Args:
      model: the network. variables: {"params": ...} and "lora" where there are adapters.
      tables: of the layout, S sentences, N tokens, R reads.
      features: of F encoded images, or each row's own (`VisionFeatures.by_row`).
      sentence: int32 [B], which sentence each row is about.
      frames: int32 [B, slots], which of the F images (or of its row's) stands in each slot.
      adapter_ids: int32 [B] where adapters are stacked. rngs: for dropout in training.
    Returns:
      float32 [B, R, V].
    """
    per_image = features.embeds.shape[-2]
    slot, offset = jnp.asarray(tables.slot), jnp.asarray(tables.offset)
    visual = jnp.where(
        slot >= 0, jnp.take(frames, jnp.maximum(slot, 0), axis=1) * per_image + offset, -1
    )
    valid = jnp.take(jnp.asarray(tables.valid), sentence, axis=0)
    states = model.apply(
        variables,
        jnp.take(jnp.asarray(tables.tokens), sentence, axis=0),
        jnp.take(jnp.asarray(tables.positions), sentence, axis=1),
        Mask(valid=valid, pattern=tables.attention),
        visual,
        features,
        adapter_ids,
        method="hidden",
        rngs=rngs,
    )
    states = jnp.take(states, jnp.asarray(tables.reads), axis=1)
    logits = model.apply(variables, states, adapter_ids, method="logits", rngs=rngs)
    return jax.nn.log_softmax(logits, axis=-1)


def answer_log_probabilities(reads: jax.Array, table: AnswerTable) -> jax.Array:
    """Log-probability of each whole answer, float32 [..., A], from reads [..., R, V]."""
    parts = reads[..., table.read, table.token]  # [..., A, L]
    if table.used.all():
        return jnp.sum(parts, -1)
    return jnp.sum(jnp.where(table.used, parts, 0.0), -1)


def normalise(log_probabilities: jax.Array) -> Distribution:
    """The distribution over the answer set from log-probabilities [..., A] of whole answers."""
    valid = jnp.all(jnp.isfinite(log_probabilities), -1)
    safe = jnp.where(valid[..., None], log_probabilities, 0.0)
    return Distribution(jnp.where(valid[..., None], jax.nn.softmax(safe, -1), jnp.nan), valid)


def swap_average(first: Distribution, second: Distribution) -> Distribution:
    """Averages a two-answer head over both orders of its images; `second` saw them swapped.

    Exactly antisymmetric: exchanging the arguments reverses the result, to the last bit. This
    removes a preference for a place (LRM's prompt order bias; `lrm_method.md` 8.1).
    """
    valid = first.valid & second.valid
    # (a, b) and (b, a) both compute these two sums, in which addition commutes.
    newer = (first.probability[..., 1] + second.probability[..., 0]) / 2
    older = (first.probability[..., 0] + second.probability[..., 1]) / 2
    both = jnp.stack([older, newer], -1)
    return Distribution(jnp.where(valid[..., None], both, jnp.nan), valid)


def answer_arrays(tables: tuple[AnswerTable, ...]) -> AnswerTable:
    """Tables of several queries of one head stacked on a leading axis, [Q, A, L]."""
    width = max(t.read.shape[1] for t in tables)

    def pad(x):
        return np.pad(x, ((0, 0), (0, width - x.shape[1])))

    return AnswerTable(
        *(np.stack([pad(getattr(t, n)) for t in tables]) for n in ("read", "token", "used"))
    )
