"""Estimates over clusters (episodes) with their resamples: ratios of sums, and the ROC-AUC.

Both are written so that a resample is a matrix product with the multiplicities of the episodes
(`stats.resample_weights`); no metric is evaluated a thousand times over all frames.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lrm_jax.evaluation import metrics


class Cell(NamedTuple):
    """A metric's value, its resamples [reps] and how many units entered."""

    value: float
    resampled: np.ndarray
    n: int


def ratios(weights, *terms) -> Cell:
    """sum_j c_j * (sum of numerators_j / sum of denominators_j), resampled over episodes.

    terms: (c, numerator [N], denominator [N]). Means, balanced accuracy and gaps all are of this
    form. n is the sum of the denominators.
    """
    value, resampled, n = 0.0, 0.0, 0
    with np.errstate(invalid="ignore", divide="ignore"):
        for c, numerator, denominator in terms:
            numerator, denominator = (np.asarray(v, np.float64) for v in (numerator, denominator))
            value += c * (numerator.sum() / denominator.sum())
            resampled = resampled + c * np.concatenate(
                [(w @ numerator) / (w @ denominator) for w in weights]
            )
            n += denominator.sum()
    return Cell(float(value), resampled, int(n))


def auc(weights, scores: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> Cell:
    """Frame-level ROC-AUC, resampled over episodes.

    With won[i, j] = wins of the positives of episode i over the negatives of episode j (ties one
    half), a resample with multiplicities w has AUC = w' won w / (w' positives * w' negatives).
    """
    n = len(scores)
    owner = np.repeat(np.arange(n), [s.size for s in scores])
    flat, truth = np.concatenate(scores), np.concatenate(labels)
    positive_scores, positive_owner = flat[truth], owner[truth]
    positives, negatives = (
        np.bincount(positive_owner, minlength=n),
        np.bincount(owner[~truth], minlength=n),
    )
    won = np.zeros((n, n))
    for j, (s, y) in enumerate(zip(scores, labels, strict=True)):
        negative = np.sort(s[~y])
        below = np.searchsorted(negative, positive_scores, "left")
        below_or_equal = np.searchsorted(negative, positive_scores, "right")
        won[:, j] = np.bincount(positive_owner, (below + below_or_equal) / 2, minlength=n)
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = np.concatenate(
            [
                np.einsum("rn,rn->r", w @ won, w) / ((w @ positives) * (w @ negatives))
                for w in weights
            ]
        )
    return Cell(metrics.roc_auc(flat, truth), resampled, flat.size)
