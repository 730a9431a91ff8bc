"""The verdict on refinement from tasks x arms x seeds x paired episodes: estimates and tables.

Numbers for all rows come from one set of resamples a task, so that differences stay paired
(`paired.crossed`). Aggregates over tasks are means of the tasks' values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lrm_jax.evaluation import paired, stats

BASE = "base"
# What the project promises of an arm: gain, what its interval must exclude, share of the oracle's.
GAIN, EXCLUDED, RECOVERED = 0.15, 0.05, 0.60
Outcomes = Mapping[str, Mapping[str, np.ndarray]]
"""task -> arm -> booleans [seeds, episodes]; each task has the arm `BASE`, the cloned policies."""


def summarise(
    outcomes: Outcomes,
    oracle: str | None = None,
    *,
    effect: float = 0.05,
    power: float = 0.8,
    reps: int = paired.REPS,
) -> dict[str, Any]:
    """All estimates of a run, as plain numbers (NaN and infinities as None).

    Args:
      outcomes: same arms for all tasks, tables of one shape within a task.
      oracle: the arm whose gain the others' is a share of.
      effect, power: what the power calculation plans for.
    Returns:
      {"arms": {arm: {"tasks": {task: row}, "all": row}}, "power": {arm: row}}. A row has success,
      base, gain and its interval, "mcnemar_p" (pooled over seeds; not over tasks), "recovered" and
      its interval, "seed_gains", and over all tasks "iqm" and "improvement" with intervals.
    """
    first = next(iter(outcomes.values()))
    arms = [arm for arm in first if arm != BASE]
    for task, tables in outcomes.items():
        if BASE not in tables or [a for a in tables if a != BASE] != arms:
            raise ValueError(f"task {task!r} has arms {list(tables)}, not {[BASE, *arms]}")
    drawn = {
        task: paired.crossed(tables, reps=reps, seed=i)
        for i, (task, tables) in enumerate(outcomes.items())
    }
    values = {
        task: {arm: float(np.mean(t)) for arm, t in tables.items()}
        for task, tables in outcomes.items()
    }

    def over(tasks: Sequence[str], arm: str) -> tuple[float, np.ndarray]:
        return (
            float(np.mean([values[t][arm] for t in tasks])),
            np.mean([drawn[t][arm] for t in tasks], axis=0),
        )

    def row(tasks: Sequence[str], arm: str) -> dict[str, Any]:
        base, own = over(tasks, BASE), over(tasks, arm)
        gain = paired.difference(own[1] - base[1], own[0] - base[0])
        found = {
            "base": base[0], "success": own[0], "gain": gain.value,
            "gain_interval": [gain.low, gain.high],
            "seed_gains": np.mean([_seed_gains(outcomes[t], arm) for t in tasks], axis=0).tolist(),
        }  # fmt: skip
        if oracle in arms and arm != oracle:
            share = paired.share_recovered(base, own, over(tasks, oracle))
            found["recovered"] = share.value
            found["recovered_interval"] = [share.low, share.high]
        return found

    table: dict[str, Any] = {}
    for arm in arms:
        by_task = {}
        for task, tables in outcomes.items():
            test = paired.stratified_mcnemar(tables[arm], tables[BASE])
            by_task[task] = row([task], arm) | {
                "mcnemar_p": test.pvalue, "only_arm": test.only_a, "only_base": test.only_b,
            }  # fmt: skip
        table[arm] = {"tasks": by_task, "all": row(list(outcomes), arm)}
        table[arm]["all"] |= _over_runs(outcomes, arm, reps)
    found = {"arms": table, "power": {arm: _power(outcomes, arm, effect, power) for arm in arms}}
    return _plain(found)


def by_sentence(
    tables: Mapping[str, np.ndarray],
    task_ids: Sequence[int],
    sentences: Sequence[str],
    *,
    reps: int = paired.REPS,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Gains of one task's arms on the episodes of each sentence: arm -> sentence -> row.

    Args:
      tables: arm -> booleans [seeds, episodes], with `BASE`. task_ids: [episodes], indices into
        `sentences`.
    Returns:
      rows of episodes, base, success, gain, its interval and "mcnemar_p".
    """
    ids = np.asarray(task_ids)
    found: dict[str, dict[str, dict[str, Any]]] = {arm: {} for arm in tables if arm != BASE}
    for i in np.unique(ids):
        own = {arm: np.asarray(table)[:, ids == i] for arm, table in tables.items()}
        drawn = paired.crossed(own, reps=reps)
        for arm, rows in found.items():
            gain = float(own[arm].mean() - own[BASE].mean())
            estimate = paired.difference(drawn[arm] - drawn[BASE], gain)
            rows[sentences[int(i)]] = _plain({
                "episodes": int((ids == i).sum()), "base": float(own[BASE].mean()),
                "success": float(own[arm].mean()), "gain": gain,
                "gain_interval": [estimate.low, estimate.high],
                "mcnemar_p": paired.stratified_mcnemar(own[arm], own[BASE]).pvalue,
            })  # fmt: skip
    return found


