"""Statistics of policies trained from several seeds and played on the same episodes.

A table of outcomes [seeds, episodes] has two sources of chance that cross: which seeds were
trained, and which episodes were played, the same ones for every seed and arm. Resampling both,
independently (the pigeonhole bootstrap, Owen 2007), gives intervals that hold for other seeds and
other episodes; they are never too short for lack of one of the two. With a single seed the
interval speaks of that one trained policy.

Everything random takes a seed, and arms that are resampled with the same one stay paired. Sources:
Owen (2007) for crossed data; McNemar (1947) with the pooled exact test for strata, each discordant
pair of which is a fair coin under the null; Agarwal et al. (2021, rliable) for the probability of
improvement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import optimize
from scipy import stats as _scipy

from lrm_jax.evaluation import stats
from lrm_jax.evaluation.stats import Interval, McNemar

REPS = 4_000


def stratified_mcnemar(a, b) -> McNemar:
    """McNemar's exact test over strata: booleans [strata, pairs] or sequences of vectors.

    Under the null of every stratum its discordant pairs are fair coin tosses, so that their sums
    are as well. It speaks of these trained policies on other episodes; `crossed` speaks of others.
    """
    a, b = (np.concatenate([np.asarray(x).ravel() for x in v]) for v in (a, b))
    return stats.mcnemar(a, b)


def crossed(
    tables: Mapping[str, np.ndarray], *, reps: int = REPS, seed: int = 0
) -> dict[str, np.ndarray]:
    """Means of tables [S, E], seeds and episodes resampled: name -> float64 [reps].

    All tables share the resamples, so differences of the results are paired. ValueError unless all
    have one shape, without NaN.
    """
    arrays = {name: np.asarray(table, np.float64) for name, table in tables.items()}
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2 or 0 in next(iter(shapes)):
        raise ValueError(f"need tables [seeds, episodes] of one shape, got {sorted(shapes)}")
    if any(np.isnan(array).any() for array in arrays.values()):
        raise ValueError("there are NaN among the outcomes")
    seeds, episodes = next(iter(shapes))
    found: dict[str, list[np.ndarray]] = {name: [] for name in arrays}
    # Two streams of multiplicities; one for seeds, one for episodes.
    of_seeds = np.concatenate(list(stats.resample_weights(seeds, reps, 2 * seed)))
    start = 0
    for of_episodes in stats.resample_weights(episodes, reps, 2 * seed + 1):
        stop = start + len(of_episodes)
        for name, array in arrays.items():
            by_seed = of_episodes @ array.T / episodes  # [r, S]
            found[name].append((by_seed * of_seeds[start:stop]).sum(1) / seeds)
        start = stop
    return {name: np.concatenate(parts) for name, parts in found.items()}


def difference(resampled: np.ndarray, value: float, confidence: float = 0.95) -> Interval:
    """A value with the percentile interval of its resamples [reps]."""
    return Interval(float(value), *stats.percentile_interval(resampled, confidence))


def share_recovered(
    base: tuple[float, np.ndarray],
    arm: tuple[float, np.ndarray],
    oracle: tuple[float, np.ndarray],
    confidence: float = 0.95,
) -> Interval:
    """(arm - base) / (oracle - base), each given as its value and its resamples [reps].

    Where the oracle gains nothing the share means nothing: NaN without a gain, and an interval of
    (-inf, inf) if more than a tail's share of the resamples have none.
    """
    gain, best = arm[0] - base[0], oracle[0] - base[0]
    if best <= 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    gains, bests = arm[1] - base[1], oracle[1] - base[1]
    if (bests <= 0).mean() > (1 - confidence) / 2:
        return Interval(gain / best, float("-inf"), float("inf"))
    some = bests > 0
    return difference(gains[some] / bests[some], gain / best, confidence)


def improvement_interval(
    x, y, *, confidence: float = 0.95, reps: int = 2_000, seed: int = 0
) -> Interval:
    """Probability that a run of x [runs, tasks] beats one of y, runs resampled within tasks."""
    x, y = (np.asarray(v, np.float64).reshape(len(v), -1) for v in (x, y))
    rng = np.random.default_rng(seed)
    resampled = np.empty(reps)
    for r in range(reps):
        picked = [
            np.take_along_axis(v, rng.integers(len(v), size=v.shape), axis=0) for v in (x, y)
        ]
        resampled[r] = stats.probability_of_improvement(*picked)
    return difference(resampled, stats.probability_of_improvement(x, y), confidence)


# How much does a claim need?


def detectable(discordant: float, pairs: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest difference of success rates that McNemar's test finds with this power.

    Args:
      discordant: share of episodes on which the two policies differ, in (0, 1]; pairs: episodes.
    Returns: a share, NaN where even a difference of the whole `discordant` would not be found.
    """
    if not 0 < discordant <= 1 or pairs < 1:
        raise ValueError(f"need discordant in (0, 1] and pairs >= 1, got {discordant} and {pairs}")

    def needed(gap: float) -> float:
        return stats.required_pairs((discordant + gap) / 2, (discordant - gap) / 2, power, alpha)

    if needed(discordant) > pairs:
        return float("nan")
    low = 1e-4 * discordant
    if needed(low) <= pairs:
        return low
    return float(optimize.brentq(lambda gap: needed(gap) - pairs - 0.5, low, discordant))


def required_runs(effect: float, spread: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Training seeds for a two-sided one-sample t-test of gains to find `effect`.

    spread: standard deviation of a seed's gain. The power is exact (noncentral t).
    """
    if effect == 0 or spread < 0:
        raise ValueError(f"need an effect other than 0 and a spread >= 0, got {effect}, {spread}")
    if spread == 0:
        return 2
    for runs in range(2, 100_000):
        shift = abs(effect) / spread * np.sqrt(runs)
        edge = _scipy.t.ppf(1 - alpha / 2, runs - 1)
        reached = _scipy.nct.sf(edge, runs - 1, shift) + _scipy.nct.cdf(-edge, runs - 1, shift)
        if reached >= power:
            return runs
    raise ValueError(f"more than 100,000 runs to find {effect} with a spread of {spread}")


def seed_spread(gains: Sequence[float]) -> float:
    """Standard deviation between seeds (ddof 1); NaN for one."""
    gains = np.asarray(gains, np.float64)
    return float(gains.std(ddof=1)) if gains.size > 1 else float("nan")
