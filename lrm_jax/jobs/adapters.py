"""The job `adapters`: LoRA adapters for a checkpoint's heads, and the open-loop table with them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from lrm_jax.episodes import Episode
from lrm_jax.jobs import simulated
from lrm_jax.jobs.collect import collect_stage
from lrm_jax.jobs.open_loop import identity, judge
from lrm_jax.jobs.settings import CollectSettings, EnvSettings
from lrm_jax.labels import FrameStore, HeldOut, make_clips
from lrm_jax.reward_training import AdapterTraining
from lrm_jax.reward_training.adapters import save_adapter, train_adapter
from lrm_jax.reward_training.stream import DataSettings, load_episodes, store_episodes
from lrm_jax.rewards.model import load_reward_model
from lrm_jax.run import atomic, config
from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError, did_you_mean
from lrm_jax.run.workdir import Stage, Workdir


@dataclasses.dataclass(frozen=True)
class AdaptersJob:
    """Everything that `job="adapters"` depends on.

    model: a folder with a Qwen3-VL checkpoint, or a reward model's name. heads: which to train, one
    after the other; all if empty. dtype: of the frozen base. mesh: devices to train over, such as
    "fsdp=-1"; empty for one. env, collect: the training episodes. data: data sets on disk to train
    on instead, their frames resized to env.size. held_out, evaluate: the episodes of the open-loop
    table, whose sentences training must not contain.
    """

    job: str = "adapters"
    model: str = ""
    heads: tuple[str, ...] = ()
    dtype: str = "bfloat16"
    mesh: str = ""
    env: EnvSettings = field(default_factory=EnvSettings)
    collect: CollectSettings = field(default_factory=CollectSettings)
    data: DataSettings = field(default_factory=DataSettings)
    held_out: EnvSettings = field(default_factory=EnvSettings)
    evaluate: CollectSettings = field(default_factory=CollectSettings)
    training: AdapterTraining = field(default_factory=AdapterTraining)
    bars: tuple[tuple[str, float], ...] = ()


def episodes_stage(
    workdir: Workdir, job: AdaptersJob
) -> tuple[Stage, Callable[[], tuple[FrameStore, list[Episode]]]]:
    """The stage that holds the training episodes, simulated or from disk, and what reads them."""
    if not job.data.used:
        stage, arrays = collect_stage(workdir, "episodes", job.env, job.collect)

        def simulate():
            episodes = list(simulated.episodes(arrays, job.env.make(), job.collect.stride))
            return FrameStore.from_episodes(episodes), episodes

        return stage, simulate
    facts = {"data": job.data, "sources": job.data.sources(), "size": job.env.size}
    stage = workdir.stage("data", facts)

    def compute(folder: Path) -> None:
        found = store_episodes(folder, job.data, (job.env.size, job.env.size))
        atomic.write_json(folder / "sources.json", found)

    folder = stage.run(compute, lambda folder: folder)
    return stage, lambda: load_episodes(folder)


def run(raw, workdir: Workdir) -> dict:
    """Trains one adapter a head into ``stages/adapter_HEAD`` (PEFT folders), then judges them."""
    job = config.build(AdaptersJob, raw)
    if not job.model:
        raise UserError("config.model: name a folder with a Qwen3-VL checkpoint")
    model = load_reward_model(job.model, dtype=job.dtype, mesh=job.mesh or None)
    by_name = {head.name: head for head in model.heads}
    for name in job.heads:
        if name not in by_name:
            raise UserError(f"config.heads: {name!r} is unknown; {did_you_mean(name, by_name)}")
    before, read = episodes_stage(workdir, job)
    settings = {"training": job.training, "model": identity(model), "dtype": job.dtype}
    made: list[tuple] = []  # store and clips, once they are needed

    def data():
        if not made:
            store, episodes = read()
            held = HeldOut(job.held_out.make().sentences_in_use())
            made.append(
                (store, make_clips(episodes, store, job.training.clips, job.training.seed, held))
            )
        return made[0]

    folders: dict[str, str] = {}
    stages: list[Stage] = []
    for name in job.heads or tuple(by_name):
        stage = workdir.stage(f"adapter_{name}", settings | {"head": name}, after=[before])

        def compute(folder: Path, stage=stage, name=name) -> None:
            store, clips = data()
            adapter = train_adapter(
                job.training, model, by_name[name], store, clips, stage.scratch,
                metrics=workdir.path,
            )  # fmt: skip
            save_adapter(folder, adapter, job.training, model)

        folders[name] = stage.run(compute, lambda folder: str(folder))
        stages.append(stage)
    return judge(
        workdir, model.with_adapters(folders), job.held_out, job.evaluate, job.bars, stages
    )
