"""What the job `evidence` shows: its tables, as Markdown and in one HTML report with curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lrm_jax.report import blocks, write_report
from lrm_jax.rl import stopping
from lrm_jax.run import atomic
from lrm_jax.run.workdir import Workdir

if TYPE_CHECKING:
    from lrm_jax.jobs.evidence import EvidenceJob

Iterations = Mapping[tuple[str, str, int], list[dict]]
_HOW = (
    "Intervals: 95 %, seeds and episodes resampled independently (they cross); with one seed they "
    "speak of that policy alone. McNemar's exact test pools the seeds' discordant pairs. A policy "
    "whose reward did not rise counts as its clone (`keep`); the cells tell its gain as trained."
)


def interval(value, bounds, scale: float = 100.0, digits: int = 1, sign: str = "+") -> str:
    """ "+12.3 (+4.5 to +20.1)"; a dash without a value, and for an end that has none."""

    def one(number):
        return "–" if number is None else f"{scale * number:{sign}.{digits}f}".replace("-", "−")

    if value is None:
        return "–"
    return f"{one(value)} ({one(bounds[0])} to {one(bounds[1])})"


def spoken(name: str) -> str:
    """An arm's name in words."""
    return name.replace("_", " ")


def gains(summary: Mapping[str, Any]) -> blocks.Table:
    """Each arm on each task against the clone that it started from."""
    rows = []
    for arm, found in summary["arms"].items():
        for task, row in found["tasks"].items():
            rows.append([
                task, spoken(arm), blocks.percent(row["base"]), blocks.percent(row["success"]),
                interval(row["gain"], row["gain_interval"]), blocks.p_value(row["mcnemar_p"]),
                _recovered(row),
            ])  # fmt: skip
    columns = [
        "task", "reward", "base", "refined", "gain, points", "McNemar", "share of oracle's gain, %",
    ]  # fmt: skip
    return {"columns": columns, "rows": rows, "note": _HOW}


def _recovered(row) -> str:
    if "recovered" not in row:
        return ""
    return interval(row["recovered"], row["recovered_interval"], digits=0, sign="")


def aggregates(summary: Mapping[str, Any]) -> blocks.Table:
    """Each arm over all tasks."""
    rows = []
    for arm, found in summary["arms"].items():
        row = found["all"]
        rows.append([
            spoken(arm), interval(row["gain"], row["gain_interval"]),
            interval(row["iqm"], row["iqm_interval"], sign=""),
            interval(row["improvement"], row["improvement_interval"], 1.0, 2, ""), _recovered(row),
        ])  # fmt: skip
    columns = [
        "reward", "mean gain, points", "IQM of success, %", "P(improvement) over the clone",
        "share of oracle's gain, %",
    ]  # fmt: skip
    note = "IQM and P(improvement) over runs (seed x task), resampled within tasks (rliable)."
    return {"columns": columns, "rows": rows, "note": note}


def sentences(job: EvidenceJob, summary: Mapping[str, Any]) -> blocks.Table:
    """Each sentence of a task, for all arms but the controls."""
    rows = [
        [
            task, sentence, spoken(arm), row["episodes"], blocks.percent(row["base"]),
            blocks.percent(row["success"]), interval(row["gain"], row["gain_interval"]),
            blocks.p_value(row["mcnemar_p"]),
        ]
        for task, by_arm in summary["sentences"].items()
        for arm, by_sentence in by_arm.items()
        if arm not in job.controls
        for sentence, row in by_sentence.items()
    ]  # fmt: skip
    columns = [
        "task", "sentence", "reward", "episodes", "base", "refined", "gain, points", "McNemar",
    ]  # fmt: skip
    return {"columns": columns, "rows": rows, "note": "Episodes of one seed; intervals as above."}


