"""Fitting a calibration: an overconfident head, judged on answers it was not fitted to."""

import dataclasses

import numpy as np
import pytest

from lrm_jax.episodes.episode import Episode
from lrm_jax.jobs.calibrate import BATCH, Answered, answers, check_heads, figures, fit
from lrm_jax.jobs.open_loop import INTERVAL
from lrm_jax.rewards.calibration import HeadCalibration
from lrm_jax.rewards.heads import nano_heads
from lrm_jax.rewards.scores import Scores
from lrm_jax.run.errors import UserError

BINS = tuple(k / 10 for k in range(11))


def answered(seed, values, overconfidence=4.0, count=6000):
    """Answers with log-probabilities `overconfidence` times those that labels were drawn from."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, len(values))).astype(np.float32)
    label = (logits + rng.gumbel(size=logits.shape)).argmax(-1)
    told = np.exp(logits * overconfidence)
    told /= told.sum(-1, keepdims=True)
    return Answered(told, np.asarray(values, np.float32)[label], tuple(values))


@pytest.mark.parametrize(
    "values, knots",
    [((0.0, 1.0), False), ((0.0, 1.0), True), ((-1.0, 1.0), False), (BINS, False), (BINS, True)],
)
def test_an_overconfident_head_is_cooled(values, knots):
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


class Judge:
    """A model whose scores are the numbers that it is given."""

    def __init__(self, heads, scores=None):
        self.heads, self.scores = heads, scores

    def score(self, frames, tasks, interval):
        return self.scores


def test_answers_stand_beside_their_truth():
    """Heads whose answers stand in the other order, an invalid one, and no head of completion."""
    heads = tuple(
        dataclasses.replace(h, answers=h.answers[::-1], values=h.values[::-1])
        for h in nano_heads()
        if h.name != "completion"
    )
    rng, shape = np.random.default_rng(0), (BATCH, 7)
    p = rng.dirichlet(np.ones(11), shape).astype(np.float32)
    contrastive = rng.uniform(-1, 1, shape).astype(np.float32)
    nothing = np.full(shape, np.nan, np.float32)
    valid = {name: np.ones(shape, bool) for name in ("progress", "contrastive")}
    valid["progress"][1, 2] = False
    valid["contrastive"][:, :INTERVAL] = False
    scores = Scores(
        nothing, nothing, contrastive, nothing,
        {**valid, "completion": np.zeros(shape, bool), "tri": np.zeros(shape, bool)}, p, nothing,
    )  # fmt: skip
    frames = np.zeros((7, 8, 8, 3), np.uint8)
    rises = np.linspace(0, 0.6, 7, dtype=np.float32)
    falls = np.where(np.arange(7) < 6, rises[::-1], rises[::-1][2])  # the last pair is a tie
    episodes = [
        Episode(frames, "a task", 10.0, success=False, progress=truth) for truth in (rises, falls)
    ]
    found = answers(Judge(heads, scores), episodes)
    assert set(found) == {
        f"{name}_{what}"
        for name in ("progress", "contrastive")
        for what in ("probability", "target", "fit")
    }
    keep = valid["progress"][:2]
    np.testing.assert_array_equal(found["progress_probability"], p[:2, :, ::-1][keep])
    np.testing.assert_allclose(found["progress_target"], np.stack([rises, falls])[keep])
    assert found["progress_fit"].tolist() == [True] * 7 + [False] * 6
    np.testing.assert_array_equal(found["contrastive_target"], [1, 1, 1, -1, -1])
    want = np.concatenate([contrastive[0, INTERVAL:], contrastive[1, INTERVAL:6]])
    np.testing.assert_allclose(found["contrastive_probability"] @ [-1, 1], want, atol=1e-6)


def test_heads_without_a_probability_are_refused():
    progress, completion, _ = nano_heads()
    check_heads(Judge((progress, completion)))
    three = dataclasses.replace(completion, answers=("a", "b", "c"), values=(0.0, 0.5, 1.0))
    with pytest.raises(UserError, match="head 'completion' needs two answers"):
        check_heads(Judge((progress, three)))
