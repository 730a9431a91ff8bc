"""Order metrics: does the score rank frames of an episode, or episodes of a task, the right way?

Definitions follow the value-order correlation of GVL (Ma et al. 2024) and TOPReward, the Kendall
tau per combination and the preference accuracy of Robometer, and the hop accumulation of
Robo-Dopamine and VLAC. Peers differ in ties and in undefined cases; here both are arguments or
stated in the docstring.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from lrm_jax.evaluation.metrics import _checks

_UNDEFINED = ("nan", "zero", "drop")
_CHUNK = 4_000_000  # pair matrices are walked in blocks of about this many entries


def pearson(x, y) -> float:
    """Pearson's r of two vectors [n]; NaN for n < 2 or where either vector is constant."""
    x, y = _checks.pair(x, y, ("x", "y"), finite=True)
    if x.size < 2 or x.min() == x.max() or y.min() == y.max():
        return float("nan")
    # Scaling before and after keeps sums and squares of tiny or huge values in range.
    x, y = (v / np.abs(v).max() for v in (x, y))
    x, y = (v - v.mean() for v in (x, y))
    x, y = (v / np.abs(v).max() for v in (x, y))
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def spearman(x, y) -> float:
    """Spearman's rho [n], [n]: Pearson's r of average ranks; NaN as in `pearson`."""
    x, y = _checks.pair(x, y, ("x", "y"))
    return pearson(rankdata(x), rankdata(y))


def voc(values, method: str = "spearman", undefined: str = "nan", *, target=None, valid=None):
    """Value-order correlation: correlation of scores with time, 1 for a curve that only rises.

    Args:
      values: one curve [T], or a batch: [N, T] or N sequences of any lengths.
      method: "spearman" (GVL, TOPReward, VLAC) or "pearson" (Robometer).
      undefined: what a constant curve or one of fewer than two frames gives: "nan" (VLAC), "zero"
        (GVL, TOPReward, Robo-Dopamine) or "drop" (LRM; batches only: the row leaves the result).
        Whoever averages should use `voc_summary`, which counts the undefined curves.
      target: curve(s) shaped like values to correlate with instead of time; Robometer's "VOC" is
        method="pearson" with the target progress here, on successful episodes only.
      valid: bool mask(s) shaped like values. Invalid frames are left out and the others keep
        their own times. Without a mask NaN is a ValueError.

    Returns: a float for one curve, float64 [N] (fewer with "drop") for a batch.
    """
    if method not in ("spearman", "pearson"):
        raise ValueError(f"method must be 'spearman' or 'pearson', got {method!r}")
    if undefined not in _UNDEFINED:
        raise ValueError(f"undefined must be one of {_UNDEFINED}, got {undefined!r}")
    correlate = spearman if method == "spearman" else pearson

    def one(curve, reference, mask):
        curve, mask = _checks.masked(curve, mask, "values")
        reference = np.arange(curve.size) if reference is None else np.asarray(reference)
        _checks.same_length(curve, reference, ("values", "target"))
        return correlate(curve[mask], reference[mask])

    if not _checks.is_batch(values):
        if undefined == "drop":
            raise ValueError("undefined='drop' needs a batch of curves")
        result = one(values, target, valid)
        return 0.0 if undefined == "zero" and np.isnan(result) else result

    for name, other in (("target", target), ("valid", valid)):
        if other is not None:
            _checks.same_length(values, other, ("values", name))
    nothing = [None] * len(values)
    result = np.array(
        [
            one(*row)
            for row in zip(
                values,
                nothing if target is None else target,
                nothing if valid is None else valid,
                strict=True,
            )
        ],
        dtype=np.float64,
    )
    if undefined == "zero":
        return np.nan_to_num(result, nan=0.0)
    return result[~np.isnan(result)] if undefined == "drop" else result


class VocSummary(NamedTuple):
    """Mean over a batch; `undefined` of `n` curves had no VOC and entered as the mode says."""

    mean: float
    n: int
    undefined: int


def voc_summary(values, method="spearman", undefined="drop", *, target=None, valid=None):
    """Mean `voc` of a batch of curves with the count of undefined ones (see `VocSummary`).

    With "nan" a single undefined curve makes the mean NaN; with "drop" the mean is over the rest
    (NaN if none is left).
    """
    if len(values) == 0:
        return VocSummary(float("nan"), 0, 0)
    if not _checks.is_batch(values):
        raise ValueError("voc_summary needs a batch of curves")
    each = voc(values, method, "nan", target=target, valid=valid)
    bad = np.isnan(each)
    if undefined == "zero":
        each = np.where(bad, 0.0, each)
    elif undefined == "drop":
        each = each[~bad]
    elif undefined != "nan":
        raise ValueError(f"undefined must be one of {_UNDEFINED}, got {undefined!r}")
    return VocSummary(float(each.mean()) if each.size else float("nan"), len(bad), int(bad.sum()))