def seeds(summary: Mapping[str, Any]) -> blocks.Table:
    """Every cell."""
    rows = [
        [
            c["task"], spoken(c["arm"]), str(c["seed"]), blocks.percent(c["base_success"]),
            blocks.percent(c["refined_success"]), interval(c["gain"], c["gain_interval"]),
            blocks.p_value(c["mcnemar_p"]), "yes" if c["kept"] else "no",
            interval(c["trained"]["gain"], c["trained"]["gain_interval"]), c["bad_episodes"],
        ]
        for c in summary["cells"]
    ]  # fmt: skip
    columns = [
        "task", "reward", "seed", "base", "refined", "gain, points", "McNemar", "kept",
        "gain as trained", "bad episodes",
    ]  # fmt: skip
    note = (
        "Intervals and tests of one trained policy on its episodes. A policy whose reward did not "
        "rise during refinement is not kept: its clone is handed over."
    )
    return {"columns": columns, "rows": rows, "note": note}


def budget(job: EvidenceJob, summary: Mapping[str, Any]) -> blocks.Table:
    """What a run of each arm used, means over its cells."""
    rows, asked = [], set()
    for arm in summary["arms"]:
        own = [c for c in summary["cells"] if c["arm"] == arm]
        frames = job.cell(next(iter(job.tasks)), arm).judged_frames
        mean = {k: float(np.mean([c[k] for c in own])) for k in ("iterations", "env_steps",
                "judgements", "invalid_scores", "seconds")}  # fmt: skip
        asked |= {round(mean["judgements"])} - {0}
        early = [c["stopped"] for c in own if c["stopped"]]
        privileged = "yes" if any(c["privileged"] for c in own) else "no"
        rows.append([
            spoken(arm), round(mean["iterations"], 1), round(mean["env_steps"]), frames,
            round(mean["judgements"]), round(mean["invalid_scores"], 1),
            blocks.duration(mean["seconds"]), privileged,
            f"{len(early)} of {len(own)}" + (f": {early[0]}" if early else ""),
        ])  # fmt: skip
    columns = [
        "reward", "iterations", "control steps", "frames judged", "judgements", "invalid scores",
        "time", "privileged", "stopped early",
    ]  # fmt: skip
    note = "Means over seeds and tasks; frames as planned. "
    note += (
        "All arms with a model asked it as many questions."
        if len(asked) <= 1
        else "Arms asked their models different numbers of questions: one a head and frame."
    )
    return {"columns": columns, "rows": rows, "note": note}


def powers(job: EvidenceJob, summary: Mapping[str, Any]) -> blocks.Table:
    """What the run could find, and what a smaller effect would need."""
    rows = [
        [
            spoken(arm), blocks.percent(p["discordant"]), p["episodes"], p["episodes_needed"],
            "–" if p["detectable"] is None else blocks.points(p["detectable"]), p["seeds"],
            "–" if p["seed_sd"] is None else blocks.points(p["seed_sd"]).lstrip("+"),
            p["seeds_needed"],
        ]
        for arm, p in summary["power"].items()
    ]  # fmt: skip
    points = f"{100 * job.effect:g} points"
    columns = [
        "reward", "discordant", "episodes", f"episodes for {points}", "detectable", "seeds",
        "sd of seeds", f"seeds for {points}",
    ]  # fmt: skip
    note = (
        f"Power {100 * job.power:g} %, two-sided 5 %: episodes by McNemar's test of one policy "
        "(Connor 1987), seeds by a t-test of their gains."
    )
    return {"columns": columns, "rows": rows, "note": note}


def bars(summary: Mapping[str, Any]) -> blocks.Table:
    """What is promised, and whether it held."""
    rows = [
        [b["task"], spoken(b["arm"]), b["bar"], "met" if b["met"] else "missed"]
        for b in summary["bars"]
    ]
    return {"columns": ["task", "reward", "bar", "verdict"], "rows": rows}


