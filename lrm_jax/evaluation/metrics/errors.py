"""Error metrics of progress in [0, 1] and of the five-level reward of RoboReward."""

from typing import NamedTuple

import numpy as np

from lrm_jax.evaluation.metrics import _checks

_NAMES = ("pred", "target")


def mae(pred, target) -> float:
    """Mean |pred - target| over [n]; NaN for n = 0."""
    pred, target = _checks.pair(pred, target, _NAMES, finite=True)
    return float(np.mean(np.abs(pred - target))) if pred.size else float("nan")


def rmse(pred, target) -> float:
    """Root of the mean squared error over [n]; NaN for n = 0."""
    pred, target = _checks.pair(pred, target, _NAMES, finite=True)
    return float(np.sqrt(np.mean(np.square(pred - target)))) if pred.size else float("nan")


def bias(pred, target) -> float:
    """Mean of pred - target over [n] (positive: too optimistic); NaN for n = 0."""
    pred, target = _checks.pair(pred, target, _NAMES, finite=True)
    return float(np.mean(pred - target)) if pred.size else float("nan")


def within(pred, target, delta: float) -> np.ndarray:
    """Bool [n]: |pred - target| <= delta, the edge included.

    The edge holds for decimal inputs as well: |0.9 - 0.7| counts as 0.2. The slack is the rounding
    of the inputs and of their difference in the coarser of the two dtypes, a few 1e-16 (float64)
    or 1e-7 (float32), so no other value can slip in.
    """
    if not delta >= 0:
        raise ValueError(f"delta must be >= 0, got {delta}")
    eps = max(
        (np.finfo(a.dtype).eps for a in map(np.asarray, (pred, target)) if a.dtype.kind == "f"),
        default=np.finfo(np.float64).eps,
    )
    pred, target = _checks.pair(pred, target, _NAMES, finite=True)
    slack = eps * (np.abs(pred) + np.abs(target) + delta)
    return np.abs(pred - target) <= delta + slack


def accuracy_within(pred, target, delta: float) -> float:
    """Share of [n] predictions with |pred - target| <= delta (see `within`); NaN for n = 0."""
    inside = within(pred, target, delta)
    return float(inside.mean()) if inside.size else float("nan")


def reward_level(progress, rounding: str = "half_even") -> np.ndarray:
    """RoboReward level 1...5 (int [n]) of progress p in [0, 1]: 1 + 4 p rounded.

    The cuts are 0.125, 0.375, 0.625, 0.875. A value on a cut goes to the even bin of 0...4 with
    "half_even" (Python's round: 0.125 -> level 1, 0.375 -> 3, 0.625 -> 3) and up with "half_up"
    (2, 3, 4).
    """
    scaled = 4.0 * _checks.probabilities(progress, "progress")
    if rounding == "half_even":
        bins = np.rint(scaled)
    elif rounding == "half_up":
        bins = np.floor(scaled + 0.5)
    else:
        raise ValueError(f"rounding must be 'half_even' or 'half_up', got {rounding!r}")
    return bins.astype(np.int64) + 1


class LevelErrors(NamedTuple):
    """Errors of level predictions: shares, mean absolute and mean signed error, counts
    int [classes, classes] with the target in rows and the prediction in columns."""

    exact: float
    within_one: float
    mae: float
    bias: float
    confusion: np.ndarray


def level_errors(pred, target, classes=(1, 2, 3, 4, 5)) -> LevelErrors:
    """Errors of int levels [n], [n] taken from `classes`; NaN for n = 0."""
    counts = confusion(pred, target, classes)
    pred, target = _checks.pair(pred, target, _NAMES)
    return LevelErrors(
        exact=accuracy_within(pred, target, 0),
        within_one=accuracy_within(pred, target, 1),
        mae=mae(pred, target),
        bias=bias(pred, target),
        confusion=counts,
    )


def confusion(pred, target, classes) -> np.ndarray:
    """Counts int64 [C, C], targets in rows, predictions in columns; foreign values: ValueError."""
    pred, target = _checks.pair(pred, target, _NAMES)
    classes = np.asarray(classes)
    for values, name in ((pred, "pred"), (target, "target")):
        if not np.isin(values, classes).all():
            raise ValueError(f"{name} holds values outside of the classes {classes.tolist()}")
    counts = (target[:, None] == classes)[:, :, None] & (pred[:, None] == classes)[:, None, :]
    return counts.sum(axis=0, dtype=np.int64)
