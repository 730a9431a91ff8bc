"""The job `evidence`: tasks x reward arms x training seeds x paired episodes, and one report.

Every cell is a stage of the work folder (demonstrations, clone, refinement, evaluation), so a run
that is killed goes on where it was, and another arm or seed costs only its own cells. All arms of a
task start from the same clones and are played on the same episodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lrm_jax.evaluation import evidence
from lrm_jax.jobs import evidence_report
from lrm_jax.jobs.base_policy import EvaluationSettings, World, clone_stage, evaluation_stage
from lrm_jax.jobs.refine import RefineJob, check_equal_budget, handed_over, refine_stage, spent
from lrm_jax.jobs.reward_settings import (
    CONTROLS,
    JUDGE_ARMS,
    MODEL_ARMS,
    ORACLES,
    RewardSettings,
)
from lrm_jax.jobs.settings import CollectSettings, EnvSettings
from lrm_jax.parallel.mesh import make_mesh
from lrm_jax.policies import CloneConfig, PolicyConfig
from lrm_jax.rewards.model import RewardModel, load_reward_model
from lrm_jax.rl.refine import RefineConfig
from lrm_jax.run import atomic, config, manifest, processes
from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError
from lrm_jax.run.workdir import Stage, Workdir


@dataclasses.dataclass(frozen=True)
class ArmSettings:
    """An arm of the comparison: its reward, and its own refinement where that differs."""

    reward: RewardSettings = field(default_factory=RewardSettings)
    refine: RefineConfig | None = None


@dataclasses.dataclass(frozen=True)
class TaskSettings(EnvSettings):
    """A task of the comparison: its environment, and its own demonstrations and cloning where they
    differ."""

    demonstrations: CollectSettings | None = None
    clone: CloneConfig | None = None

    @property
    def env(self) -> EnvSettings:
        """The environment alone."""
        return EnvSettings(self.name, self.settings, self.size)


@dataclasses.dataclass(frozen=True)
class EvidenceJob:
    """Everything that `job="evidence"` depends on.

    tasks: name -> environment, and settings in place of `demonstrations` and `clone`. arms: name ->
    reward, and refinement settings in place of `refine`.
    seeds: a seed sets demonstrations, clone and refinement; episodes are the same for all.
    keep: which refined policies are handed over, see `RefineJob`; the others count as their clones.
    mesh: what a refinement is cut over, such as "data=2"; "" is one device.
    oracle: the arm whose gain the others' is a share of; "" is none.
    equal_budget: refuse arms whose budgets differ, see `RefineJob`.
    effect, power: the gain that the power calculation plans for, and how surely.
    """

    job: str = "evidence"
    tasks: dict[str, TaskSettings] = field(default_factory=lambda: {"PutOnPlate": TaskSettings()})
    arms: dict[str, ArmSettings] = field(default_factory=lambda: {"vlm": ArmSettings()})
    seeds: tuple[int, ...] = field((0, 1, 2, 3, 4), ge=0)
    keep: float = field(1.0, gt=0, le=1)
    mesh: str = ""
    oracle: str = "oracle"
    equal_budget: Literal["", "frames", "judgements"] = "frames"
    effect: float = field(0.05, gt=0, lt=1)
    power: float = field(0.8, gt=0, lt=1)
    demonstrations: CollectSettings = field(default_factory=CollectSettings)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    clone: CloneConfig = field(default_factory=CloneConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def validate(self) -> None:
        """UserError for names, arms or sizes that cannot work."""
        if not (self.tasks and self.arms and self.seeds):
            raise UserError("config.tasks, config.arms and config.seeds need at least one entry")
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"config.seeds {self.seeds} names a seed twice")
        for kind, names in (("tasks", self.tasks), ("arms", self.arms)):
            for name in names:
                if not name or name != Path(name).name or name.startswith("."):
                    raise UserError(f"config.{kind}.{name}: give a name that a file can have")
        if evidence.BASE in self.arms:
            raise UserError(f"config.arms.{evidence.BASE}: this is the cloned policy's name")
        if self.oracle and self.oracle not in self.arms:
            raise UserError(f"config.oracle is {self.oracle!r}: there is no such arm")
        if self.oracle and self.arms[self.oracle].reward.arm not in ORACLES:
            raise UserError(f"config.oracle is {self.oracle!r}: its reward is no oracle's")
        models = {s.reward.model for s in self.arms.values() if s.reward.arm in MODEL_ARMS}
        if len(models) > 1:
            raise UserError(f"arms name several reward models ({', '.join(sorted(models))})")
        for task, where in self.tasks.items():
            length = where.make().episode_length
            for arm in self.arms:
                self.cell(task, arm).check_sizes(length)
            if self.equal_budget:
                check_equal_budget(
                    {arm: self.cell(task, arm) for arm in self.arms}, self.equal_budget
                )

    def cell(self, task: str, arm: str) -> RefineJob:
        """The refinement of one task and arm."""
        own, where = self.arms[arm], self.tasks[task]
        return RefineJob(
            arms=(own.reward.arm,), seeds=self.seeds, env=where.env,
            demonstrations=where.demonstrations or self.demonstrations, policy=self.policy,
            clone=where.clone or self.clone, reward=own.reward, refine=own.refine or self.refine,
            evaluation=self.evaluation,
        )  # fmt: skip

    @property
    def controls(self) -> list[str]:
        """Arms whose reward knows nothing of the task."""
        return [name for name, own in self.arms.items() if own.reward.arm in CONTROLS]

    @property
    def claims(self) -> list[str]:
        """Arms that learn from a model's scores alone."""
        judged = ("vlm", *JUDGE_ARMS)
        return [name for name, own in self.arms.items() if own.reward.arm in judged]

    @property
    def order(self) -> list[str]:
        """Arms as tables show them: claims, oracles, controls."""
        rest = [arm for arm in self.arms if arm not in (*self.claims, *self.controls)]
        return [*self.claims, *rest, *self.controls]


