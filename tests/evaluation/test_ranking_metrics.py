"""Order metrics: the fixed numbers of the literature, then scipy and scikit-learn as oracles."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score

from lrm_jax.evaluation import metrics

ROUNDING = 1e-12  # sums of at most a few dozen products of order one in float64

# TOPReward's MIT tests; tau_b computed.
TINY = [
    ([25, 100, 0], -0.5, -1 / 3),
    ([0, 100, 50], 0.5, 1 / 3),
    ([10, 20, 20, 30, 30, 40], 0.9710083124552246, 0.9309493362512627),
    ([1, 3, 2, 4, 3, 5], 0.8116794499134278, 0.6900655593423541),
    ([1, 2, 3, 4, 3, 2, 1], 0.0, 0.0),
    ([2, 0, 4, 1, 3], 0.3, 0.2),
]

# Published curves (rewardscope): values, VOC as printed there, its tolerance, tau_b, tau_a.
CLOTHES_GVL = [
    0.6, 0, 0.5, 0.7, 0.8, 0.1, 0.4, 0.4, 0, 0.8, 0.2, 0.1, 0.7, 0.6, 0.9, 0.9, 0.3, 0.3, 0.2, 0.5,
]  # fmt: skip
CUBES_GVL = [0.2, 0.4, 0.2, 0.4, 0, 0.6, 0.2, 0.8, 0.2, 1]
CUBES_DIRECT = [0, 0.2, 0.2, 0.2, 0.2, 0.4, 0.4, 0.6, 0.8, 0.8]
PUBLISHED = [
    (CLOTHES_GVL, 0.0633966778, 1e-10, None, 0.052632),
    (CUBES_GVL, 0.3952193658051665, ROUNDING, 0.338556, 0.311111),
    (CUBES_DIRECT, 0.9629500128629351, ROUNDING, 0.906765, 0.822222),
]

# Robometer's page, RBM-EVAL-OOD: VOC Pearson, rows of nine methods, and the printed means.
VOC_OOD = """.102 .356 .842 .480 .909 .909 .959 .772 .949
.176 .074 .847 .384 .866 .916 .969 .585 .967
.542 .256 .647 .390 .781 .726 .925 .226 .910
.282 .454 .840 .160 .896 .914 .951 .435 .980
.268 .601 .733 .471 .896 .899 .868 .531 .945
.203 .511 .868 .497 .926 .930 .888 .497 .916"""
VOC_OOD_MEANS = ".262 .375 .796 .397 .879 .882 .927 .508 .9445"
TAU_OOD = """.250 .292 .271 .479 .167 .625 .625 .583 -.125 .625
-.008 .167 .064 .442 .183 .332 .264 .533 .336 .477
.292 -.111 -.417 .333 -.292 .333 .389 .646 .028 .569
.056 .167 .139 .431 -.111 .528 .347 .403 -.167 .750
.306 -.017 .072 .333 .286 .494 .396 .479 .080 .572
.300 -.033 .167 .700 .533 .700 .767 .667 -.067 .867"""
TAU_OOD_MEANS = ".199 .077 .049 .453 .128 .502 .465 .552 .014 .643"

levels = st.integers(0, 4).map(float)
curves = st.lists(levels, min_size=2, max_size=25)


def paired(draw_labels):
    return st.integers(2, 25).flatmap(
        lambda n: st.tuples(
            st.lists(levels, min_size=n, max_size=n),
            st.lists(draw_labels, min_size=n, max_size=n),
        )
    )


@pytest.mark.parametrize("values, rho, tau", TINY)
def test_tiny_exact_cases(values, rho, tau):
    assert metrics.voc(values) == pytest.approx(rho, abs=ROUNDING)
    assert metrics.kendall_tau(values, range(len(values))) == pytest.approx(tau, abs=ROUNDING)


@pytest.mark.parametrize("values, rho, tolerance, tau_b, tau_a", PUBLISHED)
def test_published_curves(values, rho, tolerance, tau_b, tau_a):
    time = np.arange(len(values))
    assert metrics.voc(values) == pytest.approx(rho, abs=tolerance)
    half_digit = 5.1e-7  # printed to six digits
    assert metrics.kendall_tau(values, time, "a") == pytest.approx(tau_a, abs=half_digit)
    if tau_b is not None:
        assert metrics.kendall_tau(values, time, "b") == pytest.approx(tau_b, abs=half_digit)


@pytest.mark.parametrize("values", [[0.5, 0.5, 0.5], [0.1] * 7, [3.0], []])
def test_undefined_voc_is_an_argument(values):
    for method in ("spearman", "pearson"):
        assert np.isnan(metrics.voc(values, method))
        assert metrics.voc(values, method, undefined="zero") == 0.0
    with pytest.raises(ValueError, match="batch"):
        metrics.voc(values, undefined="drop")


def test_constants_have_no_tau_b_and_a_tau_a_of_zero():
    assert np.isnan(metrics.kendall_tau([1, 1, 1], [1, 2, 3]))
    assert metrics.kendall_tau([1, 1, 1], [1, 2, 3], "a") == 0.0
    assert np.isnan(metrics.kendall_tau([1], [1], "a"))


def test_voc_of_a_batch_counts_the_undefined():
    batch = [[0, 0.5, 1], [0.2, 0.2], [3, 2, 1, 0]]
    np.testing.assert_allclose(metrics.voc(batch), [1, np.nan, -1])
    np.testing.assert_allclose(metrics.voc(batch, undefined="zero"), [1, 0, -1])
    np.testing.assert_allclose(metrics.voc(batch, undefined="drop"), [1, -1])
    assert metrics.voc_summary(batch) == (0.0, 3, 1)
    assert metrics.voc_summary(batch[:2], undefined="zero") == (0.5, 2, 1)
    assert np.isnan(metrics.voc_summary(batch, undefined="nan").mean)
    assert np.isnan(metrics.voc_summary([]).mean)
    array = np.array([[0.0, 1, 2], [2, 1, 0]])
    np.testing.assert_allclose(metrics.voc(array), [1, -1])


def test_voc_keeps_the_times_of_valid_frames():
    values, valid = [0.0, np.nan, 0.5, 0.4], [True, False, True, True]
    expected = scipy_stats.pearsonr([0, 2, 3], [0, 0.5, 0.4])[0]
    assert metrics.voc(values, "pearson", valid=valid) == pytest.approx(expected, abs=ROUNDING)
    with pytest.raises(ValueError, match="1 NaN of 4"):
        metrics.voc(values)
    with pytest.raises(ValueError, match="NaN"):
        metrics.voc(values, valid=[True, True, True, False])


def test_robometers_voc_correlates_with_the_target():
    prediction, target = [0.1, 0.4, 0.5, 0.9], [0.0, 0.5, 0.5, 1.0]
    expected = scipy_stats.pearsonr(prediction, target)[0]
    assert metrics.voc(prediction, "pearson", target=target) == pytest.approx(expected)
    batch = metrics.voc([prediction, target], "pearson", target=[target, target])
    np.testing.assert_allclose(batch, [expected, 1.0])


@given(paired(levels))
@settings(max_examples=50, deadline=None)
def test_tau_and_correlations_agree_with_scipy(pair):
    x, y = map(np.array, pair)
    if x.min() == x.max() or y.min() == y.max():
        assert np.isnan(metrics.kendall_tau(x, y)) and np.isnan(metrics.spearman(x, y))
        assert np.isnan(metrics.pearson(x, y))
        return
    assert metrics.kendall_tau(x, y) == pytest.approx(
        scipy_stats.kendalltau(x, y, variant="b").statistic, abs=ROUNDING
    )
    assert metrics.spearman(x, y) == pytest.approx(
        scipy_stats.spearmanr(x, y).statistic, abs=ROUNDING
    )
    assert metrics.pearson(x, y) == pytest.approx(
        scipy_stats.pearsonr(x, y).statistic, abs=ROUNDING
    )
    signs = [
        np.sign(x[i] - x[j]) * np.sign(y[i] - y[j])
        for i, j in itertools.combinations(range(x.size), 2)
    ]
    assert metrics.kendall_tau(x, y, "a") == pytest.approx(np.mean(signs), abs=ROUNDING)


@given(
    hnp.arrays(
        np.float64, st.integers(2, 6), elements=st.floats(allow_nan=False, allow_infinity=False)
    )
)
@settings(max_examples=50, deadline=None)
def test_pearson_survives_any_finite_values(values):
    r = metrics.voc(values, "pearson")
    assert np.isnan(r) == (values.min() == values.max())
    assert np.isnan(r) or -1 <= r <= 1


def test_long_vectors_are_walked_in_blocks():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 50, (2, 5000))
    assert metrics.kendall_tau(x, y) == pytest.approx(
        scipy_stats.kendalltau(x, y).statistic, abs=ROUNDING
    )


@given(paired(st.booleans()))
@settings(max_examples=50, deadline=None)
def test_pairwise_accuracy_of_binary_labels_is_the_auc(pair):
    scores, labels = map(np.array, pair)
    value = metrics.pairwise_accuracy(scores, labels)
    if labels.all() or not labels.any():
        assert np.isnan(value)
    else:
        assert value == pytest.approx(roc_auc_score(labels, scores), abs=ROUNDING)


def test_pairwise_accuracy_does_not_depend_on_the_order_of_rows():
    """A peer's strict comparison gives constants 1.0 or 0.0 by the order of the labels."""
    for labels in ([1, 1, 2, 2, 3, 3], [3, 3, 2, 2, 1, 1], [2, 1, 3, 2, 1, 3]):
        assert metrics.pairwise_accuracy([0.4] * 6, labels) == 0.5