def monotonicity(values) -> float:
    """Share of steps of a curve [T] that do not go down (a constant gives 1); NaN for T < 2."""
    values = _checks.vector(values, "values")
    return float(np.mean(values[1:] >= values[:-1])) if values.size > 1 else float("nan")


def negative_rate(critics) -> float:
    """NR of VLAC: the share of pairwise critics [n] below zero; NaN for n = 0."""
    critics = _checks.vector(critics, "critics")
    return float(np.mean(critics < 0)) if critics.size else float("nan")


def accumulate_hops(hops, initial: float = 0.0) -> np.ndarray:
    """Progress from relative hops [n] in [-1, 1] (Robo-Dopamine): float64 [n].

    A hop h >= 0 covers the share h of what is left, V + h (1 - V); a hop h < 0 loses the share -h
    of what was won, V + h V. Accumulated from the end with pairs swapped, its `voc` is VOC-.
    """
    hops = _checks.vector(hops, "hops", finite=True)
    values, value = [], float(initial)
    for hop in hops:
        value += hop * (1.0 - value if hop >= 0 else value)
        values.append(value)
    return np.array(values, dtype=np.float64)


def accumulate_critics(critics, initial: float = 0.0) -> np.ndarray:
    """VLAC's "simple" value in percent from critics [n] in [-100, 100]: float64 [n + 1].

    Starts at `initial`; a critic c >= 0 covers c % of the rest to 100, c < 0 adds c % of the rest
    as well (20, -10, 50 gives 0, 20, 12, 56).
    """
    critics = _checks.vector(critics, "critics", finite=True)
    values = [float(initial)]
    for critic in critics:
        values.append(values[-1] + critic / 100.0 * (100.0 - values[-1]))
    return np.array(values, dtype=np.float64)


