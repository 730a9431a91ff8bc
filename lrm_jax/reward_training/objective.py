"""The loss: cross-entropy on the answer alone, with answers spread over neighbours where the truth
lies between.

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
