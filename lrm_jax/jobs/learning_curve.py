"""The job `learning_curve`: how a reward model gains from more episodes, all else the same."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrm_jax.evaluation import tables
from lrm_jax.jobs import simulated
from lrm_jax.jobs.collect import collect_stage
from lrm_jax.jobs.open_loop import (
    INTERVAL,
    TABLES,
    any_distance,
    identity,
    score_episodes,
    table_of,
)
from lrm_jax.jobs.reward import RewardJob, model_stage, training_episodes
from lrm_jax.jobs.settings import TaskEpisodes
from lrm_jax.report import write_report
from lrm_jax.run import atomic, config, processes
from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError
from lrm_jax.run.workdir import Workdir

SHOWN = {
    "progress_mae": "progress error",
    "progress_within_0.1": "within 0.1",
    "progress_within_0.2": "within 0.2",
    "completion_auc": "completion AUC",
    "completion_balanced_accuracy": "balanced accuracy",
    "direction_accuracy": "direction",
    "wrong_sentence_drop": "wrong sentence lowers by",
}


@dataclasses.dataclass(frozen=True)
class LearningCurveJob:
    """Everything that `job="learning_curve"` depends on.

    reward: what is collected, trained and judged, as `job="reward"` has it; held-out tasks are
    judged, unseen ones and wordings that training lacks are not. sizes: numbers of training
    episodes of each task, ascending; the training steps are the same for all of them. mesh: devices
    to train over, in place of `reward.mesh`, since doors ask for a CPU's devices before jobs begin.
    """

    job: str = "learning_curve"
    reward: RewardJob = field(default_factory=RewardJob)
    sizes: tuple[int, ...] = (64, 256)
    mesh: str = ""

    def validate(self):
        if self.reward.mesh:
            raise UserError("reward.mesh: here config.mesh names the devices to train over")
        if not self.sizes or list(self.sizes) != sorted(set(self.sizes)) or self.sizes[0] < 1:
            raise UserError(f"sizes are {self.sizes}: give ascending numbers of episodes")
        for task in (TaskEpisodes(self.reward.env, self.reward.collect), *self.reward.more):
            left = task.collect.episodes - self.reward.validation_episodes
            if self.sizes[-1] > left:
                raise UserError(
                    f"sizes end with {self.sizes[-1]}: {task.env.name} has {left} episodes to "
                    "train on, the others validate"
                )


def first_episodes(arrays: dict[str, np.ndarray], size: int, validate: int) -> dict:
    """The first `size` episodes and the last `validate`, which are the same for every size."""
    count = len(arrays["frames"])
    if size + validate == count:  # no second copy of gigabytes of frames
        return arrays
    kept = np.r_[0:size, count - validate : count]
    return {name: values[kept] for name, values in arrays.items()}


def run(raw, workdir: Workdir) -> dict:
    """Train and judge once for each size; writes summary.json, learning_curve.md, report.html."""
    job = config.build(LearningCurveJob, raw)
    reward = dataclasses.replace(job.reward, mesh=job.mesh)
    befores, found = training_episodes(reward, workdir)
    judged, episodes = [], []
    for i, task in enumerate((TaskEpisodes(reward.held_out, reward.evaluate),
                              *reward.more_held_out)):  # fmt: skip
        name = "held_out_episodes" if i == 0 else f"held_out_episodes_{task.env.name}"
        stage, arrays = collect_stage(workdir, name, task.env, task.collect)
        judged.append(stage)
        episodes.append(list(simulated.episodes(arrays, task.env.make(), task.collect.stride)))
    bars, points = dict(reward.bars), {}
    for size in job.sizes:
        fewer = [
            (task, first_episodes(arrays, size, reward.validation_episodes))
            for task, arrays in found
        ]
        own = dataclasses.replace(reward, stage=f"{reward.stage}_{size}")
        stage, model = model_stage(own, workdir, befores, fewer, episodes=size)
        facts = {"bars": bars, "model": identity(model), "interval": INTERVAL, "tables": TABLES}
        judging = workdir.stage(f"judged_{size}", facts, after=[stage, *judged])

        def compute(folder: Path, model=model) -> None:
            # Each task has its own scale from the simulator's progress to time.
            scored = [e for some in episodes for e in score_episodes(model, some)]
            pairs = [e for some in episodes for e in any_distance(model, some)]
            atomic.write_json(folder / "table.json", table_of(scored, pairs, bars))

        points[size] = judging.run(compute, lambda folder: atomic.read_json(folder / "table.json"))
    summary = {
        "tasks": [reward.env.name, *(t.env.name for t in reward.more)],
        "held_out_episodes": points[job.sizes[0]]["episodes"],
        "sizes": list(job.sizes),
        "points": {str(size): table for size, table in points.items()},
    }
    if processes.is_first():
        _publish(workdir, summary, points)
    return summary


def rows(points: dict[int, dict]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of text, a row for each size, with intervals over episodes."""
    made = []
    for size, table in points.items():
        values = [table["metrics"][name]["model"] for name in SHOWN]
        values.append(table["any_distance"]["model"])
        cells = [tables.with_interval(v["value"], v["low"], v["high"], 3) for v in values]
        made.append([f"{size:,}", *cells])
    return ["episodes a task", *SHOWN.values(), "direction, any distance"], made


def _publish(workdir: Workdir, summary: dict[str, Any], points: dict[int, dict]) -> None:
    columns, cells = rows(points)
    note = (
        f"Judged on {summary['held_out_episodes']} held-out episodes of "
        f"{len(summary['tasks'])} tasks; intervals (95 %) resample episodes, not trainings."
    )
    text = f"{tables.markdown(columns, cells)}\n\n{note}\n"
    atomic.write_bytes(workdir / "learning_curve.md", text.encode())
    atomic.write_json(workdir / "summary.json", summary)
    write_report(
        workdir / "report.html",
        {k: v for k, v in summary.items() if k != "points"},
        [_figure(points, names, percent) for names, percent in (
            (("progress_mae",), False),
            (("progress_within_0.2", "completion_balanced_accuracy", "direction_accuracy"), True),
        )],
        {"By number of episodes": {"columns": columns, "rows": cells, "note": note}},
        {},
        atomic.read_json(workdir / "manifest.json"),
        title="Learning curve", subtitle=", ".join(summary["tasks"]),
    )  # fmt: skip


def _figure(points: dict[int, dict], names: Sequence[str], percent: bool) -> dict[str, Any]:
    def curve(name: str) -> dict[str, list]:
        cells = [table["metrics"][name]["model"] for table in points.values()]
        return {
            key: [np.nan if c[at] is None else c[at] for c in cells]
            for key, at in (("mean", "value"), ("low", "low"), ("high", "high"))
        }

    return {
        "kind": "learning_curves", "x": np.log2(list(points)).tolist(),
        "arms": {SHOWN[name]: curve(name) for name in names},
        "title": "By number of training episodes", "percent": percent,
        "x_label": "log2 of the training episodes of each task",
        "y_label": "Share" if percent else "Mean absolute error",
    }  # fmt: skip
