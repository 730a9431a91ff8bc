"""Closed scoring beside generated text on the same frames: do they say the same, and which is right
more often?

Closed scoring reads probabilities, so it ranks; text names one answer and may be unreadable. Both
are compared where the text was read, and the share that was not is stated beside it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from lrm_jax.evaluation import stats
from lrm_jax.evaluation.metrics import errors, success


@dataclasses.dataclass(frozen=True)
class Answers:
    """What one head said about M frames (or pairs), both ways, and the truth.

    closed: float [M], the expectation under the answers' probabilities. likeliest: float [M], the
    value of the most probable answer. generated: float [M], the value of the written answer, NaN
    where it could not be read. truth: float [M], NaN where there is none: progress in [0, 1], 0 or
    1 for completion, -1 or 1 for contrastive.
    """

    closed: np.ndarray
    likeliest: np.ndarray
    generated: np.ndarray
    truth: np.ndarray

    def __post_init__(self):
        shapes = {np.shape(getattr(self, f.name)) for f in dataclasses.fields(self)}
        if len(shapes) != 1 or len(shapes.copy().pop()) != 1:
            raise ValueError(f"answers need vectors of one length, got shapes {sorted(shapes)}")


def compare(said: Answers, values: Sequence[float]) -> dict:
    """How far text and probabilities agree, and how right each is.

    Args:
      values: what the head's answers mean. With more than two the truth is a quantity (progress)
        and errors are mean absolute; else rightness is the area under the ROC curve.

    Returns: a dict that JSON can hold; undefined values are None:
      answers, unreadable: counts; unreadable_share: [value, low, high] (Wilson, 95 %)
      agreement: [value, low, high], of the readable answers those that name the likeliest answer
      undecided: [value, low, high], of them those between two answers: a comparison that was
        answered otherwise in the other order. agreement_decided: as agreement, without those.
      mean_difference: mean |closed - generated| over the readable
      judged: readable answers with a truth; all below over them
      closed, likeliest, generated: {"mae"} or {"auc", "accuracy"}; accuracy of a sign or of the
        nearer of 0 and 1, ties counting one half
      closed_on_all: the same of `closed` over every frame with a truth, read or not
    """
    total = len(said.closed)
    read = np.isfinite(said.generated) & np.isfinite(said.closed)
    unread = int(total - np.isfinite(said.generated).sum())
    same = np.abs(said.likeliest - said.generated)[read] < 1e-6
    between = np.zeros(len(same), bool)
    if len(values) == 2:  # answers that contradict each other in the two orders have this mean
        between = np.abs(said.generated[read] - sum(values) / 2) < 1e-6
    found = {
        "answers": total,
        "unreadable": unread,
        "unreadable_share": _share(unread, total),
        "agreement": _share(int(same.sum()), len(same)),
        "undecided": _share(int(between.sum()), len(same)),
        "agreement_decided": _share(int(same[~between].sum()), int((~between).sum())),
        "mean_difference": _number(np.abs(said.closed - said.generated)[read].mean())
        if read.any()
        else None,
    }
    judged = read & np.isfinite(said.truth)
    everywhere = np.isfinite(said.closed) & np.isfinite(said.truth)
    right = _errors if len(values) > 2 else _ranks
    found["judged"] = int(judged.sum())
    for name in ("closed", "likeliest", "generated"):
        found[name] = right(getattr(said, name)[judged], said.truth[judged])
    found["closed_on_all"] = right(said.closed[everywhere], said.truth[everywhere])
    return found


def _errors(values: np.ndarray, truth: np.ndarray) -> dict:
    return {"mae": _number(errors.mae(values, truth)) if len(values) else None}


def _ranks(values: np.ndarray, truth: np.ndarray) -> dict:
    if len(np.unique(truth)) < 2:
        return {"auc": None, "accuracy": None}
    labels, middle = truth == truth.max(), (truth.max() + truth.min()) / 2
    right = np.where(values == middle, 0.5, (values > middle) == labels)
    return {"auc": _number(success.roc_auc(values, labels)), "accuracy": _number(right.mean())}


def _share(k: int, n: int) -> list[float] | None:
    return [k / n, *map(float, stats.wilson(k, n))] if n else None


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