def curves(job: EvidenceJob, iterations: Iterations) -> list[dict]:
    """For each task success while refining, and reward and success of each claim's arm."""
    figures = []
    for task in job.tasks:
        longest = max(len(r) for (t, _, _), r in iterations.items() if t == task)
        x = list(range(1, longest + 1))
        runs = {
            arm: {
                name: _padded([iterations[task, arm, s] for s in job.seeds], name, longest)
                for name in (stopping.PROXY, stopping.ORACLE)
            }
            for arm in job.arms
        }
        controls = [*job.claims[:1], *job.controls]
        for kind, shown in (("models and oracles", _others(job)), ("controls", controls)):
            if not shown:
                continue
            figures.append({
                "kind": "learning_curves", "title": f"Success while refining: {task}, {kind}",
                "caption": "Share of an iteration's rollouts that end in success, mean over seeds. "
                "The simulator knows it; neither reward nor learner does, except in the oracles' "
                "arms.",
                "x": x,
                "arms": {spoken(a): {"mean": _mean(runs[a][stopping.ORACLE])} for a in shown},
            })  # fmt: skip
        for arm in job.claims:
            shared = [
                {
                    name: float(v)
                    for name, v in zip((stopping.PROXY, stopping.ORACLE), pair, strict=True)
                }
                for pair in zip(*(_mean(runs[arm][n]) for n in runs[arm]), strict=True)
            ]
            window = job.cell(task, arm).refine.stop.window
            figures.append({
                "kind": "proxy_and_oracle", "title": f"Reward and success: {task}, {spoken(arm)}",
                "caption": "Above, what an episode earned by the learned reward; below, success. "
                f"Shaded: over the last {window} iterations the two moved against each other "
                "(rank correlation of the means below 0).",
                "x": x, "proxy": runs[arm][stopping.PROXY], "oracle": runs[arm][stopping.ORACLE],
                "apart": stopping.divergence(shared, window),
            })  # fmt: skip
    return figures


def _others(job: EvidenceJob) -> list[str]:
    return [arm for arm in job.order if arm not in job.controls]


def _padded(runs: Sequence[list[dict]], name: str, length: int) -> np.ndarray:
    """[S, K] of a metric, NaN after a run's end."""
    table = np.full((len(runs), length), np.nan)
    for i, rows in enumerate(runs):
        table[i, : len(rows)] = [row[name] for row in rows]
    return table


def _mean(runs: np.ndarray) -> np.ndarray:
    """Mean over the runs that were still going, [K]; NaN where none was."""
    some = np.isfinite(runs).any(0)
    mean = np.full(runs.shape[1], np.nan)
    mean[some] = np.nanmean(runs[:, some], axis=0)
    return mean


def tables(job: EvidenceJob, summary: Mapping[str, Any]) -> dict[str, blocks.Table]:
    """All tables by heading."""
    found = {
        "Gain over the clone": gains(summary),
        "Gain as trained, kept or not": gains({"arms": summary["trained"]}),
        "Over all tasks": aggregates(summary),
    }
    if summary["bars"]:
        found["Bars"] = bars(summary)
    return found | {
        "Sentences": sentences(job, summary),
        "Budget": budget(job, summary), "Power": powers(job, summary), "Cells": seeds(summary),
    }  # fmt: skip


def write(
    workdir: Workdir, job: EvidenceJob, summary: Mapping[str, Any], iterations: Iterations
) -> None:
    """Write table.md and report.html."""
    shown = tables(job, summary)
    text = "\n\n".join(f"## {name}\n\n{blocks.markdown(table)}" for name, table in shown.items())
    atomic.write_bytes(workdir / "table.md", (text + "\n").encode())
    facts = {k: summary[k] for k in ("tasks", "seeds", "episodes", "oracle")}
    write_report(
        workdir / "report.html", facts, curves(job, iterations), shown, {},
        atomic.read_json(workdir / "manifest.json"), title="Evidence of refinement",
        subtitle=f"{len(job.tasks)} tasks, {len(job.arms)} rewards, {len(job.seeds)} seeds, "
        f"{job.evaluation.episodes:,} paired episodes",
    )  # fmt: skip
