"""Losses on closed answers: cross-entropy with answers spread over neighbours where the truth lies
between, and two that know how far answers are apart.

Supervised fine-tuning of a closed question is next-token cross-entropy at the answer's tokens,
under the full vocabulary (so that generation learns the same thing): -log P(answer). Where a label
falls between two answers (progress 0.34 between "0.3" and "0.4") both are targets, in the shares
that make the expectation exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def target(values: Sequence[float], labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Shares of the answers, float32 [..., A], for labels [...] on the scale of `values`.

    Linear interpolation between the two answers around the label, so that the expectation is the
    label; labels outside the range count as its end. A NaN label gives all zeros.

    Args:
      values: what the answers mean, ascending.
      labels: [...].
      smoothing: standard deviation, on the scale of `values`, of a Gaussian kernel that spreads
        each share over the answers around it (an ordinal label: a near miss costs less). Biases the
        ends inwards.
    """
    points = np.asarray(values, np.float32)
    if not (np.diff(points) > 0).all():
        raise ValueError(f"answers' values must ascend, got {list(values)}")
    known = jnp.isfinite(labels)
    at = jnp.interp(
        jnp.where(known, labels, points[0]), points, jnp.arange(len(points), dtype=jnp.float32)
    )
    shares = jnp.maximum(0.0, 1.0 - jnp.abs(at[..., None] - jnp.arange(len(points))))
    if smoothing > 0:
        kernel = np.exp(-0.5 * ((points[:, None] - points) / smoothing) ** 2)
        shares = shares @ jnp.asarray(kernel / kernel.sum(1, keepdims=True))
    return jnp.where(known[..., None], shares, 0.0)


def cross_entropy(log_probabilities: jax.Array, shares: jax.Array) -> jax.Array:
    """-sum_a share_a log P(a), less the entropy of the shares, so that a perfect model has loss 0;
    float32 [...].

    Args:
      log_probabilities: of whole answers under the full vocabulary, [..., A].
      shares: [..., A], as `target` returns; all zeros where there is no label.
    """
    entropy = -jnp.sum(
        jnp.where(shares > 0, shares * jnp.log(jnp.where(shares > 0, shares, 1.0)), 0.0), -1
    )
    return -jnp.sum(shares * log_probabilities, -1) - entropy


def crps(log_probabilities: jax.Array, values: Sequence[float], labels: jax.Array) -> jax.Array:
    """Continuous ranked probability score of the answers' distribution, float32 [...]; 0 where the
    label is NaN.

    The integral over x of (P(answer <= x) - [label <= x])^2, as E|X - y| - E|X - X'| / 2
    (Gneiting and Raftery 2007, eq. 21): proper, ordinal, in the unit of `values`; of a single
    certain answer it is the absolute error, of two answers 0 and 1 the Brier score.

    Args:
      log_probabilities: of the answers [..., A]; normalised here over the answer set.
      values: what the answers mean, [A].
      labels: [...].
    """
    points = jnp.asarray(values, jnp.float32)
    chance, known = jax.nn.softmax(log_probabilities, -1), jnp.isfinite(labels)
    error = jnp.abs(points - jnp.where(known, labels, 0.0)[..., None])
    spread = jnp.einsum("...a,ab,...b->...", chance, jnp.abs(points[:, None] - points), chance)
    return jnp.where(known, jnp.sum(chance * error, -1) - spread / 2, 0.0)


def squared_error(
    log_probabilities: jax.Array, values: Sequence[float], labels: jax.Array
) -> jax.Array:
    """(expectation - label)^2, float32 [...]; 0 where the label is NaN; arguments as for `crps`.

    Only the mean is taught: a distribution of any width has loss 0.
    """
    known = jnp.isfinite(labels)
    mean = jnp.sum(jax.nn.softmax(log_probabilities, -1) * jnp.asarray(values, jnp.float32), -1)
    return jnp.where(known, (mean - jnp.where(known, labels, 0.0)) ** 2, 0.0)


def outside(log_probabilities: jax.Array) -> jax.Array:
    """-log of the answers' share of all that could be written, float32 [...], from whole answers'
    log-probabilities [..., A] under the full vocabulary."""
    return -jax.nn.logsumexp(log_probabilities, -1)