@given(paired(levels), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_pairwise_accuracy_by_task_against_a_plain_loop(pair, n_tasks):
    scores, labels = pair
    tasks = [f"task {i % n_tasks}" for i in range(len(scores))]
    won = {}
    for i, j in itertools.combinations(range(len(scores)), 2):
        if tasks[i] == tasks[j] and labels[i] != labels[j]:
            if scores[i] == scores[j]:
                point = 0.5
            else:
                point = float((scores[i] > scores[j]) == (labels[i] > labels[j]))
            won.setdefault(tasks[i], []).append(point)
    micro = metrics.pairwise_accuracy(scores, labels, tasks)
    macro = metrics.pairwise_accuracy(scores, labels, tasks, average="macro")
    if not won:
        assert np.isnan(micro) and np.isnan(macro)
    else:
        assert micro == pytest.approx(np.mean(np.concatenate(list(won.values()))), abs=ROUNDING)
        assert macro == pytest.approx(np.mean([np.mean(w) for w in won.values()]), abs=ROUNDING)


def test_accumulations():
    hops = metrics.accumulate_hops([0.2, -0.1, 0.5, -0.5, 1])
    np.testing.assert_allclose(hops, [0.2, 0.18, 0.59, 0.295, 1], atol=ROUNDING)
    np.testing.assert_allclose(
        metrics.accumulate_critics([20, -10, 50]), [0, 20, 12, 56], atol=100 * ROUNDING
    )
    assert metrics.negative_rate([20, -10, 50, -1]) == 0.5


@pytest.mark.parametrize("rows, means", [(VOC_OOD, VOC_OOD_MEANS), (TAU_OOD, TAU_OOD_MEANS)])
def test_macro_means_of_robometers_tables(rows, means):
    values = np.array([[float(v) for v in row.split()] for row in rows.splitlines()])
    datasets = np.repeat(["Franka", "Koch", "Trossen", "xArm", "MIT", "SO101"], values.shape[1])
    by_dataset = metrics.group_mean(values.ravel(), datasets).by_task
    np.testing.assert_allclose(list(by_dataset.values()), values.mean(axis=1))
    methods = np.tile(np.arange(values.shape[1]), values.shape[0])
    computed = metrics.group_mean(values.ravel(), methods).by_task
    # Entries and means are printed to three digits, so a mean of entries is off by up to 1e-3.
    np.testing.assert_allclose(
        list(computed.values()), [float(m) for m in means.split()], atol=1.001e-3
    )


@given(
    st.lists(st.tuples(levels, st.integers(1, 3), st.sampled_from("ab")), min_size=1, max_size=9)
)
@settings(max_examples=50, deadline=None)
def test_robometers_tau_against_all_tuples(rows):
    scores, qualities, tasks = map(list, zip(*rows, strict=True))
    result = metrics.robometer_tau(scores, qualities, tasks)
    expected = {}
    for task in sorted(set(tasks)):
        members = [
            [s for s, q, t in rows if q == quality and t == task]
            for quality in sorted({q for _, q, t in rows if t == task})
        ]
        if len(members) < 2:
            expected[task] = np.nan
            continue
        expected[task] = np.mean(
            [metrics.kendall_tau(c, range(len(c)), "a") for c in itertools.product(*members)]
        )
    assert set(result.by_task) == set(expected)
    for task, value in expected.items():
        np.testing.assert_allclose(result.by_task[task], value, atol=ROUNDING)
    defined = [v for v in expected.values() if not np.isnan(v)]
    assert result.undefined == len(expected) - len(defined)
    np.testing.assert_allclose(result.macro, np.mean(defined) if defined else np.nan, atol=ROUNDING)


def test_per_task_and_small_ones():
    result = metrics.per_task(
        metrics.roc_auc, [0.9, 0.1, 0.3, 0.4], [True, False, True, True], ["a", "a", "b", "b"]
    )
    assert result.by_task["a"] == 1.0 and np.isnan(result.by_task["b"])
    assert result.macro == 1.0 and result.undefined == 1
    assert metrics.monotonicity([0, 0, 1, 0.5]) == pytest.approx(2 / 3)
    assert np.isnan(metrics.monotonicity([1]))
    assert metrics.preference_accuracy([1, 2, 3, 0], [0, 2, 1, 1]) == pytest.approx(2.5 / 4)
    assert np.isnan(metrics.preference_accuracy([], []))
    assert [metrics.aggregate_curve([1, 2, 6], h) for h in ("last", "sum", "average")] == [6, 9, 3]


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.voc([1, 2], method="kendall"),
        lambda: metrics.voc([1, 2], undefined="skip"),
        lambda: metrics.voc([[1, 2], [3, 4]], valid=[[True, True]]),
        lambda: metrics.voc(np.zeros((2, 2, 2))),
        lambda: metrics.voc([0.1, None]),
        lambda: metrics.kendall_tau([1, 2], [1, 2, 3]),
        lambda: metrics.kendall_tau([1, 2], [1, 2], "c"),
        lambda: metrics.pairwise_accuracy([1, 2], [1]),
        lambda: metrics.pairwise_accuracy([1, 2], [1, 2], tasks=["a"]),
        lambda: metrics.pairwise_accuracy([1, 2], [1, 2], average="mean"),
        lambda: metrics.aggregate_curve([]),
        lambda: metrics.pearson([np.inf, 1], [1, 2]),
    ],
)
def test_wrong_arguments_are_errors(call):
    with pytest.raises(ValueError):
        call()
