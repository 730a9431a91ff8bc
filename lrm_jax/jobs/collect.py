"""The job `collect`: scripted episodes of a simulated task, stored as arrays."""

import dataclasses
from pathlib import Path

import numpy as np

from lrm_jax.jobs import simulated
from lrm_jax.jobs.arrays import load_arrays, save_arrays
from lrm_jax.jobs.settings import CollectSettings, EnvSettings
from lrm_jax.run import atomic, config
from lrm_jax.run.config import field
from lrm_jax.run.workdir import Stage, Workdir


@dataclasses.dataclass(frozen=True)
class CollectJob:
    """Everything that `job="collect"` depends on."""

    job: str = "collect"
    env: EnvSettings = field(default_factory=EnvSettings)
    collect: CollectSettings = field(default_factory=CollectSettings)


def collection(env: EnvSettings, settings: CollectSettings) -> simulated.Collection:
    """The settings as `jobs.simulated` takes them."""
    return simulated.Collection(
        episodes=settings.episodes, modes=dict(settings.modes), size=env.size,
        stride=settings.stride, batch=settings.batch, seed=settings.seed,
    )  # fmt: skip


def collect_stage(
    workdir: Workdir, name: str, env: EnvSettings, settings: CollectSettings
) -> tuple[Stage, dict[str, np.ndarray]]:
    """The stage that holds these episodes, computed if it is not there yet, and its arrays."""
    stage = workdir.stage(name, {"env": env, "collect": settings})

    def compute(folder: Path) -> None:
        save_arrays(folder, simulated.collect(env.make(), collection(env, settings)))

    return stage, stage.run(compute, load_arrays)


def run(raw, workdir: Workdir) -> dict:
    """Collect the episodes of ``config.collect``; writes stages/episodes and summary.json."""
    job = config.build(CollectJob, raw)
    _, arrays = collect_stage(workdir, "episodes", job.env, job.collect)
    own = arrays["own"][:, None]
    done = np.take_along_axis(arrays["success"][:, -1], own, 1)[:, 0]
    summary = {
        "episodes": len(done),
        "success_by_mode": {
            mode: {"episodes": int(chosen.sum()), "success": float(done[chosen].mean())}
            for i, mode in enumerate(simulated.expert.MODES)
            if (chosen := np.asarray(arrays["mode"] == i)).any()
        },
    }
    atomic.write_json(workdir / "summary.json", summary)
    return summary
