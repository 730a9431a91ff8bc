"""The job `reward`: train a reward model on simulated episodes, and judge it open loop."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrm_jax.jobs import simulated
from lrm_jax.jobs.collect import collect_stage
from lrm_jax.jobs.open_loop import judge
from lrm_jax.jobs.scene_facts import with_facts
from lrm_jax.jobs.settings import CollectSettings, EnvSettings, TaskEpisodes
from lrm_jax.labels import Clip, FrameStore, HeldOut, make_clips
from lrm_jax.parallel.mesh import make_mesh
from lrm_jax.reward_training import RewardTraining, train
from lrm_jax.rewards.model import RewardModel, load_reward_model
from lrm_jax.run import config
from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError
from lrm_jax.run.workdir import Stage, Workdir


@dataclasses.dataclass(frozen=True)
class RewardJob:
    """Everything that `job="reward"` depends on.

    env, collect: the training episodes; more: those of further tasks. held_out, evaluate: the
    episodes of the open-loop table, whose sentences training must not contain in any wording;
    more_held_out: those of further tasks, unseen: those of tasks that are not trained on, judged
    apart. validation_episodes: the last so many training episodes of each task only validate. mesh:
    devices to train over, such as "data=-1"; empty for one. stage: the name of the model's stage; a
    training that starts from another's model in the same folder needs a name of its own. bars: what
    the table's metrics should reach, by name.
    """

    job: str = "reward"
    env: EnvSettings = field(default_factory=EnvSettings)
    collect: CollectSettings = field(default_factory=CollectSettings)
    more: tuple[TaskEpisodes, ...] = ()
    held_out: EnvSettings = field(default_factory=EnvSettings)
    evaluate: CollectSettings = field(default_factory=CollectSettings)
    more_held_out: tuple[TaskEpisodes, ...] = ()
    unseen: tuple[TaskEpisodes, ...] = ()
    training: RewardTraining = field(default_factory=RewardTraining)
    validation_episodes: int = field(128, ge=1)
    mesh: str = ""
    stage: str = "model"
    bars: tuple[tuple[str, float], ...] = ()


def run(raw, workdir: Workdir) -> dict:
    """Train, export the model to the stage ``config.stage``, and write the open-loop table."""
    job = config.build(RewardJob, raw)
    befores, found = training_episodes(job, workdir)
    stage, model = model_stage(job, workdir, befores, found)
    judged = [TaskEpisodes(job.held_out, job.evaluate), *job.more_held_out]
    return judge(workdir, model, judged, job.bars, [stage], job.unseen)


def training_episodes(
    job: RewardJob, workdir: Workdir
) -> tuple[list[Stage], list[tuple[TaskEpisodes, dict]]]:
    """The stages that hold them, and for each task its arrays (`simulated.collect`)."""
    befores, found = [], []
    for i, task in enumerate((TaskEpisodes(job.env, job.collect), *job.more)):
        name = "episodes" if i == 0 else f"episodes_{task.env.name}"
        before, arrays = collect_stage(workdir, name, task.env, task.collect)
        befores.append(before)
        found.append((task, arrays))
    return befores, found


def model_stage(
    job: RewardJob,
    workdir: Workdir,
    befores: Sequence[Stage],
    found: Sequence[tuple[TaskEpisodes, dict]],
    **more: Any,
) -> tuple[Stage, RewardModel]:
    """The stage `job.stage` with the model that has learnt from these episodes; more: what else it
    depends on."""
    settings = {"training": job.training, "validation": job.validation_episodes, **more}
    if job.training.start:
        settings["start"] = load_reward_model(job.training.start).facts
    stage = workdir.stage(job.stage, settings, after=befores)

    def compute(folder: Path) -> None:
        _train(job, found, stage.scratch, workdir).save(folder)

    return stage, stage.run(compute, load_reward_model)


def held_out_sentences(job: RewardJob) -> HeldOut:
    """Every sentence of the held-out scenes and of the unseen tasks, in all their wordings, and
    every sentence of a training task in a held-out wording."""
    found: list[str] = []
    for env in (job.held_out, *(task.env for task in (*job.more_held_out, *job.unseen))):
        made = dataclasses.replace(env, settings={**env.settings, "wordings": "all"}).make()
        found += made.sentences_in_use()
    for env in (job.env, *(task.env for task in job.more)):
        reworded = {**env.settings, "wordings": "held_out"}
        found += dataclasses.replace(env, settings=reworded).make().sentences_in_use()
    return HeldOut(found)


def _train(
    job: RewardJob, found: Sequence[tuple[TaskEpisodes, dict]], scratch: Path, workdir: Workdir
):
    """Clips of the training episodes, and the network that has learnt from them."""
    held = held_out_sentences(job)
    stores: list[FrameStore] = []
    clips: dict[str, list[Clip]] = {"train": [], "validate": []}
    for task, arrays in found:
        env = task.env.make()
        episodes = list(simulated.episodes(arrays, env, task.collect.stride))
        if job.validation_episodes >= len(episodes):
            raise UserError(
                f"config.validation_episodes ({job.validation_episodes}) leaves none of the "
                f"{len(episodes)} episodes of {task.env.name} to train on"
            )
        store = FrameStore.from_episodes(episodes)
        # Each task has its own scale from the simulator's progress to time.
        own = make_clips(episodes, store, job.training.clips, job.training.seed, held)
        own = with_facts(own, env, arrays)
        last = len(episodes) - job.validation_episodes
        for clip in own:
            clips["train" if clip.episode < last else "validate"].append(
                dataclasses.replace(
                    clip,
                    frames=clip.frames + sum(len(s.frames) for s in stores),
                    episode=clip.episode + sum(len(s.starts) - 1 for s in stores),
                )
            )
        stores.append(store)
    whole = FrameStore.joined(stores)
    stores.clear()  # frames are most of what is in memory
    return train(
        job.training, whole, clips["train"], scratch,
        validation_clips=clips["validate"], held_out=held,
        metrics=workdir.path, series=job.stage.replace("model", "reward", 1),
        mesh=make_mesh(job.mesh) if job.mesh else None,
    )  # fmt: skip
