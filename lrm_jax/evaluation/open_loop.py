"""The open-loop table: is the reward right, and is it more than a clock or a picture classifier?

Every metric stands beside three controls on the same frames:

  constant        progress: the median target; completion: the share of done frames; contrastive: 0
  time ramp       t / (T - 1) for progress and completion, +1 ("later is closer") for contrastive
  wrong sentence  the model itself, asked about another task, against the true labels

Intervals come from resampling whole episodes (frames of one episode are not independent), with the
same resamples for every arm, so differences between arms are paired. Pure functions of arrays.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lrm_jax.evaluation import clustered, stats, tables
from lrm_jax.evaluation.open_loop_metrics import (
    METRICS,
    HeadScores,
    ScoredEpisode,
    Settings,
    evaluate,
    frames_asked,
)

__all__ = [
    "ARMS",
    "METRICS",
    "HeadScores",
    "ScoredEpisode",
    "Settings",
    "open_loop_markdown",
    "open_loop_note",
    "open_loop_rows",
    "open_loop_table",
]

ARMS = ("model", "constant", "time ramp", "wrong sentence")


def open_loop_table(
    episodes: Sequence[ScoredEpisode],
    bars: Mapping[str, float] | None = None,
    settings: Settings | None = None,
) -> dict:
    """Every metric of `METRICS` for every arm of `ARMS` with intervals over episodes.

    Args:
      episodes: at least one. Invalid scores (NaN) are left out of the metrics, from the constant
        and time-ramp controls as well, and counted.
      bars: value that the model must reach, by metric name.

    Returns: a dict that JSON can hold (undefined values are None):
      episodes, successes, failures, with_wrong_sentence: counts
      invalid: {arm: {head: {"invalid": n, "of": n}}} over the frames where the head was asked
      settings: the thresholds
      metrics: {name: {"title", "unit", "higher_is_better", "bar", "met",
                       arm: {"value", "low", "high", "n", "difference": [value, low, high]}}}
        n counts the unit (frames, pairs or episodes) that entered; for "difference", see model
        minus this control on the same resamples, value and interval.
        "undefined_resamples" appears where some resamples had no value (a class was missing).

    Raises: ValueError for no episode, arrays of different lengths, an unknown bar.
    """
    if not episodes:
        raise ValueError("need at least one episode")
    settings = settings or Settings()
    bars = dict(bars or {})
    unknown = sorted(set(bars) - set(METRICS))
    if unknown:
        raise ValueError(f"bars for unknown metrics {unknown}; there are {sorted(METRICS)}")
    checked = [_check(i, e) for i, e in enumerate(episodes)]
    arms = _arms(checked)
    weights = list(stats.resample_weights(len(checked), settings.reps, settings.seed))
    nothing = [HeadScores()] * len(checked)
    asked_twice = [e.wrong is not None for e in checked]
    values = {}
    for arm, heads in arms.items():
        if arm == "model":
            other = arms["wrong sentence"]
        elif arm == "wrong sentence":
            other = nothing
        else:  # a control gives every sentence the same score
            other = [h if w else HeadScores() for h, w in zip(heads, asked_twice, strict=True)]
        values[arm] = evaluate(checked, heads, other, settings, weights)

    table = {}
    for name, metric in METRICS.items():
        row = metric._asdict()
        model = values["model"][name]
        for arm in ARMS:
            cell = values[arm][name]
            row[arm] = _summary(cell, settings)
            if arm != "model":
                difference = clustered.Cell(
                    model.value - cell.value, model.resampled - cell.resampled, 0
                )
                row[arm]["difference"] = list(_interval(difference, settings))
        bar = bars.get(name)
        row["bar"] = bar
        row["met"] = None
        if bar is not None:
            reached = model.value >= bar if metric.higher_is_better else model.value <= bar
            row["met"] = bool(reached)  # an undefined value reaches no bar
        table[name] = row
    successes = sum(e.success for e in checked)
    return {
        "episodes": len(checked),
        "successes": successes,
        "failures": len(checked) - successes,
        "with_wrong_sentence": sum(e.wrong is not None for e in checked),
        "invalid": {
            "model": _invalid(checked, arms["model"]),
            "wrong sentence": _invalid(checked, arms["wrong sentence"]),
        },
        "settings": dict(vars(settings)),
        "metrics": table,
    }


def open_loop_rows(table: dict) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of text of an `open_loop_table`: values with intervals, n, bars."""
    rows = []
    for row in table["metrics"].values():
        arrow, sign = ("↑", "≥") if row["higher_is_better"] else ("↓", "≤")
        bar = "" if row["bar"] is None else f"{sign} {row['bar']:g} {'✓' if row['met'] else '✗'}"
        cells = [
            tables.with_interval(*(row[arm][k] for k in ("value", "low", "high"))) for arm in ARMS
        ]
        n = f"{row['model']['n']:,} {row['unit']}"
        rows.append([f"{row['title']} {arrow}", *cells, n, bar])
    return ["metric", *ARMS, "n", "bar"], rows


