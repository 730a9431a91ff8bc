"""Statistics of success rates and returns: intervals, paired tests, aggregates over tasks.

Everything random takes a seed and is reproducible; numpy and scipy only.

Sources: Wilson (1927) through Brown, Cai and DasGupta (2001); McNemar's exact test; Agarwal et al.
(2021, rliable) for IQM, optimality gap, probability of improvement and the stratified bootstrap;
Efron and Tibshirani (1993) for the bootstrap test; Fleiss, Levin and Paik (2003) and Connor (1987)
for the numbers of episodes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats as _scipy

_BLOCK = 4_000_000  # entries of a block of resampling weights, 32 MB


class Interval(NamedTuple):
    """An estimate with its interval."""

    value: float
    low: float
    high: float


def _quantile(confidence: float) -> float:
    """Two-sided normal quantile, 1.96 for 0.95."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    return float(_scipy.norm.ppf((1 + confidence) / 2))


def wilson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval (low, high) for k successes of n trials.

    n = 0 says nothing and gives (0, 1). ValueError unless 0 <= k <= n are whole numbers.
    """
    if int(k) != k or int(n) != n or not 0 <= k <= n:
        raise ValueError(f"need whole numbers 0 <= k <= n, got k={k}, n={n}")
    k, n, z = int(k), int(n), _quantile(confidence)
    half = z * math.sqrt((k * (n - k) / n if n else 0.0) + z * z / 4)
    low, high = (k + z * z / 2 - half) / (n + z * z), (k + z * z / 2 + half) / (n + z * z)
    return (0.0 if k == 0 else low), (1.0 if k == n else high)


class McNemar(NamedTuple):
    """Paired counts and the exact two-sided p: `only_a` and `only_b` are the discordant pairs."""

    pvalue: float
    only_a: int
    only_b: int
    both: int
    neither: int


def mcnemar(a, b) -> McNemar:
    """McNemar's exact test of paired booleans [n], [n] (bool or 0/1).

    Under the null the discordant pairs are fair coin tosses; p = min(1, 2 P(X <= min)). With no
    discordant pair p = 1.
    """
    a, b = _paired_booleans(a, b)
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    tail = _scipy.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)
    p = min(1.0, 2.0 * float(tail)) if only_a + only_b else 1.0
    return McNemar(p, only_a, only_b, int((a & b).sum()), int((~a & ~b).sum()))


def _paired_booleans(a, b):
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"need two vectors of one length, got {a.shape} and {b.shape}")
    for values in (a, b):
        if values.dtype == object or not np.isin(values, (0, 1)).all():
            raise ValueError("paired outcomes must be booleans or 0/1")
    return a.astype(bool), b.astype(bool)


class TwoProportions(NamedTuple):
    """Difference p1 - p2, its z and the two-sided p."""

    difference: float
    z: float
    pvalue: float


def two_proportion_z(p1: float, n1: int, p2: float, n2: int, pooled=False) -> TwoProportions:
    """Unpaired z-test of p1 - p2 (two-sided). Prefer `mcnemar` where episodes are paired.

    p1, p2 are proportions of n1, n2 trials; `pooled` uses the common proportion in the variance.
    z is NaN where the variance is 0.
    """
    if not (0 <= p1 <= 1 and 0 <= p2 <= 1 and n1 > 0 and n2 > 0):
        raise ValueError("need proportions in [0, 1] and positive numbers of trials")
    if pooled:
        p = (p1 * n1 + p2 * n2) / (n1 + n2)
        variance = p * (1 - p) * (1 / n1 + 1 / n2)
    else:
        variance = p1 * (1 - p1) / n1 + p2 * (1 - p2) / n2
    z = (p1 - p2) / math.sqrt(variance) if variance > 0 else float("nan")
    return TwoProportions(p1 - p2, z, float(2 * _scipy.norm.sf(abs(z))))


# Aggregates over runs x tasks (rliable).


def _matrix(values) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if np.isnan(values).any():
        raise ValueError(f"{int(np.isnan(values).sum())} of {values.size} entries are NaN")
    return values


def iqm(matrix) -> float:
    """Interquartile mean of all entries pooled (runs x tasks, any shape); NaN where empty.

    A quarter of the entries, rounded down, leaves at each end (scipy's trim_mean(., 0.25)).
    """
    values = np.sort(_matrix(matrix), axis=None)
    cut = values.size // 4
    return float(values[cut : values.size - cut].mean()) if values.size else float("nan")


def optimality_gap(matrix, gamma: float = 1.0) -> float:
    """gamma - mean(min(x, gamma)) of normalised scores: what is missing to gamma; NaN if empty."""
    values = _matrix(matrix)
    return float(gamma - np.minimum(values, gamma).mean()) if values.size else float("nan")


def probability_of_improvement(x, y) -> float:
    """P(a run of x beats one of y) averaged over tasks, ties one half (Mann-Whitney U / nx ny).

    x [runs_x, tasks], y [runs_y, tasks] (or vectors for one task); NaN without runs.
    """
    x, y = _columns(x), _columns(y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y differ in tasks: {x.shape[1]} and {y.shape[1]}")
    if not x.size or not y.size:
        return float("nan")
    return float(np.mean((np.sign(x[:, None] - y[None, :]) + 1) / 2))


def _columns(values) -> np.ndarray:
    values = _matrix(values)
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2:
        raise ValueError(f"need [runs, tasks], got {values.shape}")
    return values


# Bootstraps.


class PairedBootstrap(NamedTuple):
    """mean(a - b), its percentile interval, the two-sided p of "no difference", pairs and
    clusters that were resampled."""

    difference: float
    low: float
    high: float
    pvalue: float
    pairs: int
    clusters: int


def paired_bootstrap(
    a,
    b,
    clusters: Sequence | None = None,
    *,
    confidence: float = 0.95,
    reps: int = 10_000,
    seed: int = 0,
) -> PairedBootstrap:
    """Mean difference a - b of paired values [n], [n], resampled over pairs or whole clusters.

    Args:
      clusters: [n] labels (episode, video, seed): rows of one cluster stay together.
      reps: resamples; the smallest possible p is 1 / (reps + 1).

    Returns: `PairedBootstrap`. p is the share of resamples whose distance from the observed
    difference reaches the observed distance from 0 (the resampled distribution moved to the null).

    Raises: ValueError on unequal lengths, NaN, or no pair.
    """
    _quantile(confidence)
    a, b = _matrix(a), _matrix(b)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"need two vectors of one length, got {a.shape} and {b.shape}")
    if not a.size:
        raise ValueError("need at least one pair")
    code = np.arange(a.size)
    if clusters is not None:
        if len(clusters) != a.size:
            raise ValueError(f"clusters has {len(clusters)} entries for {a.size} pairs")
        code = np.unique(np.asarray(clusters), return_inverse=True)[1].ravel()
    total = np.bincount(code, a - b)
    count = np.bincount(code)
    observed = float(total.sum() / a.size)
    resampled = np.concatenate(
        [(w @ total) / (w @ count) for w in resample_weights(count.size, reps, seed)]
    )
    low, high = percentile_interval(resampled, confidence)
    # A resample that hits the edge exactly must count whatever the order of its sum.
    slack = 1e-12 * max(1e-300, float(np.abs(a - b).max()))
    extreme = int((np.abs(resampled - observed) >= abs(observed) - slack).sum())
    pvalue = (extreme + 1) / (reps + 1)
    return PairedBootstrap(observed, low, high, pvalue, a.size, int(count.size))


def resample_weights(n: int, reps: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n units stands in each resample: float64 [r, n] blocks, `reps` rows in all.

    Blocks bound the memory. One seed gives the same resamples, so that arms stay paired.
    """
    if n < 1 or reps < 1:
        raise ValueError(f"need n >= 1 and reps >= 1, got {n} and {reps}")
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // n)
    for start in range(0, reps, block):
        size = min(block, reps - start)
        yield rng.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64)


