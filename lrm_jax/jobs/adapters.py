"""The job `adapters`: LoRA adapters for a checkpoint's heads, and the open-loop table with them."""

import dataclasses
from pathlib import Path

from lrm_jax.jobs import simulated
from lrm_jax.jobs.collect import collect_stage
from lrm_jax.jobs.open_loop import identity, judge
from lrm_jax.jobs.settings import CollectSettings, EnvSettings
from lrm_jax.labels import FrameStore, HeldOut, make_clips
from lrm_jax.reward_training import AdapterTraining
from lrm_jax.reward_training.adapters import save_adapter, train_adapter
from lrm_jax.rewards.model import load_reward_model
from lrm_jax.run import config
from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError, did_you_mean
from lrm_jax.run.workdir import Stage, Workdir


@dataclasses.dataclass(frozen=True)
class AdaptersJob:
    """Everything that `job="adapters"` depends on.

    model: a folder with a Qwen3-VL checkpoint, or a reward model's name. heads: which to train, one
    after the other; all if empty. dtype: of the frozen base. mesh: devices to train over, such as
    "fsdp=-1"; empty for one. env, collect: the training episodes. held_out, evaluate: those of the
    open-loop table, whose sentences training must not contain.
    """

    job: str = "adapters"
    model: str = ""
    heads: tuple[str, ...] = ()
    dtype: str = "bfloat16"
    mesh: str = ""
    env: EnvSettings = field(default_factory=EnvSettings)
    collect: CollectSettings = field(default_factory=CollectSettings)
    held_out: EnvSettings = field(default_factory=EnvSettings)
    evaluate: CollectSettings = field(default_factory=CollectSettings)
    training: AdapterTraining = field(default_factory=AdapterTraining)
    bars: tuple[tuple[str, float], ...] = ()


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
    before, arrays = collect_stage(workdir, "episodes", job.env, job.collect)
    settings = {"training": job.training, "model": identity(model), "dtype": job.dtype}
    made: list[tuple] = []  # store and clips, once they are needed

    def data():
        if not made:
            env = job.env.make()
            episodes = list(simulated.episodes(arrays, env, job.collect.stride))
            held = HeldOut(job.held_out.make().sentences_in_use())
            store = FrameStore.from_episodes(episodes)
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
