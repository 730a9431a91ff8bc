"""Validation during training: the heads' answers on clips that the network has not learnt from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.qwen3_vl import Qwen3VL
from lrm_jax.reward_training.batches import Batch
from lrm_jax.reward_training.step import Rows, predict
from lrm_jax.rewards.heads import Head
from lrm_jax.rewards.scoring import normalise

BATCHES = 8


def make_validate(model: Qwen3VL, rows: Rows, home: Any = None) -> Callable[..., Any]:
    """The jitted forward: (params, tables, frames, batch) -> expected values [B, K, H], and [B, P]
    or None; on a mesh with `home` as their sharding."""

    @functools.partial(jax.jit, out_shardings=home)
    def run(params, tables, frames, batch):
        answers, compared = predict(model, rows, params, tables, frames, batch)
        expected = [
            normalise(a).expectation(h.values) for h, a in zip(rows.heads, answers, strict=True)
        ]
        expected = jnp.stack(expected, -1) if expected else jnp.zeros((*batch.labels.shape[:2], 0))
        if compared is None:
            return expected, None
        return expected, normalise(compared).expectation(rows.contrastive.values)

    return run


def validate(
    run: Callable[..., Any],
    rows: Rows,
    params: Any,
    tables: Any,
    frames: jax.Array,
    batches: Sequence[Batch],
    place: Callable[[Batch], Batch] = lambda batch: batch,
) -> dict[str, float]:
    """Errors over `batches`: HEAD/mae for answers on a scale, HEAD/accuracy for yes-or-no and for
    pairs. place: brings a batch to the devices of a mesh."""
    expected, compared = [], []
    for batch in batches:
        one, two = run(params, tables, frames, place(batch))
        expected.append(np.asarray(one))
        compared.append(None if two is None else np.asarray(two))
    found: dict[str, float] = {}
    values = np.concatenate(expected)
    labels = np.concatenate([b.labels for b in batches])
    for i, head in enumerate(rows.heads):
        found |= closed_numbers(head, values[..., i], labels[..., i])
    if rows.pair is not None:
        closer = np.concatenate([b.closer for b in batches])
        found |= closed_numbers(rows.contrastive, np.concatenate(compared), closer)
    return found


def closed_numbers(head: Head, got: np.ndarray, want: np.ndarray) -> dict[str, float]:
    """How right a head's expectations float [...] are beside labels float [...], NaN for none.

    Returns:
      "HEAD/accuracy" of a head that compares (by sign, ties left out) and of one with two answers
      (by the nearer), otherwise "HEAD/mae" and "HEAD/within_0.2", the share of errors up to 0.2;
      nothing where there is no label.
    """
    known = np.isfinite(want)
    if compares := "previous" in head.images:
        known &= want != 0
    if not known.any():
        return {}
    got, want = got[known], want[known]
    if compares:
        return {f"{head.name}/accuracy": float((np.sign(got) == want).mean())}
    if len(head.values) > 2:
        error = np.abs(got - want)
        return {
            f"{head.name}/mae": float(error.mean()),
            f"{head.name}/within_0.2": float((error <= 0.2).mean()),
        }
    middle = sum(head.values) / 2
    return {f"{head.name}/accuracy": float(((got >= middle) == (want >= middle)).mean())}
