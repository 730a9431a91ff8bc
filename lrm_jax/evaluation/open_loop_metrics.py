"""The metrics of the open-loop table for one arm: per-episode sums, resampled over episodes.

Each metric is a sum of ratios of per-episode sums (means, balanced accuracy, gaps) or a ROC-AUC, so
that `clustered` can resample episodes without going over the frames again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lrm_jax.evaluation import clustered, metrics


@dataclass(frozen=True)
class HeadScores:
    """Scores of one episode of T frames; NaN marks an invalid score, None a head never asked.

    progress [T] in [0, 1]; completion [T] = P(done); contrastive [T] = P(frame t is closer to done
    than frame t - interval) - P(the opposite) in [-1, 1], not read for t < interval.
    """

    progress: np.ndarray | None = None
    completion: np.ndarray | None = None
    contrastive: np.ndarray | None = None


@dataclass(frozen=True)
class ScoredEpisode:
    """Scores of an episode and its labels.

    Args:
      scores: under the episode's own sentence.
      target: true progress [T] in [0, 1].
      done: bool [T], whether the task is done at each frame.
      success: whether the episode succeeded.
      wrong: scores of the same frames under another task's sentence, if asked.
      interval: frames between the two images of the contrastive head.
    """

    scores: HeadScores
    target: np.ndarray
    done: np.ndarray
    success: bool
    wrong: HeadScores | None = None
    interval: int = 1


class Metric(NamedTuple):
    """How a row is called, what its n counts, and which way is better."""

    title: str
    unit: str
    higher_is_better: bool


METRICS: dict[str, Metric] = {
    "progress_mae": Metric("Progress: mean absolute error", "frames", False),
    "progress_within_0.1": Metric("Progress: accuracy within 0.1", "frames", True),
    "progress_within_0.2": Metric("Progress: accuracy within 0.2", "frames", True),
    "progress_rank": Metric("Progress: rank correlation with the truth", "episodes", True),
    "voc": Metric("Progress: VOC on successes", "episodes", True),
    "final_gap": Metric("Final progress: successes − failures", "episodes", True),
    "completion_auc": Metric("Completion: ROC-AUC", "frames", True),
    "completion_final_auc": Metric("Completion: ROC-AUC, last frame", "episodes", True),
    "completion_balanced_accuracy": Metric("Completion: balanced accuracy", "frames", True),
    "completion_false_triggers": Metric(
        "Completion: episodes with a false alarm", "episodes", False
    ),
    "direction_accuracy": Metric("Contrastive: direction accuracy", "pairs", True),
    "direction_three_class": Metric("Contrastive: accuracy, three classes", "pairs", True),
    "wrong_sentence_drop": Metric("Wrong sentence lowers final progress by", "episodes", True),
    "wrong_sentence_drop_success": Metric("… on successes", "episodes", True),
}


@dataclass(frozen=True)
class Settings:
    """Thresholds of the table.

    completion_threshold: P(done) from which a frame counts as judged done.
    dead_zone: true progress changes up to this count as "same" (half of a tenth).
    score_dead_zone: contrastive scores up to this count as the answer "same".
    confidence, reps, seed: of the bootstrap over episodes.
    """

    completion_threshold: float = 0.5
    dead_zone: float = 0.05
    score_dead_zone: float = 1 / 3
    confidence: float = 0.95
    reps: int = 1000
    seed: int = 0


def frames_asked(head: str, episode: ScoredEpisode) -> slice:
    """Frames where a head has something to say: contrastive needs an earlier frame."""
    return slice(episode.interval if head == "contrastive" else 0, None)


def evaluate(
    episodes: Sequence[ScoredEpisode],
    arm: Sequence[HeadScores],
    other: Sequence[HeadScores],
    s: Settings,
    weights: Sequence[np.ndarray],
) -> dict[str, clustered.Cell]:
    """All metrics of one arm; `other` holds its scores under the wrong sentence."""

    def collect(head, rows):
        """rows(episode, values, valid) -> tuple of numbers, stacked to columns [N] each."""
        out = []
        for e, scores in zip(episodes, arm, strict=True):
            values = getattr(scores, head)
            values = np.full(e.target.shape, np.nan) if values is None else values
            out.append(rows(e, values, ~np.isnan(values)))
        return np.array(out, dtype=np.float64).T

    def one(columns):
        return clustered.ratios(weights, (1.0, *columns))

    def correlation(reference, keep):
        def rows(e, p, ok):
            if not keep(e):
                return 0.0, 0
            r = metrics.spearman(p[ok], reference(e)[ok])
            return (0.0, 0) if np.isnan(r) else (r, 1)

        return one(collect("progress", rows))

    cells = {
        "progress_mae": one(
            collect("progress", lambda e, p, ok: (np.abs(p - e.target)[ok].sum(), ok.sum()))
        ),
        "progress_rank": correlation(lambda e: e.target, lambda e: True),
        "voc": correlation(lambda e: np.arange(e.target.size), lambda e: e.success),
    }
    for delta in (0.1, 0.2):
        cells[f"progress_within_{delta}"] = one(
            collect(
                "progress",
                lambda e, p, ok, d=delta: (
                    metrics.within(p[ok], e.target[ok], d).sum(),
                    ok.sum(),
                ),
            )
        )

    def final(e, p, ok):
        value = p[-1] if ok[-1] else 0.0
        return (
            value * e.success,
            ok[-1] * e.success,
            value * (not e.success),
            ok[-1] * (not e.success),
        )

    won, successes, lost, failures = collect("progress", final)
    cells["final_gap"] = clustered.ratios(weights, (1.0, won, successes), (-1.0, lost, failures))
    cells.update(_completion(episodes, arm, s, weights, collect))
    cells.update(_contrastive(s, weights, collect))

    drops = []
    for e, right, wrong in zip(episodes, arm, other, strict=True):
        ends = [np.nan if x.progress is None else x.progress[-1] for x in (right, wrong)]
        drop = ends[0] - ends[1]
        drops.append((0.0, 0, 0) if np.isnan(drop) else (drop, 1, e.success))
    drop, count, success = np.array(drops, dtype=np.float64).T
    cells["wrong_sentence_drop"] = clustered.ratios(weights, (1.0, drop, count))
    cells["wrong_sentence_drop_success"] = clustered.ratios(weights, (1.0, drop * success, success))
    return cells


def _completion(episodes, arm, s: Settings, weights, collect) -> dict[str, clustered.Cell]:
    def rates(e, c, ok):
        yes = c >= s.completion_threshold
        done, going = e.done & ok, ~e.done & ok
        return (yes & done).sum(), done.sum(), (~yes & going).sum(), going.sum()

    def alarms(e, c, ok):
        first = int(np.argmax(e.done)) if e.done.any() else None
        rate = metrics.false_triggers([c], [first], s.completion_threshold, [ok]).episode_rate
        return (0.0, 0) if np.isnan(rate) else (rate, 1)

    hits, done, passes, going = collect("completion", rates)
    scores, labels, last, success = [], [], [], []
    for e, heads in zip(episodes, arm, strict=True):
        c = np.full(e.target.shape, np.nan) if heads.completion is None else heads.completion
        ok = ~np.isnan(c)
        scores.append(c[ok])
        labels.append(e.done[ok])
        last.append(c[-1:][ok[-1:]])
        success.append(np.array([e.success])[ok[-1:]])
    return {
        "completion_auc": clustered.auc(weights, scores, labels),
        "completion_final_auc": clustered.auc(weights, last, success),
        "completion_balanced_accuracy": clustered.ratios(
            weights, (0.5, hits, done), (0.5, passes, going)
        ),
        "completion_false_triggers": clustered.ratios(
            weights, (1.0, *collect("completion", alarms))
        ),
    }


def _contrastive(s: Settings, weights, collect) -> dict[str, clustered.Cell]:
    def pairs(e, c, ok):
        change = e.target[e.interval :] - e.target[: -e.interval]
        later = frames_asked("contrastive", e)
        c, change = c[later][ok[later]], change[ok[later]]
        truth = metrics.directions(change, s.dead_zone)
        ordered = truth != 0
        agree = ((np.sign(c) * truth)[ordered] + 1) / 2
        same = metrics.directions(c, s.score_dead_zone) == truth
        return agree.sum(), ordered.sum(), same.sum(), same.size

    agree, ordered, same, total = collect("contrastive", pairs)
    return {
        "direction_accuracy": clustered.ratios(weights, (1.0, agree, ordered)),
        "direction_three_class": clustered.ratios(weights, (1.0, same, total)),
    }
