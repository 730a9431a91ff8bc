"""The contrastive head: which of two frames is closer to done? Three classes, -1, 0 and +1."""

import numpy as np

from lrm_jax.evaluation.metrics import _checks, errors


def directions(differences, dead_zone: float = 0.0) -> np.ndarray:
    """Classes -1, 0, +1 (int64 [n]) of signed values [n]; |d| <= dead_zone is class 0."""
    differences = _checks.vector(differences, "differences")
    if not dead_zone >= 0:
        raise ValueError(f"dead_zone must be >= 0, got {dead_zone}")
    return np.where(np.abs(differences) <= dead_zone, 0, np.sign(differences)).astype(np.int64)


def pairwise_direction_accuracy(scores, differences, dead_zone: float = 0.0) -> float:
    """Share of frame pairs whose order the score gets right; a score of 0 counts one half.

    Args:
      scores: signed contrastive score [n], > 0 says that the later frame is closer to done.
      differences: true change of progress [n]. Pairs with |change| <= dead_zone have no order
        and do not count.

    Returns: a float, NaN where no pair has an order. Constant scores of 0 give 0.5.
    """
    scores, differences = _checks.pair(scores, differences, ("scores", "differences"))
    truth = directions(differences, dead_zone)
    agree = np.sign(scores[truth != 0]) * truth[truth != 0]
    return float(np.mean((agree + 1) / 2)) if agree.size else float("nan")


def direction_accuracy(scores, differences, dead_zone=0.0, score_dead_zone=0.0) -> float:
    """Share of pairs [n] in the right one of three classes (back, same, forward); NaN for n = 0.

    `dead_zone` makes the true class 0, `score_dead_zone` the predicted one.
    """
    counts = direction_confusion(scores, differences, dead_zone, score_dead_zone)
    return float(np.trace(counts) / counts.sum()) if counts.sum() else float("nan")


def direction_confusion(scores, differences, dead_zone=0.0, score_dead_zone=0.0) -> np.ndarray:
    """Counts int64 [3, 3] over (-1, 0, +1): truth in rows, prediction in columns."""
    scores, differences = _checks.pair(scores, differences, ("scores", "differences"))
    return errors.confusion(
        directions(scores, score_dead_zone), directions(differences, dead_zone), (-1, 0, 1)
    )


def antisymmetry_error(first_order, second_order) -> float:
    """Position bias: mean |P(A, B) + P(B, A) - 1| over [n] pairs asked in both orders; NaN for
    n = 0. Both hold the probability that the *second* shown frame is closer to done."""
    first = _checks.probabilities(first_order, "first_order")
    second = _checks.probabilities(second_order, "second_order")
    _checks.same_length(first, second, ("first_order", "second_order"))
    return float(np.mean(np.abs(first + second - 1))) if first.size else float("nan")


def score_crossing_rate(levels, low: float = 2, high: float = 4) -> float:
    """ROBORMBENCH's SCR: the share of trajectories whose levels over paraphrases [N, P] hold both
    one <= low and one >= high; NaN for N = 0."""
    levels = np.asarray(levels, dtype=np.float64)
    if levels.ndim != 2:
        raise ValueError(f"levels must be [trajectories, paraphrases], got {levels.shape}")
    if np.isnan(levels).any():
        raise ValueError("levels holds NaN")
    crossed = (levels <= low).any(axis=1) & (levels >= high).any(axis=1)
    return float(crossed.mean()) if crossed.size else float("nan")
