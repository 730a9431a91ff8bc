"""Intervals and tests against scipy, published figures and simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from lrm_jax.evaluation import stats


@pytest.mark.parametrize("k, low, high", [(182, 0.5140, 0.6219), (195, 0.5549, 0.6612)])
def test_wilson_of_the_published_success_rates(k, low, high):
    assert stats.wilson(k, 320) == pytest.approx((low, high), abs=5.1e-5)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=50, deadline=None)
def test_wilson_agrees_with_scipy(case):
    k, n = case
    expected = scipy_stats.binomtest(k, n).proportion_ci(0.9, method="wilson")
    assert stats.wilson(k, n, 0.9) == pytest.approx(tuple(expected), abs=1e-12)


def test_wilson_at_the_ends():
    assert stats.wilson(0, 0) == (0.0, 1.0)
    assert stats.wilson(0, 10)[0] == 0.0 and stats.wilson(10, 10)[1] == 1.0
    for bad in ((3, 2), (-1, 2), (0.5, 2)):
        with pytest.raises(ValueError):
            stats.wilson(*bad)
    with pytest.raises(ValueError, match="confidence"):
        stats.wilson(1, 2, 95)


def test_unpaired_z_of_the_published_success_rates():
    """The published percentages, rounded to two digits, unpooled."""
    assert stats.two_proportion_z(0.6093, 320, 0.5688, 320).z == pytest.approx(1.042, abs=5.1e-4)
    assert stats.two_proportion_z(0.6687, 320, 0.5688, 320).z == pytest.approx(2.616, abs=5.1e-4)
    pooled = stats.two_proportion_z(0.5, 100, 0.25, 80, pooled=True)
    chi2 = scipy_stats.chi2_contingency([[50, 50], [20, 60]], correction=False)
    assert pooled.z**2 == pytest.approx(chi2.statistic)
    assert pooled.pvalue == pytest.approx(chi2.pvalue)
    assert np.isnan(stats.two_proportion_z(1, 5, 1, 5).z)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
@settings(max_examples=50, deadline=None)
def test_mcnemar_is_the_exact_binomial_test(pairs):
    a, b = np.array(pairs, bool).reshape(-1, 2).T
    result = stats.mcnemar(a, b)
    assert result.only_a == sum(x and not y for x, y in pairs)
    assert result.only_b == sum(y and not x for x, y in pairs)
    assert result.both + result.neither + result.only_a + result.only_b == len(pairs)
    discordant = result.only_a + result.only_b
    expected = scipy_stats.binomtest(result.only_a, discordant).pvalue if discordant else 1.0
    assert result.pvalue == pytest.approx(expected, abs=1e-12)
    assert stats.mcnemar(b, a).pvalue == result.pvalue


def test_mcnemar_refuses_anything_but_paired_booleans():
    for a, b in (([1, 0], [1]), ([0.5], [1]), ([np.nan], [1]), ([None], [True])):
        with pytest.raises(ValueError):
            stats.mcnemar(a, b)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_iqm_is_the_trimmed_mean(values):
    expected = scipy_stats.trim_mean(values, 0.25, axis=None)
    assert stats.iqm(values) == pytest.approx(expected, abs=1e-12)


def test_iqm_pools_runs_and_tasks():
    matrix = np.random.default_rng(0).random((5, 7))
    assert stats.iqm(matrix) == pytest.approx(scipy_stats.trim_mean(matrix, 0.25, axis=None))
    assert np.isnan(stats.iqm([]))
    with pytest.raises(ValueError, match="1 of 2"):
        stats.iqm([1.0, np.nan])


def test_optimality_gap():
    assert stats.optimality_gap([[0.5, 2.0], [1.0, 0.0]]) == pytest.approx(1 - 2.5 / 4)
    assert stats.optimality_gap([3.0], gamma=2) == 0.0


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=9),
    st.lists(st.integers(0, 4), min_size=1, max_size=9),
)
@settings(max_examples=50, deadline=None)
def test_probability_of_improvement_is_mann_whitneys_u(x, y):
    u = scipy_stats.mannwhitneyu(x, y).statistic
    assert stats.probability_of_improvement(x, y) == pytest.approx(u / (len(x) * len(y)))


def test_probability_of_improvement_averages_over_tasks():
    x, y = np.array([[1.0, 0], [2, 0]]), np.array([[0.0, 1], [0, 1], [3, 0]])
    assert stats.probability_of_improvement(x, y) == pytest.approx((4 / 6 + 1 / 6) / 2)
    with pytest.raises(ValueError, match="tasks"):
        stats.probability_of_improvement(x, y[:, :1])


def test_paired_bootstrap_against_the_t_interval():
    rng = np.random.default_rng(3)
    b = rng.normal(size=400)
    a = b + 0.1 + 0.5 * rng.normal(size=400)
    result = stats.paired_bootstrap(a, b, reps=4000)
    d = a - b
    t = scipy_stats.ttest_1samp(d, 0)
    interval = t.confidence_interval()
    assert result.difference == pytest.approx(d.mean())
    # The ends of the percentile interval scatter by about 3 % of its half width at 4000 resamples
    # (sd of a normal's 2.5 % quantile: sqrt(.025 * .975 / 4000) / .0584 = .042 sd of 1.96); five of
    # those and the difference of t and normal, below 1 % at n = 400.
    width = (interval.high - interval.low) / 2
    assert (result.low, result.high) == pytest.approx(tuple(interval), abs=0.13 * width)
    assert abs(result.pvalue - t.pvalue) < 5 * np.sqrt(t.pvalue / 4000) + 1e-3
    assert (result.pairs, result.clusters) == (400, 400)
    reverse = stats.paired_bootstrap(b, a, reps=4000)
    assert reverse.difference == -result.difference
    assert reverse.low == pytest.approx(-result.high)
    assert stats.paired_bootstrap(a, b, reps=4000) == result  # a seed fixes it


def test_paired_bootstrap_keeps_clusters_together():
    """Twenty copies of each frame tell nothing new: the interval must stay that of the episodes."""
    rng = np.random.default_rng(0)
    per_episode = rng.normal(size=30)
    episodes = np.repeat([f"episode {i}" for i in range(30)], 20)
    copies = np.repeat(per_episode, 20)
    zeros = np.zeros_like(copies)
    clustered = stats.paired_bootstrap(copies, zeros, clusters=episodes, reps=2000)
    naive = stats.paired_bootstrap(copies, zeros, reps=2000)
    assert clustered.clusters == 30 and clustered.pairs == 600
    ratio = (clustered.high - clustered.low) / (naive.high - naive.low)
    # sqrt(20) = 4.47; each width scatters by about 3 % at 2000 resamples.
    assert 3.8 < ratio < 5.2


def test_paired_bootstrap_edges():
    same = stats.paired_bootstrap([1, 0, 1], [1, 0, 1])
    assert same[:4] == (0, 0, 0, 1)
    always = stats.paired_bootstrap([1.0] * 5, [0.0] * 5, reps=999)
    assert always[:4] == (1, 1, 1, 1e-3)
    for bad in (([], []), ([1], [1, 2]), ([np.nan], [1])):
        with pytest.raises(ValueError):
            stats.paired_bootstrap(*bad)
    with pytest.raises(ValueError, match="clusters"):
        stats.paired_bootstrap([1, 2], [1, 2], clusters=["a"])


def test_resampling_in_blocks_gives_all_resamples(monkeypatch):
    whole = np.concatenate(list(stats.resample_weights(7, 50, 0)))
    monkeypatch.setattr(stats, "_BLOCK", 70)
    blocks = list(stats.resample_weights(7, 50, 0))
    assert len(blocks) == 5
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    assert (whole.sum(axis=1) == 7).all()


def test_stratified_bootstrap_resamples_within_tasks():
    matrix = np.array([[0.0, 10.0]] * 4)  # no spread within a task
    result = stats.stratified_bootstrap(matrix, np.mean, reps=100)
    assert result == (5.0, 5.0, 5.0)
    rng = np.random.default_rng(0)
    noisy = rng.normal(size=(10, 4))
    wide = stats.stratified_bootstrap(noisy, np.mean, reps=1000)
    sd = np.sqrt(noisy.var(axis=0).mean() / 40)
    assert wide.low < wide.value < wide.high
    assert wide.high - wide.low == pytest.approx(2 * 1.96 * sd, rel=0.2)


def test_numbers_of_episodes():
    # R's manual: power.prop.test(p1 = .50, p2 = .75, power = .90) gives n = 76.7;
    # power.prop.test(n = 50, p1 = .50, p2 = .75) gives power = 0.740.
    assert stats.required_episodes(0.5, 0.75, power=0.9) == 77
    assert stats.power_of_proportions(0.5, 0.75, 50) == pytest.approx(0.740, abs=5.1e-4)
    n = stats.required_episodes(0.5688, 0.6093)
    assert stats.power_of_proportions(0.5688, 0.6093, n) >= 0.8
    assert stats.power_of_proportions(0.5688, 0.6093, n - 1) < 0.8
    with pytest.raises(ValueError):
        stats.required_episodes(0.5, 0.5)


def test_required_pairs_by_simulation():
    only_a, only_b = 0.20, 0.10
    n = stats.required_pairs(only_a, only_b)
    rng = np.random.default_rng(0)
    a, b = rng.multinomial(n, [only_a, only_b, 1 - only_a - only_b], size=4000)[:, :2].T
    z = (a - b) / np.sqrt(a + b)  # McNemar's test without correction, which Connor's formula plans
    power = np.mean(np.abs(z) > 1.96)
    # Simulation error 3 * sqrt(.8 * .2 / 4000) = 0.019, and the approximation's own, about 0.01.
    assert power == pytest.approx(0.8, abs=0.03)
    assert n < stats.required_episodes(0.55, 0.45)  # pairing pays
    with pytest.raises(ValueError):
        stats.required_pairs(0.2, 0.2)