def _seed_gains(tables: Mapping[str, np.ndarray], arm: str) -> np.ndarray:
    return np.mean(tables[arm], axis=1) - np.mean(tables[BASE], axis=1)


def _over_runs(outcomes: Outcomes, arm: str, reps: int) -> dict[str, Any]:
    """rliable's view: a run is a seed on a task, its score the success rate."""
    seeds = {len(t[arm]) for t in outcomes.values()}
    if len(seeds) > 1:
        raise ValueError(f"tasks differ in seeds: {sorted(seeds)}")
    rates = [
        np.stack([np.mean(t[name], axis=1) for t in outcomes.values()], 1) for name in (arm, BASE)
    ]
    middle = stats.stratified_bootstrap(rates[0], reps=min(reps, 2_000))
    better = paired.improvement_interval(*rates, reps=min(reps, 2_000))
    return {
        "iqm": middle.value, "iqm_interval": [middle.low, middle.high],
        "improvement": better.value, "improvement_interval": [better.low, better.high],
    }  # fmt: skip


def _power(outcomes: Outcomes, arm: str, effect: float, power: float) -> dict[str, Any]:
    """What these numbers of episodes and seeds can find, and what `effect` would need."""
    differ = np.mean([np.mean(t[arm] != t[BASE]) for t in outcomes.values()])
    episodes = min(t[arm].shape[1] for t in outcomes.values())
    gains = np.mean([_seed_gains(t, arm) for t in outcomes.values()], axis=0)
    spread = paired.seed_spread(gains)
    discordant = max(float(differ), min(effect, 1.0))  # a difference needs as many disagreements
    return {
        "discordant": float(differ), "effect": effect,
        "episodes": episodes,
        "episodes_needed": stats.required_pairs(
            (discordant + effect) / 2, (discordant - effect) / 2, power
        ),
        "detectable": paired.detectable(float(differ), episodes, power) if differ else math.nan,
        "seeds": len(gains), "seed_sd": spread,
        "seeds_needed": None if math.isnan(spread) else paired.required_runs(effect, spread, power),
    }  # fmt: skip


def bars(
    summary: Mapping[str, Any], claims: Sequence[str], controls: Sequence[str]
) -> list[dict[str, Any]]:
    """What is promised of the arms, task by task, and whether it held.

    claims: arms that must gain `GAIN` with an interval above `EXCLUDED`, and recover `RECOVERED` of
    the oracle's gain. controls: arms whose interval must include 0, in a summary of policies as
    trained.
    """
    found = []
    for arm in (*claims, *controls):
        for task, row in summary["arms"][arm]["tasks"].items():
            low, high = row["gain_interval"]
            if arm in controls:
                what = "gain's interval as trained includes 0"
                found.append(_bar(arm, task, what, low <= 0 <= high))
                continue
            met = row["gain"] >= GAIN and low > EXCLUDED
            what = f"gain of {100 * GAIN:.0f} points, interval above {100 * EXCLUDED:.0f}"
            found.append(_bar(arm, task, what, met))
            if "recovered" in row:
                share = row["recovered"]
                met = share is not None and share >= RECOVERED
                what = f"{100 * RECOVERED:.0f} % of the oracle's gain"
                found.append(_bar(arm, task, what, met))
    return found


def _bar(arm: str, task: str, what: str, met: bool) -> dict[str, Any]:
    return {"arm": arm, "task": task, "bar": what, "met": bool(met)}


def _plain(value: Any) -> Any:
    """Numbers that JSON has no word for (NaN, infinities) as None."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
