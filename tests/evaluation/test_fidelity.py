"""Closed and generated answers side by side: counts by hand, AUC by scikit-learn."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lrm_jax.evaluation.fidelity import Answers, compare
from lrm_jax.jobs.fidelity import answers, likeliest
from lrm_jax.rewards.generated import Generated
from lrm_jax.rewards.heads import nano_heads
from lrm_jax.rewards.scores import Scores

NAN = np.nan
TENTHS = np.arange(11) / 10


def test_unreadable_answers_are_counted_and_left_out_of_agreement():
    said = Answers(
        np.array([0.34, 0.52, 0.9, NAN]), np.array([0.3, 0.5, 1.0, NAN]),
        np.array([0.3, 0.6, NAN, 0.2]), np.array([0.4, 0.4, 1.0, 0.0]),
    )  # fmt: skip
    found = compare(said, TENTHS)
    assert (found["answers"], found["unreadable"], found["judged"]) == (4, 1, 2)
    assert found["agreement"][0] == 0.5  # of the two that both ways answered
    np.testing.assert_allclose(found["mean_difference"], (0.04 + 0.08) / 2)
    np.testing.assert_allclose(found["generated"]["mae"], (0.1 + 0.2) / 2)
    np.testing.assert_allclose(found["closed"]["mae"], (0.06 + 0.12) / 2)
    np.testing.assert_allclose(found["closed_on_all"]["mae"], (0.06 + 0.12 + 0.1) / 3)


def test_rightness_of_two_answers_is_scikit_learns_auc():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 200).astype(float)
    closed = np.clip(truth * 0.3 + rng.uniform(0, 0.7, 200), 0, 1)
    written = (closed > 0.4).astype(float)
    written[::9] = NAN
    read = np.isfinite(written)
    found = compare(Answers(closed, (closed > 0.5) * 1.0, written, truth), (0, 1))
    np.testing.assert_allclose(found["closed"]["auc"], roc_auc_score(truth[read], closed[read]))
    np.testing.assert_allclose(found["generated"]["auc"], roc_auc_score(truth[read], written[read]))
    np.testing.assert_allclose(found["closed_on_all"]["auc"], roc_auc_score(truth, closed))
    np.testing.assert_allclose(found["generated"]["accuracy"], (written == truth)[read].mean())


def test_comparisons_that_change_with_the_order_are_undecided():
    closed = np.array([0.3, -0.4, 0.2, -0.9])
    said = Answers(closed, np.sign(closed), np.array([1.0, 0.0, -1.0, -1.0]), np.sign(closed))
    found = compare(said, (-1, 1))
    assert found["undecided"][0] == 0.25 and found["agreement"][0] == 0.5
    np.testing.assert_allclose(found["agreement_decided"][0], 2 / 3)
    assert found["generated"]["accuracy"] == (1 + 0.5 + 0 + 1) / 4


def test_answers_that_all_agree_are_not_undecided():
    """One answer throughout is not the middle of the two that there are."""
    same = np.full(3, -1.0)
    found = compare(Answers(same, same, same, np.array([-1.0, 1.0, -1.0])), (-1, 1))
    assert found["undecided"][0] == 0 and found["agreement_decided"][0] == 1


def test_nothing_read_has_no_figures_instead_of_zeros():
    found = compare(
        Answers(np.array([0.5]), np.array([0.5]), np.array([NAN]), np.array([1.0])), TENTHS
    )
    assert found["agreement"] is None and found["generated"]["mae"] is None
    assert found["unreadable_share"][0] == 1.0


def test_vectors_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="one length"):
        Answers(np.zeros(2), np.zeros(3), np.zeros(2), np.zeros(2))


def test_answers_pair_both_ways_with_the_truth():
    """Two videos of three frames, comparisons over one."""
    shape = (2, 3)
    distribution = np.zeros((*shape, 11), np.float32)
    distribution[..., 4] = 0.6
    distribution[..., 9] = 0.4
    contrast = np.array([[NAN, 0.2, -0.7]] * 2, np.float32)
    closed = Scores(
        progress=np.full(shape, 0.6, np.float32), completion=np.full(shape, 0.3, np.float32),
        contrastive=contrast, tri=np.full(shape, NAN),
        valid={n: np.ones(shape, bool) for n in ("progress", "completion", "contrastive", "tri")},
        distribution=distribution, entropy=np.zeros(shape),
    )  # fmt: skip
    heads = nano_heads()
    best = likeliest(heads, closed)
    np.testing.assert_allclose(best["progress"], 0.4)  # not the nearest to the expectation
    np.testing.assert_allclose(best["completion"], 0.0)
    np.testing.assert_array_equal(best["contrastive"], [[NAN, 1, -1]] * 2)

    written = dataclasses.replace(closed, progress=np.full(shape, 0.4, np.float32))
    target = np.array([[0.0, 0.5, 0.51], [0.0, 0.4, 0.2]])
    found = answers(heads, closed, Generated(written, {}, {}, {}), target, target > 0.5, 1)
    np.testing.assert_allclose(found["progress"].truth, target.reshape(-1))
    np.testing.assert_allclose(found["progress"].generated, 0.4)
    # The first frame has no earlier one; the last pair of the first video does not differ.
    np.testing.assert_array_equal(found["contrastive"].truth, [1, NAN, 1, -1])
    np.testing.assert_array_equal(found["completion"].truth, [0, 0, 1, 0, 0, 0])
