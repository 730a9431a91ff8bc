"""Temperatures and monotone maps: against scikit-learn, saved, loaded and applied by the engine."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from lrm_jax.rewards import calibration, scoring
from lrm_jax.rewards.calibration import HeadCalibration, fit_knots, fit_temperature
from lrm_jax.rewards.heads import FILE, nano_heads
from lrm_jax.rewards.model import load_reward_model
from lrm_jax.rewards.saving import save_reward_model
from lrm_jax.rewards.scoring import Distribution
from lrm_jax.run.errors import UserError

TASK = "put the red cube on the blue plate"


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("truth", [0.4, 1.0, 3.0])
def test_temperature_is_recovered(truth):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 5)) * 2
    labels = (logits / truth + rng.gumbel(size=logits.shape)).argmax(
        -1
    )  # drawn at that temperature
    found = fit_temperature(softmax(logits), np.eye(5)[labels])
    # The estimate's standard error is below 1 % of it at this many draws.
    np.testing.assert_allclose(found, truth, rtol=0.04)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.floats(0, 1, width=32)), min_size=2, max_size=60))
def test_knots_are_isotonic_regression(points):
    x, y = (np.array(v, np.float64) for v in zip(*points, strict=True))
    knots = fit_knots(x / 20, y)
    oracle = IsotonicRegression(out_of_bounds="clip").fit(x / 20, y)
    at = np.linspace(-0.1, 1.1, 50)
    # Steep stretches magnify the rounding of `at` to float32: compare in float64 ...
    np.testing.assert_allclose(
        np.interp(at, [k[0] for k in knots], [k[1] for k in knots]), oracle.predict(at), atol=1e-9
    )
    # ... and what is applied on the device at the knots.
    found = HeadCalibration(knots=knots).value(jnp.array([k[0] for k in knots]))
    np.testing.assert_allclose(found, [k[1] for k in knots], atol=1e-6)
    assert np.isnan(HeadCalibration(knots=knots).value(jnp.array(np.nan)))


def test_a_comparison_stays_antisymmetric_to_the_last_bit():
    p = np.random.default_rng(1).uniform(size=1000).astype(np.float32)
    pair = np.stack([p, 1 - p], -1)
    valid = np.ones(len(p), bool)
    hot = HeadCalibration(1.7)
    one = hot.distribution(Distribution(jnp.array(pair), valid)).expectation((-1.0, 1.0))
    other = hot.distribution(Distribution(jnp.array(pair[:, ::-1]), valid)).expectation((-1.0, 1.0))
    np.testing.assert_array_equal(one, -other)


def test_what_is_invalid_stays_invalid():
    answers = scoring.normalise(jnp.array([[0.0, jnp.nan], [0.0, -1.0]]))
    found = HeadCalibration(2.0).distribution(answers)
    assert found.valid.tolist() == [False, True]
    assert np.isnan(found.probability[0]).all()
    np.testing.assert_allclose(found.probability[1], softmax(np.array([0.0, -0.5])), rtol=1e-6)


CORRECTIONS = {
    "progress": HeadCalibration(0.5, ((0.1, 0.0), (0.5, 0.2), (0.9, 1.0))),
    "completion": HeadCalibration(3.0),
    "contrastive": HeadCalibration(2.0),
}


@pytest.fixture(scope="module")
def folder(tiny, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("calibrated")
    network, params = tiny
    save_reward_model(
        path, network.config, params, nano_heads(), tokenizer, (32, 32), "float32", CORRECTIONS
    )
    return path


def test_saved_loaded_and_applied(folder, frames):
    plain = load_reward_model(folder, calibrated=False)
    found = load_reward_model(folder)
    assert found.calibration == CORRECTIONS and not plain.calibration
    assert found.facts["calibration"]["completion"]["temperature"] == 3.0
    before, after = (m.score(frames[:, 0], TASK) for m in (plain, found))

    sharper = before.distribution.astype(np.float64) ** 2
    sharper /= sharper.sum(-1, keepdims=True)
    np.testing.assert_allclose(after.distribution, sharper, atol=1e-5)
    mean = sharper @ np.linspace(0, 1, 11)
    np.testing.assert_allclose(
        after.progress, np.interp(mean, [0.1, 0.5, 0.9], [0, 0.2, 1]), atol=2e-5
    )
    odds = np.log(before.completion / (1 - before.completion)) / 3
    np.testing.assert_allclose(after.completion, 1 / (1 + np.exp(-odds)), atol=1e-5)
    # tanh: the difference of two probabilities is tanh of half their log-odds.
    known = before.valid["contrastive"]
    np.testing.assert_array_equal(known, after.valid["contrastive"])
    np.testing.assert_allclose(
        after.contrastive[known], np.tanh(np.arctanh(before.contrastive[known]) / 2), atol=1e-5
    )
    want = (after.progress + after.completion + (after.contrastive + 1) / 2) / 3
    np.testing.assert_allclose(after.tri[known], want[known], atol=1e-6)


def test_saving_again_keeps_it(folder, tmp_path):
    load_reward_model(folder).save(tmp_path, "float32")
    assert load_reward_model(tmp_path).calibration == CORRECTIONS


@pytest.mark.parametrize(
    "entry, words",
    [
        ({"progres": {}}, "no head 'progres'"),
        ({"progress": {"temperature": 0}}, "'progress': temperature is 0"),
        ({"progress": {"knots": [[0.5, 0], [0.5, 1]]}}, "'progress': knots must ascend"),
        ({"progress": {"heat": 1}}, "'progress'"),
        ({"contrastive": {"knots": [[0, 0], [1, 1]]}}, "'contrastive': a comparison"),
        ([], "must be an object"),
    ],
)
def test_a_damaged_entry_is_named(folder, entry, words):
    path = folder / FILE
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | {"calibration": entry}))
    try:
        with pytest.raises(UserError, match=words) as caught:
            load_reward_model(folder)
    finally:
        path.write_text(text)
    assert FILE in str(caught.value)


def test_nothing_to_fit():
    for values, targets in ([[], []], [[np.nan], [0.0]], [[0.0], [0.0, 1.0]]):
        with pytest.raises(UserError, match="calibration"):
            fit_knots(values, targets)
    with pytest.raises(UserError, match="sum to 1"):
        fit_temperature([[0.5, 0.6]], [[1.0, 0.0]])
    assert dataclasses.asdict(HeadCalibration()) == {"temperature": 1.0, "knots": ()}
    assert calibration.from_plain(None, {}, "file") == {}