def percentile_interval(resampled, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval over resamples [reps]; undefined (NaN) resamples are left out, and all
    undefined gives (NaN, NaN)."""
    resampled = np.asarray(resampled, dtype=np.float64)
    resampled = resampled[~np.isnan(resampled)]
    if not resampled.size:
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    return float(low), float(high)


def stratified_bootstrap(
    matrix,
    statistic: Callable[[np.ndarray], float] = iqm,
    *,
    confidence: float = 0.95,
    reps: int = 2_000,
    seed: int = 0,
) -> Interval:
    """Interval of a statistic of [runs, tasks], runs resampled within each task independently.

    rliable uses 50,000 resamples for published aggregates; 2,000 suffice for a look.
    """
    values = _columns(matrix)
    if not values.size:
        raise ValueError("need at least one run and one task")
    _quantile(confidence)
    rng = np.random.default_rng(seed)
    runs, tasks = values.shape
    resampled = np.empty(reps)
    for r in range(reps):
        pick = rng.integers(runs, size=(runs, tasks))
        resampled[r] = statistic(np.take_along_axis(values, pick, axis=0))
    return Interval(float(statistic(values)), *percentile_interval(resampled, confidence))


# How many episodes does a claim need?


def power_of_proportions(p1: float, p2: float, n: int, alpha: float = 0.05) -> float:
    """Power of the unpaired two-sided test of p1 against p2 with n episodes per arm.

    Normal approximation with the pooled variance under the null; the rejections in the wrong
    direction do not count (R's power.prop.test).
    """
    spread, pooled = _spreads(p1, p2)
    z = (abs(p1 - p2) * math.sqrt(n) - _quantile(1 - alpha) * pooled) / spread
    return float(_scipy.norm.cdf(z))


def required_episodes(p1: float, p2: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Episodes per arm for an unpaired two-sided test of p1 against p2 to have this power."""
    spread, pooled = _spreads(p1, p2)
    root = _quantile(1 - alpha) * pooled + _power_quantile(power) * spread
    return math.ceil((root / (p1 - p2)) ** 2)


def _spreads(p1, p2):
    if not (0 < p1 < 1 and 0 < p2 < 1) or p1 == p2:
        raise ValueError(f"need two different proportions in (0, 1), got {p1} and {p2}")
    mean = (p1 + p2) / 2
    return math.sqrt(p1 * (1 - p1) + p2 * (1 - p2)), math.sqrt(2 * mean * (1 - mean))


def required_pairs(only_a: float, only_b: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Paired episodes for McNemar's test (Connor 1987).

    only_a, only_b: expected shares of pairs in which only that arm succeeds; their difference is
    the difference of the success rates, and the fewer disagreements, the fewer episodes needed.
    """
    discordant, difference = only_a + only_b, only_a - only_b
    if min(only_a, only_b) < 0 or discordant > 1 or difference == 0:
        raise ValueError("need two different shares >= 0 with a sum of at most 1")
    root = _quantile(1 - alpha) * math.sqrt(discordant)
    root += _power_quantile(power) * math.sqrt(discordant - difference**2)
    return math.ceil((root / difference) ** 2)


def _power_quantile(power):
    if not 0 < power < 1:
        raise ValueError(f"power must be in (0, 1), got {power}")
    return float(_scipy.norm.ppf(power))
