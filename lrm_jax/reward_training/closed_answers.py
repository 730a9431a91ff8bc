"""The closed answers of one question, read from the token tree in one forward: what adapters that
learn probabilities, rather than to write, are taught and validated with.

Pure functions of plain trees: sharding is decided by where the arguments lie
(`lrm_jax.qwen3_vl.sharding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lrm_jax.qwen3_vl import Qwen3VL, VisionInputs, fixed_grid, patchify
from lrm_jax.reward_training import objective
from lrm_jax.rewards import scoring
from lrm_jax.rewards.layout import AnswerTable, Tables


@flax.struct.dataclass
class Rows:
    """B questions: frames uint8 [B, K, H, W, 3], the K images of each in the order of the layout's
    slots; sentence int32 [B], which of the layout's; labels float32 [B], NaN for none."""

    frames: Any
    sentence: Any
    labels: Any


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


def cross_entropy(
    model: Qwen3VL,
    variables: Any,
    tables: Tables,
    answers: AnswerTable,
    values: Sequence[float],
    rows: Rows,
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of the answers, summed over the labelled rows, float32 [], and how many these
    are (at least 1), int32 []. values: of the answers, ascending."""
    found = answer_log_probabilities(model, variables, tables, answers, rows)
    each = objective.cross_entropy(found, objective.target(values, rows.labels))
    return jnp.sum(each), jnp.maximum(jnp.sum(jnp.isfinite(rows.labels)), 1)
