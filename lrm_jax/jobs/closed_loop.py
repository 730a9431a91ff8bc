"""The job `closed_loop`: two stored policies on the same episodes, and whether they differ."""

import dataclasses
from pathlib import Path

import numpy as np

from lrm_jax.jobs.base_policy import EvaluationSettings, World, play_episodes
from lrm_jax.jobs.refine import compare
from lrm_jax.jobs.settings import EnvSettings
from lrm_jax.policies import PolicyConfig
from lrm_jax.report import blocks, write_report
from lrm_jax.run import atomic, config
from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError
from lrm_jax.run.trees import load_tree
from lrm_jax.run.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class ClosedLoopJob:
    """Everything that `job="closed_loop"` depends on.

    base, refined: policy files (``stages/.../policy.safetensors`` of a run), made with ``policy``.
    """

    job: str = "closed_loop"
    base: str = ""
    refined: str = ""
    env: EnvSettings = field(default_factory=EnvSettings)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def validate(self) -> None:
        """UserError where a policy is not named."""
        if not self.base or not self.refined:
            raise UserError("config.base and config.refined must name policy files")


def run(raw, workdir: Workdir) -> dict:
    """Play paired episodes with both policies; writes summary.json and report.html."""
    job = config.build(ClosedLoopJob, raw)
    world = World.make(job.env, job.policy)
    like = world.fresh(0)
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in ("base", "refined"):
        variables = load_tree(Path(getattr(job, name)), like=like)
        played = play_episodes(world, variables, job.evaluation, f"{name} policy")
        found[name] = {"success_end": played.success_end, "bad": played.bad}
    summary = compare(found["base"], found["refined"])
    atomic.write_json(workdir / "summary.json", summary)
    arms = {name: values["success_end"] for name, values in found.items()}
    write_report(
        workdir / "report.html", summary, [], {"Success": blocks.success(arms, "base")}, {},
        atomic.read_json(workdir / "manifest.json"), title="Closed-loop evaluation",
    )  # fmt: skip
    return summary
