"""Fitting a calibration: an overconfident head, judged on answers it was not fitted to."""

import numpy as np
import pytest

from lrm_jax.jobs.calibrate import Answered, figures, fit
from lrm_jax.rewards.calibration import HeadCalibration

BINS = tuple(k / 10 for k in range(11))


def answered(seed, values, overconfidence=4.0, count=6000):
    """Answers with log-probabilities `overconfidence` times those that labels were drawn from."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, len(values))).astype(np.float32)
    label = (logits + rng.gumbel(size=logits.shape)).argmax(-1)
    told = np.exp(logits * overconfidence)
    told /= told.sum(-1, keepdims=True)
    return Answered(told, np.asarray(values, np.float32)[label], tuple(values))


@pytest.mark.parametrize("values", [(0.0, 1.0), (-1.0, 1.0), BINS])
@pytest.mark.parametrize("knots", [False, True])
def test_an_overconfident_head_is_cooled(values, knots):
    if knots and values[0] < 0:
        pytest.skip("a comparison gets a temperature only")
    found = fit(answered(0, values), knots)
    np.testing.assert_allclose(found.temperature, 4.0, rtol=0.1)
    assert bool(found.knots) == knots
    fresh = answered(1, values)
    before, after = figures(fresh, HeadCalibration()), figures(fresh, found)
    assert set(before) == set(after)
    # Being wrong by a factor of 4 costs 0.3 nats and more; sampling error is below 0.02.
    assert after["nll"] < before["nll"] - 0.1
    if len(values) == 2:
        assert before["ece"] > 0.15 and after["ece"] < 0.03


def test_a_calibrated_head_is_left_alone():
    found = fit(answered(2, (0.0, 1.0), overconfidence=1.0), knots=False)
    np.testing.assert_allclose(found.temperature, 1.0, rtol=0.08)
