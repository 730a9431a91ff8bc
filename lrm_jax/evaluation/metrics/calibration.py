"""Calibration: may a probability or a distribution over answers be read as one?"""

from typing import NamedTuple

import numpy as np

from lrm_jax.evaluation.metrics import _checks


class Reliability(NamedTuple):
    """Bins that hold at least one entry: mean probability, observed frequency, count (all [b])."""

    confidence: np.ndarray
    frequency: np.ndarray
    count: np.ndarray


def reliability(probabilities, labels, bins: int = 10, adaptive: bool = False) -> Reliability:
    """Reliability diagram of P(yes) [n] against labels [n].

    Bins are of equal width over [0, 1] (the last holds 1.0; an edge belongs to the upper bin), or
    with `adaptive` of equal count, ties kept together.
    """
    p, y = _checked(probabilities, labels)
    if bins < 1:
        raise ValueError(f"bins must be >= 1, got {bins}")
    if adaptive:
        order = np.argsort(p, kind="stable")
        place = np.empty(p.size, np.int64)
        place[order] = np.arange(p.size)
        _, code = np.unique(p, return_inverse=True)
        start = np.full(code.max() + 1 if p.size else 0, p.size)
        np.minimum.at(start, code, place)  # equal probabilities go where the first of them goes
        which = start[code] * bins // max(p.size, 1)
    else:
        which = np.minimum((p * bins).astype(np.int64), bins - 1)
    count = np.bincount(which, minlength=bins)
    some = count > 0
    confidence = np.bincount(which, p, bins)[some] / count[some]
    frequency = np.bincount(which, y, bins)[some] / count[some]
    return Reliability(confidence, frequency, count[some])


def ece(probabilities, labels, bins: int = 10, adaptive: bool = False) -> float:
    """Expected calibration error: sum over bins of (count / n) |frequency - mean probability|.

    Of P(yes), not of the winning class. NaN for n = 0.
    """
    r = reliability(probabilities, labels, bins, adaptive)
    if not r.count.size:
        return float("nan")
    return float(np.sum(r.count * np.abs(r.frequency - r.confidence)) / r.count.sum())


def brier(probabilities, labels) -> float:
    """Brier score: mean (P(yes) - label)^2 over [n]; NaN for n = 0."""
    p, y = _checked(probabilities, labels)
    return float(np.mean(np.square(p - y))) if p.size else float("nan")


def _checked(probabilities, labels):
    p = _checks.probabilities(probabilities, "probabilities")
    y = _checks.binary(labels, "labels").astype(np.float64)
    _checks.same_length(p, y, ("probabilities", "labels"))
    return p, y


def _distribution(distribution, target, support):
    d = np.asarray(distribution, dtype=np.float64)
    target = _checks.vector(target, "target", finite=True)
    support = np.linspace(0, 1, d.shape[-1]) if support is None else np.asarray(support, float)
    if d.ndim != 2 or d.shape != (target.size, support.size):
        raise ValueError(
            f"distribution must be [n, answers] = ({target.size}, {support.size}), got {d.shape}"
        )
    if support.size < 2 or (np.diff(support) <= 0).any():
        raise ValueError("support must hold at least two increasing values")
    # NaN fails this comparison too.
    if not np.allclose(d.sum(axis=-1), 1, atol=1e-3, rtol=0) or (d < 0).any():
        raise ValueError("rows of distribution must be probabilities that sum to 1")
    return d / d.sum(axis=-1, keepdims=True), target, support


def crps(distribution, target, support=None) -> float:
    """Continuous ranked probability score of answers' distributions, in units of the support.

    mean over n of the integral of (F(x) - 1[x >= target])^2 dx with F the step function of the
    distribution: E|X - t| - E|X - X'| / 2.

    Args: distribution [n, A]; target [n]; support [A], default A even steps over [0, 1].
    Returns: a float >= 0, the absolute error for a point mass; NaN for n = 0.
    """
    d, target, support = _distribution(distribution, target, support)
    if not target.size:
        return float("nan")
    to_target = np.sum(d * np.abs(support - target[:, None]), axis=-1)
    spread = np.einsum("ni,ij,nj->n", d, np.abs(support[:, None] - support), d)
    return float(np.mean(to_target - spread / 2))


def nll(distribution, target, support=None) -> float:
    """Mean -log probability of the answer nearest to the target, in nats (inf where it has none);
    arguments as in `crps`. Targets half way between two answers go to the lower one."""
    d, target, support = _distribution(distribution, target, support)
    if not target.size:
        return float("nan")
    nearest = np.argmin(np.abs(support - target[:, None]), axis=-1)
    with np.errstate(divide="ignore"):
        return float(-np.mean(np.log(d[np.arange(target.size), nearest])))


def coverage(distribution, target, level: float = 0.9, support=None) -> float:
    """Share of targets inside the central interval of mass `level` (ends included); NaN for n = 0.

    The interval runs from the (1 - level)/2 quantile to the (1 + level)/2 quantile of each row;
    arguments as in `crps`. A discrete distribution covers at least `level` when calibrated.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    d, target, support = _distribution(distribution, target, support)
    if not target.size:
        return float("nan")
    cumulative = np.cumsum(d, axis=-1)
    slack = 1e-12  # a cumulative sum of exact tenths may fall short of its quantile by rounding
    low = support[np.argmax(cumulative >= (1 - level) / 2 - slack, axis=-1)]
    high = support[np.argmax(cumulative >= (1 + level) / 2 - slack, axis=-1)]
    edge = 1e-9  # targets such as 0.3 need not equal the support's 0.30000000000000004
    return float(np.mean((low - edge <= target) & (target <= high + edge)))
