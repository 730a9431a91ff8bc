"""What a model's probabilities and its written answers say about the same frames, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lrm_jax.evaluation.fidelity import Answers
from lrm_jax.rewards.engine import HEADS
from lrm_jax.rewards.generated import Generated
from lrm_jax.rewards.heads import Head
from lrm_jax.rewards.scores import Scores

STILL = 0.02  # of progress: frames that differ by less have no order


def likeliest(heads: Sequence[Head], closed: Scores) -> dict[str, np.ndarray]:
    """The value of each head's most probable answer [B, T]; of two answers, the nearer end."""
    found = {}
    for head in heads:
        if head.name not in HEADS:
            continue
        name, values = head.name, np.asarray(head.values)
        said = getattr(closed, name)
        if name == "progress":
            best = values[np.argmax(np.nan_to_num(closed.distribution), -1)]
        else:
            best = values[np.argmin(np.abs(np.nan_to_num(said)[..., None] - values), -1)]
        found[name] = np.where(np.isfinite(said), best, np.nan)
    return found


def answers(
    heads: Sequence[Head], closed: Scores, said: Generated, target: np.ndarray, done: np.ndarray,
    interval: int,
) -> dict[str, Answers]:  # fmt: skip
    """Both ways' answers of every head that was asked, flat; target, done [B, T]."""
    ahead = np.full_like(target, np.nan)
    change = target[:, interval:] - target[:, :-interval]
    ahead[:, interval:] = np.where(np.abs(change) > STILL, np.sign(change), np.nan)
    truths = {"progress": target, "completion": done.astype(np.float32), "contrastive": ahead}
    best = likeliest(heads, closed)
    found = {}
    for name, own in best.items():
        asked = np.isfinite(getattr(closed, name))  # comparisons: not at the beginning
        found[name] = Answers(
            *(np.asarray(x, np.float32)[asked] for x in (
                getattr(closed, name), own, getattr(said.scores, name), truths[name]
            ))
        )  # fmt: skip
    return found
