"""Statistics of seeds x episodes against scipy, rliable and simulation."""

import numpy as np
import pytest
from rliable import library, metrics
from scipy import stats as scipy_stats

from lrm_jax.evaluation import paired, stats


def outcomes(rng, seeds=5, episodes=400, rate=0.5, seed_sd=0.5, episode_sd=1.5, shift=0.0):
    """Booleans [S, E] in which seeds and episodes both matter."""
    by_seed = rng.normal(0, seed_sd, (seeds, 1))
    by_episode = rng.normal(0, episode_sd, (1, episodes))
    middle = scipy_stats.norm.ppf(rate) + shift + by_seed + by_episode
    return rng.normal(size=(seeds, episodes)) < middle


def test_the_stratified_test_is_the_binomial_one_of_all_discordant_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 50)) < 0.5
    found = paired.stratified_mcnemar(a, b)
    only_a, only_b = (a & ~b).sum(), (~a & b).sum()
    expected = scipy_stats.binomtest(int(only_a), int(only_a + only_b)).pvalue
    assert found.pvalue == pytest.approx(expected, abs=1e-12)
    assert (found.only_a, found.only_b) == (only_a, only_b)
    # Strata may differ in size.
    ragged = paired.stratified_mcnemar([a[0], a[1][:10]], [b[0], b[1][:10]])
    assert ragged.both + ragged.neither + ragged.only_a + ragged.only_b == 60


def test_one_seed_is_the_ordinary_bootstrap():
    """The variance of resampled means of n numbers is their variance / n."""
    rng = np.random.default_rng(0)
    table = rng.random((1, 300)) < 0.3
    found = paired.crossed({"x": table}, reps=20_000)["x"]
    # The variance of 20,000 resamples is known to 1 %; three standard errors.
    assert found.var() == pytest.approx(table.var() / 300, rel=0.03)


def test_crossed_resampling_by_hand():
    """Both factors: the expected variance of the pigeonhole bootstrap (Owen 2007, lemma 2)."""
    rng = np.random.default_rng(1)
    table = rng.normal(size=(4, 6))
    found = paired.crossed({"x": table}, reps=40_000)["x"]
    s, e = table.shape
    centred = table - table.mean()
    rows, columns = centred.sum(1), centred.sum(0)
    # E[(w w')^2] of multinomial multiplicities, worked out for independent factors.
    own = (1 - 1 / s) * (1 - 1 / e) * np.square(centred).sum()
    same_row = (1 - 1 / s) * (-1 / e) * (np.square(rows) - np.square(centred).sum(1)).sum()
    same_column = (-1 / s) * (1 - 1 / e) * (np.square(columns) - np.square(centred).sum(0)).sum()
    neither = np.square(centred.sum()) - np.square(rows).sum() - np.square(columns).sum()
    neither = (neither + np.square(centred).sum()) / (s * e)
    joint = own + same_row + same_column + neither
    shared_seed = np.square(rows).sum() * (1 - 1 / s) - (
        np.square(rows.sum()) - np.square(rows).sum()
    ) / s
    shared_episode = np.square(columns).sum() * (1 - 1 / e) - (
        np.square(columns.sum()) - np.square(columns).sum()
    ) / e
    expected = (joint + shared_seed + shared_episode) / (s * e) ** 2
    assert found.var() == pytest.approx(expected, rel=0.03)
    assert found.mean() == pytest.approx(table.mean(), abs=4 * np.sqrt(expected / 40_000))


def test_arms_stay_paired_and_seeds_widen_the_interval():
    rng = np.random.default_rng(2)
    base = outcomes(rng)
    found = paired.crossed({"base": base, "same": base, "less": 0.5 * base}, reps=500)
    assert (found["base"] == found["same"]).all()
    np.testing.assert_allclose(found["less"], 0.5 * found["base"])
    different = outcomes(rng, seed_sd=1.0, episodes=4000)
    wide = paired.crossed({"x": different}, reps=2000)["x"].std()
    pooled = np.sqrt(different.mean() * (1 - different.mean()) / different.size)
    assert wide > 5 * pooled  # twenty thousand episodes of five seeds are no twenty thousand runs


