"""Success detection, errors, direction and calibration against scikit-learn and plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from lrm_jax.evaluation import metrics

ROUNDING = 1e-12

levels = st.integers(0, 5).map(lambda k: k / 5)


def scored(min_size=1):
    return st.lists(st.tuples(levels, st.booleans()), min_size=min_size, max_size=30).map(
        lambda rows: tuple(map(np.array, zip(*rows, strict=True)))
    )


def both(labels):
    return labels.any() and not labels.all()


@given(scored())
@settings(max_examples=50, deadline=None)
def test_detection_agrees_with_sklearn(pair):
    scores, labels = pair
    yes = scores >= 0.5
    if not both(labels):
        for f in (metrics.roc_auc, metrics.fpr_at_tpr):
            assert np.isnan(f(scores, labels))
        assert np.isnan(metrics.balanced_accuracy(scores, labels, threshold=0.5))
        return
    assert metrics.roc_auc(scores, labels) == pytest.approx(
        sk.roc_auc_score(labels, scores), abs=ROUNDING
    )
    assert metrics.average_precision(scores, labels) == pytest.approx(
        sk.average_precision_score(labels, scores), abs=ROUNDING
    )
    expected = sk.balanced_accuracy_score(labels, yes)
    assert metrics.balanced_accuracy(scores, labels, threshold=0.5) == pytest.approx(expected)
    assert metrics.balanced_accuracy(yes, labels) == pytest.approx(expected)
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    for wanted in (0.3, 0.5, 0.95, 1.0):
        best = fpr[tpr >= wanted - 1e-12].min()
        assert metrics.fpr_at_tpr(scores, labels, wanted) == pytest.approx(best, abs=ROUNDING)
    failures = metrics.detection(~yes, ~labels)
    assert failures.tpr == pytest.approx(sk.recall_score(~labels, ~yes))
    assert failures.tnr == pytest.approx(sk.recall_score(labels, yes))
    assert failures.f1 == pytest.approx(sk.f1_score(~labels, ~yes))


def test_a_perfect_separator_and_a_binary_head():
    assert metrics.roc_auc([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0]) == 1.0
    assert metrics.roc_auc([0.5] * 4, [1, 1, 0, 0]) == 0.5
    # A 0/1 head with AUC 0.75: counting ties as wrong would give 0.5625.
    scores, labels = [1, 1, 1, 0, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]
    assert metrics.roc_auc(scores, labels) == 0.75
    assert metrics.pairwise_accuracy(scores, labels) == 0.75
    assert np.isnan(metrics.roc_auc([], []))
    assert np.isnan(metrics.average_precision([0.5], [False]))


def test_gap_and_confusion_of_videos_and_instructions():
    assert metrics.success_failure_gap([0.9, 0.7, 0.2], [1, 1, 0]) == pytest.approx(0.6)
    assert np.isnan(metrics.success_failure_gap([0.9], [True]))
    matrix, diagonal = metrics.column_normalised([[3, 1], [1, 1]])
    np.testing.assert_allclose(matrix, [[0.75, 0.5], [0.25, 0.5]])
    assert diagonal == pytest.approx(0.625)
    matrix, diagonal = metrics.column_normalised([[1, 0], [1, 0]])
    assert np.isnan(matrix[:, 1]).all() and np.isnan(diagonal)


def test_false_triggers_and_delay_by_hand():
    curves = [
        [0.1, 0.9, 0.2, 0.9, 0.9, 0.9],  # two false edges before the success at 4, then at once
        [0.1, 0.2, 0.3, 0.9],  # success at 1, seen two frames later
        [0.0, 0.6, 0.6, 0.1],  # never succeeds, one long false stay
        [0.1, 0.1, 0.1],  # success at 2, never seen
        [0.9, 0.9],  # success from the start: no frame could be false
    ]
    when = [4, 1, None, 2, 0]
    triggers = metrics.false_triggers(curves, when, 0.5)
    assert triggers.episodes == 4 and triggers.without_frames == 1
    assert triggers.episode_rate == pytest.approx(2 / 4)
    assert triggers.per_episode == pytest.approx(3 / 4)
    assert triggers.frame_rate == pytest.approx(4 / (4 + 1 + 4 + 2))
    delay = metrics.detection_delay(curves, when, 0.5)
    np.testing.assert_array_equal(delay.delays, [0, 2, np.nan, 0])
    assert (delay.mean, delay.median) == (pytest.approx(2 / 3), 0)
    assert (delay.detected, delay.missed) == (3, 1)


def test_invalid_frames_neither_trigger_nor_vanish():
    curve, mask = [0.1, np.nan, 0.2], [True, False, True]
    triggers = metrics.false_triggers([curve], [None], 0.5, valid=[mask])
    assert triggers.episode_rate == 0 and triggers.invalid_frames == 1
    with pytest.raises(ValueError, match=r"curves\[0\] holds 1 NaN"):
        metrics.false_triggers([curve], [None], 0.5)
    nothing = metrics.false_triggers([], [], 0.5)
    assert nothing.episodes == 0 and np.isnan(nothing.episode_rate)
    assert np.isnan(metrics.detection_delay([[0.1]], [None], 0.5).mean)
    with pytest.raises(ValueError, match="outside of the 3 frames"):
        metrics.detection_delay([[0, 0, 0]], [3], 0.5)


@given(st.lists(st.tuples(levels, levels), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_errors_agree_with_sklearn(rows):
    pred, target = map(np.array, zip(*rows, strict=True))
    assert metrics.mae(pred, target) == pytest.approx(sk.mean_absolute_error(target, pred))
    assert metrics.rmse(pred, target) == pytest.approx(sk.root_mean_squared_error(target, pred))
    assert metrics.bias(pred, target) == pytest.approx(np.mean(pred) - np.mean(target))
    # In whole fifths the edge is exact.
    fifths = np.abs(np.rint(5 * pred) - np.rint(5 * target)) <= 1
    assert metrics.accuracy_within(pred, target, 0.2) == pytest.approx(fifths.mean())
    assert metrics.accuracy_within(pred.astype(np.float32), target, 0.2) == pytest.approx(
        fifths.mean()
    )


def test_the_edge_of_accuracy_within():
    assert abs(0.9 - 0.7) > 0.2  # in floating point
    assert metrics.accuracy_within([0.9], [0.7], 0.2) == 1.0
    assert metrics.accuracy_within([0.9001], [0.7], 0.2) == 0.0
    assert metrics.accuracy_within([0.9 + 1e-12], [0.7], 0.2) == 0.0
    assert np.isnan(metrics.accuracy_within([], [], 0.1))
    assert np.isnan(metrics.mae([], [])) and np.isnan(metrics.rmse([], []))


def test_reward_levels_and_their_rounding():
    cuts = [0.125, 0.375, 0.625, 0.875]
    np.testing.assert_array_equal(metrics.reward_level(cuts), [1, 3, 3, 5])
    np.testing.assert_array_equal(metrics.reward_level(cuts, "half_up"), [2, 3, 4, 5])
    np.testing.assert_array_equal(metrics.reward_level([0, 0.124, 0.126, 1]), [1, 1, 2, 5])
    errors = metrics.level_errors([1, 3, 5, 2], [1, 2, 2, 3])
    assert (errors.exact, errors.within_one, errors.mae, errors.bias) == (0.25, 0.75, 1.25, 0.75)
    assert errors.confusion.sum() == 4 and errors.confusion[1, 4] == 1
    with pytest.raises(ValueError, match="outside of the classes"):
        metrics.level_errors([6], [1])


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_confusion_agrees_with_sklearn(rows):
    pred, target = zip(*rows, strict=True)
    np.testing.assert_array_equal(
        metrics.confusion(pred, target, (0, 1, 2)),
        sk.confusion_matrix(target, pred, labels=(0, 1, 2)),
    )


def test_direction():
    scores = [0.8, -0.2, 0.0, 0.1, -0.9]
    changes = [0.3, 0.2, -0.1, 0.0, -0.4]
    assert metrics.pairwise_direction_accuracy(scores, changes) == pytest.approx(2.5 / 4)
    assert metrics.pairwise_direction_accuracy([0.0] * 5, changes) == 0.5
    assert np.isnan(metrics.pairwise_direction_accuracy([0.4], [0.0]))
    assert metrics.direction_accuracy(scores, changes) == pytest.approx(2 / 5)
    assert metrics.direction_accuracy(scores, changes, 0.1, 0.2) == pytest.approx(4 / 5)
    counts = metrics.direction_confusion(scores, changes)
    np.testing.assert_array_equal(counts, [[1, 1, 0], [0, 0, 1], [1, 0, 1]])
    assert metrics.antisymmetry_error([0.9, 0.3], [0.1, 0.5]) == pytest.approx(0.1)
    assert metrics.score_crossing_rate([[1, 5, 3], [2, 3, 3], [4, 4, 2]]) == pytest.approx(2 / 3)


@given(scored())
@settings(max_examples=50, deadline=None)
def test_calibration(pair):
    p, y = pair
    assert metrics.brier(p, y) == pytest.approx(np.mean((p - y) ** 2), abs=ROUNDING)
    # Six possible scores in ten bins: each bin holds one score.
    expected = sum(np.mean(p == v) * abs(np.mean(y[p == v]) - v) for v in np.unique(p))
    assert metrics.ece(p, y, bins=10) == pytest.approx(expected, abs=ROUNDING)
    r = metrics.reliability(p, y, bins=4, adaptive=True)
    assert r.count.sum() == p.size
    assert metrics.ece(p, y, bins=1) == pytest.approx(abs(p.mean() - y.mean()), abs=ROUNDING)
    assert metrics.ece(p, y, bins=1, adaptive=True) == pytest.approx(abs(p.mean() - y.mean()))


def test_reliability_agrees_with_sklearn():
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(0)
    p = rng.random(500)
    y = rng.random(500) < p**2
    r = metrics.reliability(p, y, bins=10)
    frequency, confidence = calibration_curve(y, p, n_bins=10)
    np.testing.assert_allclose(r.frequency, frequency)
    np.testing.assert_allclose(r.confidence, confidence)
    equal = metrics.reliability(p, y, bins=10, adaptive=True)
    assert set(equal.count) == {50}


def test_distributions_over_answers():
    rng = np.random.default_rng(1)
    d = rng.dirichlet(np.ones(11), size=40)
    target = rng.integers(0, 11, 40) / 10
    grid = np.linspace(0, 1, 11)
    # The integral of (F - 1[x >= t])^2, piecewise constant between answers.
    steps = (np.cumsum(d, -1)[:, :-1] - (grid[:-1] >= target[:, None] - 1e-9)) ** 2
    assert metrics.crps(d, target) == pytest.approx(np.mean(steps.sum(-1) * 0.1), abs=1e-10)
    index = np.rint(target * 10).astype(int)
    assert metrics.nll(d, target) == pytest.approx(-np.mean(np.log(d[np.arange(40), index])))
    point = np.eye(11)[index]
    assert metrics.crps(point, target) == pytest.approx(0, abs=1e-15)
    assert metrics.coverage(point, target) == 1.0
    assert metrics.nll(point, target) == 0
    assert metrics.nll(np.roll(point, 1, -1), target) == np.inf
    uniform = np.full((11, 11), 1 / 11)
    # The central half of eleven equal answers: quantiles .25 and .75 are 0.2 and 0.8.
    assert metrics.coverage(uniform, grid, 0.5) == pytest.approx(7 / 11)
    assert np.isnan(metrics.crps(np.zeros((0, 11)), []))


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.roc_auc([0.1, 0.2], [0, 2]),
        lambda: metrics.roc_auc([0.1, np.nan], [0, 1]),
        lambda: metrics.roc_auc([0.1], [0, 1]),
        lambda: metrics.fpr_at_tpr([0.1, 0.2], [0, 1], 0),
        lambda: metrics.balanced_accuracy([0.3, 0.4], [0, 1]),
        lambda: metrics.mae([1], [1, 2]),
        lambda: metrics.mae([np.inf], [1]),
        lambda: metrics.accuracy_within([1], [1], -0.1),
        lambda: metrics.accuracy_within([1], [1], np.nan),
        lambda: metrics.reward_level([1.2]),
        lambda: metrics.reward_level([0.5], "down"),
        lambda: metrics.brier([1.5], [1]),
        lambda: metrics.ece([0.5], [1], bins=0),
        lambda: metrics.crps([[0.5, 0.4]], [0.5]),
        lambda: metrics.crps([[np.nan, 0.4]], [0.5]),
        lambda: metrics.coverage([[0.5, 0.5]], [0.5], level=1),
        lambda: metrics.column_normalised([[1, 2]]),
        lambda: metrics.direction_accuracy([1], [1], dead_zone=-1),
        lambda: metrics.false_triggers([[0.1]], [], 0.5),
    ],
)
def test_wrong_arguments_are_errors(call):
    with pytest.raises(ValueError):
        call()
