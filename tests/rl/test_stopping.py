"""Rules that end a refinement early, on hand-made iterations."""

import itertools

import numpy as np
import pytest
from scipy import stats

from lrm_jax.rl.stopping import (
    PRIVILEGED,
    StopConfig,
    divergence,
    rank_correlation,
    reason,
    rise_p,
)
from lrm_jax.run import config
from lrm_jax.run.errors import UserError


def rows(reward, success, kl=None, unsure=None):
    found = []
    for i, (r, s) in enumerate(zip(reward, success, strict=True)):
        row = {"episode_reward": r, "success_end": s, "kl_clone": 0.0 if kl is None else kl[i]}
        if unsure is not None:
            row["reward/uncertainty"] = unsure[i]
        found.append(row)
    return found


UP, DOWN = np.linspace(0.0, 1.0, 8), np.linspace(0.6, 0.2, 8)


def test_nothing_stops_by_default():
    assert reason(StopConfig(), rows(UP, DOWN, kl=UP * 100, unsure=UP * 100)) is None
    assert reason(StopConfig(kl_clone=1.0), []) is None


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=20), rng.integers(0, 4, 20)
    assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert np.isnan(rank_correlation(a, np.ones(20))) and np.isnan(rank_correlation([1], [2]))


def test_divergence_looks_at_a_window():
    success = np.concatenate([UP[:4], UP[3::-1]])  # rises, then falls, while reward goes on rising
    found = divergence(rows(UP, success), 4)
    assert np.isnan(found[:3]).all()
    assert found[3] == pytest.approx(1.0) and found[-1] == pytest.approx(-1.0)


def test_the_distance_from_the_clone():
    rule = StopConfig(kl_clone=0.5)
    kl = [0.1, 0.4, 0.6]
    assert reason(rule, rows(UP[:2], UP[:2], kl)) is None
    why = reason(rule, rows(UP[:3], UP[:3], kl))
    assert why.startswith("KL from the clone 0.6") and not why.startswith(PRIVILEGED)


def test_a_model_that_knows_less_and_less():
    rule = StopConfig(uncertainty=1.5, window=3)
    calm, wild = [0.1] * 6, [0.1, 0.1, 0.1, 0.1, 0.2, 0.2]
    assert reason(rule, rows(UP[:6], UP[:6], unsure=calm)) is None
    assert reason(rule, rows(UP[:5], UP[:5], unsure=[0.1, 0.1, 0.1, 9.0, 9.0])) is None
    assert "1.67 times" in reason(rule, rows(UP[:6], UP[:6], unsure=wild))
    with pytest.raises(UserError, match="how sure"):
        reason(rule, rows(UP[:6], UP[:6]))


def test_the_privileged_rule_says_that_it_is():
    rule = StopConfig(privileged_rank=0.0, window=4)
    assert reason(rule, rows(UP, UP)) is None
    assert reason(rule, rows(UP[:3], DOWN[:3])) is None  # no whole window yet
    assert reason(rule, rows(UP, np.full(8, 0.5))) is None  # success did not move: no evidence
    assert reason(rule, rows(UP, DOWN)).startswith(PRIVILEGED)


def test_bounds_that_make_no_sense_are_refused():
    for bad in ({"window": 2}, {"kl_clone": 0.0}, {"uncertainty": 0.9}, {"privileged_rank": -1.0}):
        with pytest.raises(UserError):
            config.build(StopConfig, bad)


def test_a_rising_reward_against_all_orders():
    rewards = [0.1, 0.3, 0.2, 0.5, 0.4, 0.6]

    def concordant(x):
        return sum(np.sign(b - a) for a, b in itertools.combinations(x, 2))

    orders = [concordant(x) for x in itertools.permutations(rewards)]
    expected = np.mean([x >= concordant(rewards) for x in orders])
    told = [{"reward_mean": x} for x in rewards]
    np.testing.assert_allclose(rise_p(told), expected, rtol=1e-9)
    assert rise_p(told[::-1]) > 0.98
    assert rise_p([{"reward_mean": 10.0}] * 9) == 1.0
    assert rise_p(told[:1]) == 1.0