@dataclasses.dataclass(frozen=True)
class TaskFolder:
    """A work folder in which every stage's name begins with the task's."""

    inner: Workdir
    task: str

    @property
    def path(self) -> Path:
        """The folder of the whole run."""
        return self.inner.path

    def stage(self, name: str, settings: Any, after: Sequence[Stage] = ()) -> Stage:
        """The stage TASK_NAME."""
        return self.inner.stage(f"{self.task}_{name}", settings, after)


@dataclasses.dataclass
class Cells:
    """What is known so far: outcomes bool [episodes] and a row of figures by (task, arm, seed),
    iterations by the same; trained: outcomes of the refined policies, kept or not; told: a task's
    sentence ids [episodes] and its sentences."""

    outcomes: dict[tuple[str, str, int], np.ndarray] = dataclasses.field(default_factory=dict)
    trained: dict[tuple[str, str, int], np.ndarray] = dataclasses.field(default_factory=dict)
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    iterations: dict[tuple[str, str, int], list[dict]] = dataclasses.field(default_factory=dict)
    told: dict[str, tuple[np.ndarray, tuple[str, ...]]] = dataclasses.field(default_factory=dict)

    def tables(self, job: EvidenceJob, trained: bool = False) -> dict[str, dict[str, np.ndarray]]:
        """task -> arm -> bool [seeds, episodes], for `evidence.summarise`; with `trained` of the
        refined policies, kept or not."""
        known = {**self.outcomes, **self.trained} if trained else self.outcomes
        return {
            task: {
                arm: np.stack([known[task, arm, seed] for seed in job.seeds])
                for arm in (evidence.BASE, *job.order)
            }
            for task in job.tasks
        }


def play(job: EvidenceJob, workdir: Workdir, model: RewardModel | None) -> Cells:
    """Computes what is missing, cell by cell; `cells.json` grows with each."""
    cells = Cells()
    for task, where in job.tasks.items():
        world, folder = World.make(where.env, job.policy, job.mesh), TaskFolder(workdir, task)
        for seed in job.seeds:
            shared = job.cell(task, next(iter(job.arms)))
            base, variables, _ = clone_stage(folder, shared, seed, world)
            before = evaluation_stage(
                folder, f"evaluation_base_{seed}", job.evaluation, world, variables, base
            )
            cells.outcomes[task, evidence.BASE, seed] = before["success_end"]
            cells.told[task] = before["task_ids"], world.env.instructions
            for arm, own in job.arms.items():
                cell = job.cell(task, arm)
                kind = own.reward.arm
                stage, refined, iterations = refine_stage(
                    folder, cell, kind, seed, world, base, variables, model, label=arm
                )
                after = evaluation_stage(
                    folder, f"evaluation_{arm}_{seed}", job.evaluation, world, refined, stage
                )
                names = base.name, stage.name
                chosen, row = handed_over(job.keep, iterations, before, after, names)
                cells.outcomes[task, arm, seed] = chosen["success_end"]
                cells.trained[task, arm, seed] = after["success_end"]
                cells.iterations[task, arm, seed] = iterations
                cells.rows.append(
                    {"task": task, "arm": arm, "seed": seed, "reward": kind}
                    | row
                    | spent(cell, kind, iterations)
                    | {"seconds": stage.seconds}
                )
                if processes.is_first():
                    atomic.write_json(workdir / "cells.json", {"cells": cells.rows})
    return cells


def run(raw, workdir: Workdir) -> dict[str, Any]:
    """Play all cells; writes cells.json, summary.json, table.md and report.html."""
    job = config.build(EvidenceJob, raw)
    asked = [own.reward for own in job.arms.values() if own.reward.arm in MODEL_ARMS]
    # Equal meshes are one mesh: the model's is that of every task's world.
    mesh = make_mesh(job.mesh) if job.mesh else None
    model = load_reward_model(asked[0].model, mesh=mesh) if asked else None
    hashes = {} if model is None else model.facts
    manifest.update(
        workdir.path, hashes=hashes,
        seeds={"runs": list(job.seeds), "evaluation": job.evaluation.seed,
               "demonstrations": job.demonstrations.seed},
    )  # fmt: skip
    cells = play(job, workdir, model)
    tables = cells.tables(job)
    found = evidence.summarise(
        tables, job.oracle or None, effect=job.effect, power=job.power
    )
    trained = evidence.summarise(cells.tables(job, trained=True), job.oracle or None)
    summary = {
        "tasks": list(job.tasks), "seeds": list(job.seeds),
        "episodes": job.evaluation.episodes, "oracle": job.oracle or None,
        **found, "trained": trained["arms"],
        "sentences": {
            task: evidence.by_sentence(tables[task], *told) for task, told in cells.told.items()
        },
        # A control must not pass because what it did was thrown away.
        "bars": [*evidence.bars(found, job.claims, ()), *evidence.bars(trained, (), job.controls)],
        "cells": cells.rows,
    }  # fmt: skip
    if processes.is_first():
        atomic.write_json(workdir / "summary.json", summary)
        evidence_report.write(workdir, job, summary, cells.iterations)
    return summary