def _concordance(x: np.ndarray, y: np.ndarray) -> tuple[float, int, int, int]:
    """(C - D, pairs, pairs tied in x, pairs tied in y) over unordered pairs."""
    n = x.size
    balance = 0
    step = max(1, _CHUNK // max(n, 1))
    for start in range(0, n, step):
        rows = slice(start, start + step)
        sx = (x[rows, None] > x).astype(np.int8) - (x[rows, None] < x)
        sy = (y[rows, None] > y).astype(np.int8) - (y[rows, None] < y)
        balance += int((sx * sy).sum(dtype=np.int64))

    def tied(v):
        counts = np.unique(v, return_counts=True)[1].astype(np.int64)
        return int((counts * (counts - 1) // 2).sum())

    return balance / 2, n * (n - 1) // 2, tied(x), tied(y)


def kendall_tau(x, y, variant: str = "b") -> float:
    """Kendall's tau of two vectors [n].

    variant "a": (C - D) / (n (n - 1) / 2), tied pairs count in neither C nor D (so constants give
    0); "b": (C - D) / sqrt((P - T_x) (P - T_y)), NaN where either vector is constant. NaN for
    n < 2 in both.
    """
    if variant not in ("a", "b"):
        raise ValueError(f"variant must be 'a' or 'b', got {variant!r}")
    x, y = _checks.pair(x, y, ("x", "y"))
    balance, pairs, tied_x, tied_y = _concordance(x, y)
    scale = pairs if variant == "a" else np.sqrt(float(pairs - tied_x) * (pairs - tied_y))
    return float(balance / scale) if scale > 0 else float("nan")


def pairwise_accuracy(scores, labels, tasks=None, average: str = "micro") -> float:
    """Share of unordered pairs with different labels whose better member scores higher.

    Ties in the score count one half, so constant scores give 0.5 whatever their order, and with
    0/1 labels the value is the ROC-AUC.

    Args:
      scores: [n]. labels: [n], a higher label is better.
      tasks: [n] task of each entry; only pairs inside one task count. None: all are one task.
      average: "micro" over pairs or "macro" over tasks (tasks without such a pair do not enter;
        `per_task` reports how many).

    Returns: a float; NaN where no pair has different labels.
    """
    if average not in ("micro", "macro"):
        raise ValueError(f"average must be 'micro' or 'macro', got {average!r}")
    scores, labels = _checks.pair(scores, labels, ("scores", "labels"))
    won, pairs = [], []
    for rows in _groups(tasks, len(scores)):
        s, y = scores[rows], labels[rows]
        balance, total, _, tied = _concordance(s, y)
        # C + D + (ties in s alone) = pairs with different labels; C + half the ties = (m + C - D)/2
        pairs.append(total - tied)
        won.append((total - tied + balance) / 2)
    won, pairs = np.array(won), np.array(pairs)
    if not pairs.size or not pairs.any():
        return float("nan")
    if average == "micro":
        return float(won.sum() / pairs.sum())
    return float(np.mean(won[pairs > 0] / pairs[pairs > 0]))


def preference_accuracy(chosen_scores, rejected_scores) -> float:
    """Share of pairs [n], [n] whose chosen member scores higher, ties one half; NaN for n = 0."""
    chosen, rejected = _checks.pair(
        chosen_scores, rejected_scores, ("chosen_scores", "rejected_scores")
    )
    if not chosen.size:
        return float("nan")
    return float(np.mean((chosen > rejected) + 0.5 * (chosen == rejected)))


def aggregate_curve(values, how: str = "last") -> float:
    """One number for a progress curve [T >= 1]: "last" (Robometer's headline), "sum", "average"."""
    values = _checks.vector(values, "values")
    if not values.size:
        raise ValueError("a curve needs at least one frame")
    reductions = {"last": lambda v: v[-1], "sum": np.sum, "average": np.mean}
    if how not in reductions:
        raise ValueError(f"how must be one of {tuple(reductions)}, got {how!r}")
    return float(reductions[how](values))


class PerTask(NamedTuple):
    """`macro`: mean over the tasks where the metric is defined (NaN if none); `by_task`: all of
    them, NaN included; `undefined`: how many tasks had no value."""

    macro: float
    by_task: dict
    undefined: int


def per_task(metric: Callable, scores, labels, tasks) -> PerTask:
    """Apply `metric(scores, labels) -> float` inside each task and average over tasks."""
    _checks.same_length(scores, labels, ("scores", "labels"))
    scores, labels, tasks = np.asarray(scores), np.asarray(labels), np.asarray(tasks)
    by_task = {
        tasks[rows[0]].item(): float(metric(scores[rows], labels[rows]))
        for rows in _groups(tasks, len(scores))
    }
    return _per_task(by_task)


def robometer_tau(scores, qualities, tasks) -> PerTask:
    """Kendall tau_a per combination, as Robometer's tables define it.

    Inside a task, every tuple that picks one trajectory of each quality label present (failure 1 <
    suboptimal 2 < successful 3) gives a tau_a; the task's value is the mean over tuples. A task
    with a single quality is undefined (NaN).

    Args: scores [n] (see `aggregate_curve`), qualities [n], tasks [n].
    """
    scores, qualities = _checks.pair(scores, qualities, ("scores", "qualities"))
    tasks = np.asarray(tasks)
    by_task = {}
    for rows in _groups(tasks, len(scores)):
        labels = np.unique(qualities[rows])
        groups = [scores[rows][qualities[rows] == label] for label in labels]
        # The mean over tuples of tau_a is the mean over label pairs of P(higher) - P(lower),
        # because every pair of members meets in the same number of tuples.
        pairs = [
            np.mean(np.sign(high[:, None] - low[None, :]))
            for low, high in itertools.combinations(groups, 2)
        ]
        by_task[tasks[rows[0]].item()] = float(np.mean(pairs)) if pairs else float("nan")
    return _per_task(by_task)


def group_mean(values, groups) -> PerTask:
    """Mean of `values` [n] per group [n] and the mean over groups (macro), each group alike."""
    values = _checks.vector(values, "values")
    groups = np.asarray(groups)
    return _per_task(
        {
            groups[rows[0]].item(): float(values[rows].mean())
            for rows in _groups(groups, len(values))
        }
    )


def _per_task(by_task: dict) -> PerTask:
    values = np.array(list(by_task.values()), dtype=np.float64)
    defined = ~np.isnan(values)
    mean = float(values[defined].mean()) if defined.any() else float("nan")
    return PerTask(mean, by_task, int((~defined).sum()))


def _groups(tasks: Sequence | np.ndarray | None, n: int) -> list[np.ndarray]:
    """Row indices of each task, tasks in order of first appearance."""
    if tasks is None:
        return [np.arange(n)]
    tasks = np.asarray(tasks)
    if tasks.shape != (n,):
        raise ValueError(f"tasks must have shape ({n},), got {tasks.shape}")
    _, first, code = np.unique(tasks, return_index=True, return_inverse=True)
    return [np.flatnonzero(code == k) for k in np.argsort(first)]
