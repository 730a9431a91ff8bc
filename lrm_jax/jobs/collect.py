"""The job `collect`: scripted episodes of a simulated task, stored as arrays or as a data set."""

import dataclasses
from pathlib import Path

import numpy as np

from lrm_jax.episodes.lerobot_writer import write_lerobot
from lrm_jax.episodes.lrm_sim import write_lrm_sim
from lrm_jax.jobs import simulated
from lrm_jax.jobs.arrays import load_arrays, save_arrays
from lrm_jax.jobs.settings import CollectSettings, EnvSettings
from lrm_jax.run import atomic, config
from lrm_jax.run.config import field
from lrm_jax.run.workdir import Stage, Workdir

DATASETS = ("array_record", "tfrecord", "lerobot")


@dataclasses.dataclass(frozen=True)
class CollectJob:
    """Everything that `job="collect"` depends on.

    write: also as a data set, in ``stages/dataset``: "array_record" or "tfrecord" (RLDS, named
    lrm_sim) or "lerobot" (v3). validation: share of the episodes, the last ones, that RLDS keeps
    as the split "val".
    """

    job: str = "collect"
    write: str = field("", choices=("", *DATASETS))
    validation: float = field(0.0, ge=0, lt=1)
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


def write_stage(workdir: Workdir, job: CollectJob, before: Stage, arrays: dict) -> str:
    """The stage that holds the episodes as the data set ``job.write``; its folder."""
    facts = {"write": job.write, "validation": job.validation}
    stage = workdir.stage("dataset", facts, after=[before])

    def compute(folder: Path) -> None:
        env = job.env.make()
        episodes = list(simulated.episodes(arrays, env, job.collect.stride))
        if job.write == "lerobot":
            write_lerobot(folder / "lrm_sim", episodes)
            return
        kept = len(episodes) - round(job.validation * len(episodes))
        splits = {"train": episodes[:kept], "val": episodes[kept:]}
        write_lrm_sim(folder, {k: v for k, v in splits.items() if v}, job.write)

    return stage.run(compute, lambda folder: str(folder / "lrm_sim"))


def run(raw, workdir: Workdir) -> dict:
    """Collect the episodes of ``config.collect``; writes stages/episodes, stages/dataset if
    ``config.write`` is set, and summary.json."""
    job = config.build(CollectJob, raw)
    before, arrays = collect_stage(workdir, "episodes", job.env, job.collect)
    written = write_stage(workdir, job, before, arrays) if job.write else None
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
    if written is not None:
        summary["dataset"] = written
    atomic.write_json(workdir / "summary.json", summary)
    return summary