def open_loop_note(table: dict) -> str:
    """One line under the table: episodes, kind of interval, invalid scores."""
    counts = [
        f"{arm}: {head} {count['invalid']} of {count['of']}"
        for arm, heads in table["invalid"].items()
        for head, count in heads.items()
        if count["invalid"]
    ]
    asked = sum(c["of"] for heads in table["invalid"].values() for c in heads.values())
    settings = table["settings"]
    return (
        f"{table['episodes']} episodes, {table['failures']} of them failures. "
        f"[{100 * settings['confidence']:g} % interval], bootstrap over episodes, "
        f"{settings['reps']:,} resamples. "
        f"Invalid scores: {'; '.join(counts) or f'none of {asked:,}'}."
    )


def open_loop_markdown(table: dict) -> str:
    """The table of `open_loop_table` as markdown, with its note below."""
    return f"{tables.markdown(*open_loop_rows(table))}\n\n{open_loop_note(table)}"


def _check(i: int, episode: ScoredEpisode) -> ScoredEpisode:
    target = _floating(episode.target)
    done = np.asarray(episode.done)
    if target.ndim != 1 or not target.size or not np.isfinite(target).all():
        raise ValueError(f"episode {i}: target must be finite [T] with T >= 1")
    if done.shape != target.shape or done.dtype != bool:
        got = f"{done.dtype} {done.shape}"
        raise ValueError(f"episode {i}: done must be bool {target.shape}, got {got}")
    if episode.interval < 1:
        raise ValueError(f"episode {i}: interval must be >= 1, got {episode.interval}")

    def heads(scores):
        if scores is None:
            return None
        cast = {}
        for name, values in vars(scores).items():
            cast[name] = None if values is None else _floating(values)
            if values is not None and cast[name].shape != target.shape:
                raise ValueError(
                    f"episode {i}: {name} has shape {cast[name].shape}, target {target.shape}"
                )
        return HeadScores(**cast)

    return replace(
        episode,
        scores=heads(episode.scores),
        wrong=heads(episode.wrong),
        target=target,
        done=done,
        success=bool(episode.success),
    )


def _floating(values) -> np.ndarray:
    """A float array; float32 stays, because `metrics.within` reads its edge from the dtype."""
    values = np.asarray(values)
    return values if values.dtype.kind == "f" else values.astype(np.float64)


def _arms(episodes) -> dict[str, list[HeadScores]]:
    """Scores of each arm. The two controls are invalid where the model is: same frames for all."""
    median = float(np.median(np.concatenate([e.target for e in episodes])))
    done_share = float(np.mean(np.concatenate([e.done for e in episodes])))

    def like(scores, **values):
        made = {}
        for head, value in values.items():
            reference = getattr(scores, head)
            if reference is not None:
                value = np.where(np.isnan(reference), np.nan, value)
                made[head] = np.broadcast_to(value, reference.shape)
        return HeadScores(**made)

    def ramp(n):
        return np.arange(n) / max(n - 1, 1)

    return {
        "model": [e.scores for e in episodes],
        "constant": [
            like(e.scores, progress=median, completion=done_share, contrastive=0.0)
            for e in episodes
        ],
        "time ramp": [
            like(
                e.scores,
                progress=ramp(e.target.size),
                completion=ramp(e.target.size),
                contrastive=1.0,
            )
            for e in episodes
        ],
        "wrong sentence": [e.wrong or HeadScores() for e in episodes],
    }


def _invalid(episodes, arm) -> dict:
    counts = {}
    for head in ("progress", "completion", "contrastive"):
        asked = [
            np.isnan(getattr(scores, head)[frames_asked(head, e)])
            for e, scores in zip(episodes, arm, strict=True)
            if getattr(scores, head) is not None
        ]
        if asked:
            counts[head] = {
                "invalid": int(sum(a.sum() for a in asked)),
                "of": int(sum(a.size for a in asked)),
            }
    return counts


def _interval(cell: clustered.Cell, settings: Settings):
    low, high = stats.percentile_interval(cell.resampled, settings.confidence)
    return tuple(None if math.isnan(v) else float(v) for v in (cell.value, low, high))


def _summary(cell: clustered.Cell, settings: Settings) -> dict:
    value, low, high = _interval(cell, settings)
    summary = {"value": value, "low": low, "high": high, "n": int(cell.n)}
    undefined = int(np.isnan(cell.resampled).sum())
    if undefined and value is not None:
        summary["undefined_resamples"] = undefined
    return summary
