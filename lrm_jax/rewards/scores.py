"""The scores of camera frames, as the engine and `RewardModel.score` return them."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

NAMES = ("progress", "completion", "contrastive", "tri")


@flax.struct.dataclass
class Scores:
    """Scores of frames [...]; a value that is invalid is NaN, so that it cannot be taken for a
    score.

    progress: float32 [...] in [0, 1], expected completed share. completion: float32 [...], P(done).
    contrastive: float32 [...] in [-1, 1], P(closer to done than the frame an interval ago) - P(the
      opposite); invalid where there is no such frame. tri: float32 [...] in [0, 1], `tri_of` the
      three.
    valid: bool [...] for each name; all False for a head that was not asked.
    distribution: float32 [..., A] of progress over its answers, 0.0 ... 1.0.
    entropy: float32 [...] of that distribution, nats.
    """

    progress: Any
    completion: Any
    contrastive: Any
    tri: Any
    valid: dict[str, Any]
    distribution: Any
    entropy: Any


def tri_of(progress, completion, contrastive):
    """(progress + completion + (contrastive + 1) / 2) / 3: the method's equal-weight composition
    (1.5)."""
    return (progress + completion + (contrastive + 1) / 2) / 3


def invalid_count(scores: Scores) -> dict[str, jax.Array]:
    """How many values of each name are invalid, int32 []."""
    return {name: jnp.sum(~scores.valid[name]) for name in NAMES}
