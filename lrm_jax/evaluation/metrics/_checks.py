"""Input checks that all metrics share.

The rule of the package: an entry that could not be computed is an error or a number that the caller
gets back, never a row that quietly goes missing. A metric that takes no `valid` mask therefore
refuses NaN; the caller drops such rows in the open and knows how many there were.
"""

import numpy as np


def vector(values, name: str, *, finite: bool = False) -> np.ndarray:
    """A float64 [n] array without NaN (and without infinities where `finite`); ValueError else."""
    array = np.asarray(values)
    if array.dtype == object:
        raise ValueError(f"{name} holds entries that are not numbers (None marks an invalid score)")
    if array.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {array.shape}")
    array = array.astype(np.float64)
    if np.isnan(array).any():
        raise ValueError(
            f"{name} holds {int(np.isnan(array).sum())} NaN of {array.size}; "
            "drop invalid entries yourself and report how many there were"
        )
    if finite and np.isinf(array).any():
        raise ValueError(f"{name} holds infinite entries")
    return array


def pair(first, second, names: tuple[str, str], *, finite: bool = False):
    """Two checked vectors of one length."""
    first = vector(first, names[0], finite=finite)
    second = vector(second, names[1], finite=finite)
    same_length(first, second, names)
    return first, second


def same_length(first, second, names: tuple[str, str]) -> None:
    if len(first) != len(second):
        raise ValueError(
            f"{names[0]} and {names[1]} differ in length: {len(first)} and {len(second)}"
        )


def binary(labels, name: str) -> np.ndarray:
    """A bool [n] array from booleans or from numbers that are all 0 or 1."""
    array = np.asarray(labels)
    if array.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {array.shape}")
    if array.dtype == bool:
        return array
    if array.dtype == object or not np.isin(array, (0, 1)).all():
        raise ValueError(f"{name} must be booleans or 0/1")
    return array.astype(bool)


def probabilities(values, name: str) -> np.ndarray:
    """A vector inside [0, 1] (float32 rounding above 1 is taken for 1)."""
    array = vector(values, name, finite=True)
    slack = 4 * np.finfo(np.float32).eps
    if array.size and (array.min() < -slack or array.max() > 1 + slack):
        raise ValueError(f"{name} must lie in [0, 1], got [{array.min():g}, {array.max():g}]")
    return np.clip(array, 0.0, 1.0)


def masked(values, valid, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A float64 [n] array and a bool [n] mask; NaN is allowed only where the mask says invalid."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {array.shape}")
    if valid is None:
        return vector(array, name), np.ones(array.shape, bool)
    valid = binary(valid, "valid")
    same_length(array, valid, (name, "valid"))
    vector(array[valid], name)
    return array, valid


def is_batch(values) -> bool:
    """Whether `values` is a batch of curves ([N, T] or N sequences) rather than one curve [T]."""
    if isinstance(values, np.ndarray):
        if values.ndim not in (1, 2):
            raise ValueError(f"values must be [T] or [N, T], got shape {values.shape}")
        return values.ndim == 2 or values.dtype == object
    return any(np.ndim(v) > 0 for v in values)
