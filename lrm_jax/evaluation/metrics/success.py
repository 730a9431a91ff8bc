"""Success detection: frames and episodes judged done or not, and what false alarms cost online."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from lrm_jax.evaluation.metrics import _checks

_NAMES = ("scores", "labels")


def _scores_and_labels(scores, labels):
    scores, labels = _checks.vector(scores, "scores"), _checks.binary(labels, "labels")
    _checks.same_length(scores, labels, _NAMES)
    return scores, labels


def roc_auc(scores, labels) -> float:
    """Area under the ROC curve: P(score of a positive > of a negative), ties one half.

    scores [n], labels bool or 0/1 [n]. NaN where a class is missing (so for n = 0).
    """
    scores, labels = _scores_and_labels(scores, labels)
    positives = int(labels.sum())
    negatives = labels.size - positives
    if not positives or not negatives:
        return float("nan")
    rank_sum = rankdata(scores)[labels].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def _threshold_counts(scores, labels):
    """True and false positives at each distinct threshold, from strict to lax: two int arrays."""
    order = np.argsort(-scores, kind="stable")
    scores, labels = scores[order], labels[order]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
    true = np.cumsum(labels)[last]
    return true, last + 1 - true


def average_precision(scores, labels) -> float:
    """AUPRC as the sum of precision times gain in recall over distinct thresholds (no
    interpolation, scikit-learn's definition). NaN without a positive."""
    scores, labels = _scores_and_labels(scores, labels)
    if not labels.any():
        return float("nan")
    true, false = _threshold_counts(scores, labels)
    gain = np.diff(true, prepend=0) / labels.sum()
    return float(np.sum(gain * true / (true + false)))


def fpr_at_tpr(scores, labels, tpr: float = 0.95) -> float:
    """Smallest false positive rate among thresholds that reach at least `tpr`.

    NaN where a class is missing. tpr in (0, 1].
    """
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr must be in (0, 1], got {tpr}")
    scores, labels = _scores_and_labels(scores, labels)
    positives = int(labels.sum())
    if not positives or positives == labels.size:
        return float("nan")
    true, false = _threshold_counts(scores, labels)
    # Counts, not rates, decide: 0.95 of 20 is 19, whatever 19 / 20 rounds to.
    needed = int(np.ceil(tpr * positives - 1e-9))
    return float(false[np.argmax(true >= needed)] / (labels.size - positives))


class Detection(NamedTuple):
    """Rates of a yes/no detector; NaN where the class that a rate needs is missing."""

    tpr: float
    tnr: float
    precision: float
    f1: float
    balanced_accuracy: float


def detection(predictions, labels, threshold: float | None = None) -> Detection:
    """Rates of predictions [n] against labels [n].

    predictions are booleans or 0/1; with a `threshold` they are scores and s >= threshold means
    yes. For failure detection hand in both negated: `detection(~says_success, ~success)`.
    """
    if threshold is None:
        yes, labels = _checks.binary(predictions, "predictions"), _checks.binary(labels, "labels")
        _checks.same_length(yes, labels, ("predictions", "labels"))
    else:
        scores, labels = _scores_and_labels(predictions, labels)
        yes = scores >= threshold
    hits, alarms = int((yes & labels).sum()), int((yes & ~labels).sum())
    positives = int(labels.sum())
    negatives = labels.size - positives

    def ratio(a, b):
        return a / b if b else float("nan")

    tpr, tnr = ratio(hits, positives), ratio(negatives - alarms, negatives)
    return Detection(
        tpr=tpr,
        tnr=tnr,
        precision=ratio(hits, hits + alarms),
        f1=ratio(2 * hits, positives + hits + alarms),
        balanced_accuracy=(tpr + tnr) / 2,
    )


def balanced_accuracy(predictions, labels, threshold: float | None = None) -> float:
    """Mean of TPR and TNR (arguments as in `detection`); NaN where a class is missing."""
    return detection(predictions, labels, threshold).balanced_accuracy


def success_failure_gap(scores, success) -> float:
    """Mean score of successful episodes minus that of failed ones; NaN where either is missing.

    scores [n] (usually the last frame's), success bool [n]. Per task: `per_task(...)`.
    """
    scores, success = _scores_and_labels(scores, success)
    if not success.any() or success.all():
        return float("nan")
    return float(scores[success].mean() - scores[~success].mean())


class FalseTriggers(NamedTuple):
    """What a threshold does before the true success.

    episode_rate: share of episodes with at least one false trigger (a frame at or above the
      threshold before the success, or anywhere in an episode that never succeeds);
    per_episode: mean number of rising edges before the success, so a stay above counts once;
    frame_rate: share of the frames before success at or above the threshold;
    episodes: how many had a valid frame before success, the base of the first two;
    without_frames: how many had none (success at frame 0, or all invalid) and enter nothing;
    invalid_frames: frames before success that the mask left out.
    """

    episode_rate: float
    per_episode: float
    frame_rate: float
    episodes: int
    without_frames: int
    invalid_frames: int


def false_triggers(
    curves: Sequence, success_frames: Sequence, threshold: float, valid: Sequence | None = None
) -> FalseTriggers:
    """False triggers per episode (see `FalseTriggers`): online querying multiplies the chances.

    Args:
      curves: N score curves [T_i].
      success_frames: N indices of the first truly successful frame; None where there is none.
      threshold: a frame with score >= threshold triggers.
      valid: N bool masks [T_i]; an invalid frame cannot trigger.
    """
    fired, edges, frames, invalid, empty = [], 0, 0, 0, 0
    hot = 0
    for curve, mask, end in _episodes(curves, success_frames, valid):
        end = curve.size if end is None else end
        above = (curve[:end] >= threshold)[mask[:end]]
        invalid += int((~mask[:end]).sum())
        if not above.size:
            empty += 1
            continue
        fired.append(above.any())
        edges += int(above[0]) + int((above[1:] & ~above[:-1]).sum())
        frames += above.size
        hot += int(above.sum())
    n = len(fired)
    if not n:
        return FalseTriggers(*[float("nan")] * 3, 0, empty, invalid)
    return FalseTriggers(float(np.mean(fired)), edges / n, hot / frames, n, empty, invalid)


class DetectionDelay(NamedTuple):
    """Delays in frames from the true success to the first detection at or after it.

    delays: float64 [episodes with a success], NaN where it was never detected; mean and median are
    over the detected ones (NaN if none) and mean little without `missed` beside them.
    """

    mean: float
    median: float
    detected: int
    missed: int
    delays: np.ndarray


def detection_delay(
    curves: Sequence, success_frames: Sequence, threshold: float, valid: Sequence | None = None
) -> DetectionDelay:
    """Delay of success detection (arguments as in `false_triggers`).

    Episodes that never succeed have no delay and are not among the results.
    """
    delays = []
    for curve, mask, start in _episodes(curves, success_frames, valid):
        if start is None:
            continue
        later = np.flatnonzero((curve[start:] >= threshold) & mask[start:])
        delays.append(float(later[0]) if later.size else float("nan"))
    delays = np.array(delays, dtype=np.float64)
    found = delays[~np.isnan(delays)]
    mean, median = (found.mean(), np.median(found)) if found.size else (np.nan, np.nan)
    return DetectionDelay(float(mean), float(median), found.size, delays.size - found.size, delays)


def _episodes(curves, success_frames, valid):
    _checks.same_length(curves, success_frames, ("curves", "success_frames"))
    if valid is not None:
        _checks.same_length(curves, valid, ("curves", "valid"))
    for i, (curve, frame) in enumerate(zip(curves, success_frames, strict=True)):
        curve, mask = _checks.masked(curve, None if valid is None else valid[i], f"curves[{i}]")
        if frame is not None and not 0 <= frame < curve.size:
            raise ValueError(
                f"success_frames[{i}] is {frame}, outside of the {curve.size} frames "
                "(None means that the episode never succeeds)"
            )
        yield curve, mask, frame


def column_normalised(scores) -> tuple[np.ndarray, float]:
    """Confusion of videos x instructions (ReWiND, Robometer): scores >= 0 [N, N], each column
    divided by its sum, and the mean of the diagonal (1 / N says: language is ignored).

    A column that sums to 0 is undefined and makes both NaN.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or not scores.size:
        raise ValueError(f"scores must be [N, N] with N >= 1, got {scores.shape}")
    if not (scores >= 0).all():
        raise ValueError("scores must be >= 0 and not NaN")
    total = scores.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        normalised = np.where(total > 0, scores / total, np.nan)
    return normalised, float(np.mean(np.diag(normalised)))
