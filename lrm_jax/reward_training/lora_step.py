"""One optimiser step of LoRA adapters over a frozen base, for one closed question.

The base is an argument that is neither changed nor differentiated, so its gradient is never formed;
adapters and their optimiser are float32 whatever the base is. Pure functions of plain trees:
sharding is decided by where the arguments lie (`lrm_jax.qwen3_vl.sharding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from lrm_jax.qwen3_vl import Qwen3VL, VisionInputs, fixed_grid, patchify
from lrm_jax.reward_training import objective
from lrm_jax.reward_training.step import finite_update
from lrm_jax.rewards import scoring
from lrm_jax.rewards.layout import AnswerTable, Tables


@flax.struct.dataclass
class AdapterState:
    """What a step changes: factors {"a", "b"} at the paths of their kernels, optimiser state, steps
    done (int32 [])."""

    adapters: Any
    optimiser: Any
    step: jax.Array


@flax.struct.dataclass
class Rows:
    """B questions: frames uint8 [B, K, H, W, 3], the K images of each in the order of the layout's
    slots; sentence int32 [B], which of the layout's; labels float32 [B], NaN for none."""

    frames: Any
    sentence: Any
    labels: Any


def with_scale(adapters: Any, scale: float) -> Any:
    """The "lora" collection: `scale` beside every pair of factors, one for each stacked layer."""
    if "a" in adapters:
        return {**adapters, "scale": jnp.full(adapters["a"].shape[:-2], scale, jnp.float32)}
    return {key: with_scale(child, scale) for key, child in adapters.items()}


def answer_log_probabilities(
    model: Qwen3VL,
    variables: Any,
    tables: Tables,
    answers: AnswerTable,
    rows: Rows,
    rngs: dict[str, jax.Array] | None = None,
) -> jax.Array:
    """Log-probability of every answer, float32 [B, A]; `variables` and `rngs` as for
    `Qwen3VL.apply`."""
    count, images = rows.frames.shape[:2]
    size = rows.frames.shape[2:4]
    patches = patchify(rows.frames.reshape(count * images, *rows.frames.shape[2:]), model.config)
    grid = jax.tree.map(jnp.asarray, fixed_grid(model.config, *size))
    patches = patches.astype(model.dtype)
    features = model.apply(variables, VisionInputs(patches, grid), method="encode", rngs=rngs)
    features = features.by_row(count)
    own = jnp.broadcast_to(jnp.arange(images), (count, images))
    reads = scoring.read_log_probabilities(
        model, variables, tables, features, rows.sentence, own, rngs=rngs
    )
    return scoring.answer_log_probabilities(reads, answers)


def make_loss(model: Qwen3VL, answers: AnswerTable, values: Sequence[float], scale: float):
    """The loss: (adapters, base, tables, rows) -> float32 [], cross-entropy of the answer averaged
    over the labelled rows."""

    def loss(adapters, base, tables, rows: Rows):
        variables = {"params": base, "lora": with_scale(adapters, scale)}
        found = answer_log_probabilities(model, variables, tables, answers, rows)
        each = objective.cross_entropy(found, objective.target(values, rows.labels))
        return jnp.sum(each) / jnp.maximum(jnp.sum(jnp.isfinite(rows.labels)), 1)

    return loss


def make_step(
    model: Qwen3VL,
    answers: AnswerTable,
    values: Sequence[float],
    scale: float,
    optimiser: optax.GradientTransformation,
):
    """The step: (state, base, tables, rows) -> (state, {"loss", "grad_norm"} float32 []).

    Not jitted: the caller knows shardings and donates the state. Where loss or gradients are not
    finite the adapters stay as they were.
    """
    loss_of = make_loss(model, answers, values, scale)

    def step(state: AdapterState, base, tables, rows: Rows):
        loss, grads = jax.value_and_grad(loss_of)(state.adapters, base, tables, rows)
        norm = optax.global_norm(grads)
        adapters, moments, _ = finite_update(
            optimiser, loss, norm, grads, state.adapters, state.optimiser
        )
        state = AdapterState(adapters, moments, state.step + 1)
        return state, {"loss": loss, "grad_norm": norm}

    return step