def test_the_interval_of_a_gain_holds_the_truth():
    """Coverage over 200 experiments with 8 seeds: percentile intervals of few seeds are somewhat
    short, so between 85 and 99 %."""
    rng = np.random.default_rng(3)
    held = 0
    truth = np.mean([
        outcomes(rng, 2000, 50, shift=0.4).mean() - outcomes(rng, 2000, 50).mean()
        for _ in range(20)
    ])  # fmt: skip
    for k in range(200):
        base, arm = outcomes(rng, 8, 200), outcomes(rng, 8, 200, shift=0.4)
        found = paired.crossed({"a": arm, "b": base}, reps=400, seed=k)
        low, high = stats.percentile_interval(found["a"] - found["b"])
        held += low <= truth <= high
    assert 0.85 <= held / 200 <= 0.99


def test_the_share_of_the_oracles_gain():
    rng = np.random.default_rng(4)
    noise = rng.normal(0, 0.01, (3, 5000))
    base, arm, oracle = ((v, v + n) for v, n in zip((0.4, 0.55, 0.65), noise, strict=True))
    found = paired.share_recovered(base, arm, oracle)
    assert found.value == pytest.approx(0.6)
    # Delta method: sd of a ratio g/h with var(g) = var(h) = 2s^2 and cov(g, h) = s^2.
    sd = 0.01 / 0.25 * np.sqrt(2 + 2 * 0.36 - 2 * 0.6)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * sd, rel=0.06)
    assert np.isnan(paired.share_recovered(base, arm, base).value)
    weak = (0.41, 0.41 + 2 * noise[2])
    assert np.isinf(paired.share_recovered(base, arm, weak).low)


def test_intervals_and_improvement_agree_with_rliable():
    rng = np.random.default_rng(5)
    x, y = rng.normal(0.6, 0.1, (8, 3)), rng.normal(0.5, 0.1, (8, 3))
    assert stats.iqm(x) == pytest.approx(metrics.aggregate_iqm(x), abs=1e-12)
    assert stats.optimality_gap(x) == pytest.approx(metrics.aggregate_optimality_gap(x))
    point, interval = library.get_interval_estimates(
        {"x": x}, lambda s: np.array([metrics.aggregate_iqm(s)]), reps=4000,
        random_state=np.random.RandomState(0),
    )  # fmt: skip
    ours = stats.stratified_bootstrap(x, reps=4000)
    assert ours.value == pytest.approx(point["x"][0], abs=1e-12)
    # Ends of two bootstraps of 4,000: the quantile's standard error is a sixth of a tenth.
    width = ours.high - ours.low
    np.testing.assert_allclose([ours.low, ours.high], interval["x"][:, 0], atol=0.08 * width)
    point, interval = library.get_interval_estimates(
        {"xy": (x, y)}, lambda a, b: np.array([metrics.probability_of_improvement(a, b)]),
        reps=4000, random_state=np.random.RandomState(0),
    )  # fmt: skip
    ours = paired.improvement_interval(x, y, reps=4000)
    assert ours.value == pytest.approx(point["xy"][0], abs=1e-12)
    width = ours.high - ours.low
    np.testing.assert_allclose([ours.low, ours.high], interval["xy"][:, 0], atol=0.08 * width)


def test_what_can_be_found_with_so_many_episodes():
    gap = paired.detectable(0.3, 1000)
    assert stats.required_pairs((0.3 + gap) / 2, (0.3 - gap) / 2) in (1000, 1001)
    assert np.isnan(paired.detectable(0.01, 20))
    with pytest.raises(ValueError):
        paired.detectable(0.0, 100)


def test_numbers_of_seeds_by_simulation():
    """The power of the t-test at the number found, and one run fewer has less than was asked."""
    effect, spread = 0.1, 0.12
    runs = paired.required_runs(effect, spread)
    rng = np.random.default_rng(6)

    def power(n):
        gains = rng.normal(effect, spread, (20_000, n))
        return (scipy_stats.ttest_1samp(gains, 0, axis=1).pvalue < 0.05).mean()

    assert power(runs) > 0.79 and power(runs - 1) < 0.81
    # Of a t-test with an effect of half a standard deviation (R: power.t.test, type one.sample).
    assert paired.required_runs(0.5, 1.0) == 34
