"""The job `reward`: train a reward model on simulated episodes, and judge it open loop."""

import dataclasses
from pathlib import Path

from lrm_jax.jobs import simulated
from lrm_jax.jobs.collect import collect_stage
from lrm_jax.jobs.open_loop import judge
from lrm_jax.jobs.scene_facts import with_facts
from lrm_jax.jobs.settings import CollectSettings, EnvSettings
from lrm_jax.labels import FrameStore, HeldOut, make_clips
from lrm_jax.parallel.mesh import make_mesh
from lrm_jax.reward_training import RewardTraining, train
from lrm_jax.rewards.model import load_reward_model
from lrm_jax.run import config
from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError
from lrm_jax.run.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class RewardJob:
    """Everything that `job="reward"` depends on.

    env, collect: the training episodes. held_out, evaluate: the episodes of the open-loop table,
    whose sentences training must not contain. validation_episodes: the last so many training
    episodes only validate. mesh: devices to train over, such as "data=-1"; empty for one. bars:
    what the table's metrics should reach, by name.
    """

    job: str = "reward"
    env: EnvSettings = field(default_factory=EnvSettings)
    collect: CollectSettings = field(default_factory=CollectSettings)
    held_out: EnvSettings = field(default_factory=EnvSettings)
    evaluate: CollectSettings = field(default_factory=CollectSettings)
    training: RewardTraining = field(default_factory=RewardTraining)
    validation_episodes: int = field(128, ge=1)
    mesh: str = ""
    bars: tuple[tuple[str, float], ...] = ()


def run(raw, workdir: Workdir) -> dict:
    """Train, export the model to ``stages/model``, and write the open-loop table."""
    job = config.build(RewardJob, raw)
    before, arrays = collect_stage(workdir, "episodes", job.env, job.collect)
    settings = {"training": job.training, "validation": job.validation_episodes}
    if job.training.start:
        settings["start"] = load_reward_model(job.training.start).facts
    stage = workdir.stage("model", settings, after=[before])

    def compute(folder: Path) -> None:
        _train(job, arrays, stage.scratch, workdir).save(folder)

    model = stage.run(compute, load_reward_model)
    return judge(workdir, model, job.held_out, job.evaluate, job.bars, [stage])


def _train(job: RewardJob, arrays, scratch: Path, workdir: Workdir):
    """Clips of the training episodes, and the network that has learnt from them."""
    env = job.env.make()
    held = HeldOut(job.held_out.make().sentences_in_use())
    episodes = list(simulated.episodes(arrays, env, job.collect.stride))
    if job.validation_episodes >= len(episodes):
        raise UserError(
            f"config.validation_episodes ({job.validation_episodes}) leaves none of the "
            f"{len(episodes)} episodes to train on"
        )
    store = FrameStore.from_episodes(episodes)
    clips = make_clips(episodes, store, job.training.clips, job.training.seed, held)
    clips = with_facts(clips, env, arrays)
    last = len(episodes) - job.validation_episodes
    return train(
        job.training, store, [c for c in clips if c.episode < last], scratch,
        validation_clips=[c for c in clips if c.episode >= last], held_out=held,
        metrics=workdir.path, mesh=make_mesh(job.mesh) if job.mesh else None,
    )  # fmt: skip
