"""The job `adapters`: LoRA adapters for a checkpoint's heads, or all its weights, and the open-loop
table with them."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from lrm_jax.episodes import Episode
from lrm_jax.jobs import simulated
from lrm_jax.jobs.collect import collect_stage
from lrm_jax.jobs.open_loop import identity, judge
from lrm_jax.jobs.settings import CollectSettings, EnvSettings, TaskEpisodes
from lrm_jax.labels import FrameStore, HeldOut, make_clips
from lrm_jax.lora import files as lora_files
from lrm_jax.reward_training import AdapterTraining
from lrm_jax.reward_training.adapters import save_adapter, train_adapter
from lrm_jax.reward_training.example_stream import ExampleStream, Streamed
from lrm_jax.reward_training.stream import (
    DataSettings,
    apart,
    load_episodes,
    load_sentences,
    mixture,
    open_sources,
    store_episodes,
)
from lrm_jax.rewards.heads import Head
from lrm_jax.rewards.model import load_reward_model
from lrm_jax.run import atomic, config, processes
from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError, did_you_mean
from lrm_jax.run.workdir import Stage, Workdir


@dataclasses.dataclass(frozen=True)
class AdaptersJob:
    """Everything that `job="adapters"` depends on.

    model: a folder with a Qwen3-VL checkpoint, or a reward model's name. heads: which to train, all
    if empty. dtype: of the frozen base. mesh: devices to train over, such as
    "fsdp=-1"; empty for one. env, collect: the training episodes. data: data sets on disk to train
    on instead, their frames resized to env.size. validation_episodes: so many are never trained on
    and validate instead: the last of the simulated ones; on disk the last of each data set, by its
    share of all episodes. held_out, evaluate: the episodes of the open-loop
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
    validation_episodes: int = field(0, ge=0)
    bars: tuple[tuple[str, float], ...] = ()

    def validate(self):
        if self.data.stream:
            if not self.training.steps:
                raise UserError("training.steps is 0: with data.stream say how many steps to train")
            if self.training.rows % self.data.per_episode:
                raise UserError(
                    f"data.per_episode is {self.data.per_episode}: it must divide training.rows, "
                    f"which is {self.training.rows}"
                )
        if self.training.best and not self.validation_episodes:
            raise UserError(
                f"training.best is {self.training.best!r}: keep episodes to validate on, "
                "as validation_episodes=64"
            )


def episodes_stage(
    workdir: Workdir, job: AdaptersJob
) -> tuple[Stage, Callable[[], tuple[FrameStore, list[Episode], int]]]:
    """The stage that holds the episodes, simulated or from disk, and what reads them: frames,
    episodes, and how many of these, the last ones, validate."""
    kept = job.validation_episodes
    if not job.data.used:
        stage, arrays = collect_stage(workdir, "episodes", job.env, job.collect)

        def simulate():
            episodes = list(simulated.episodes(arrays, job.env.make(), job.collect.stride))
            if kept >= len(episodes):
                raise UserError(
                    f"config.validation_episodes ({kept}) leaves none of the {len(episodes)} "
                    "episodes to train on"
                )
            return FrameStore.from_episodes(episodes), episodes, kept

        return stage, simulate
    facts = {
        "data": job.data, "sources": job.data.sources(), "size": job.env.size, "validation": kept
    }  # fmt: skip
    stage = workdir.stage("data", facts)

    def compute(folder: Path) -> None:
        found = store_episodes(folder, job.data, (job.env.size, job.env.size), kept)
        atomic.write_json(folder / "sources.json", found)

    folder = stage.run(compute, lambda folder: folder)
    return stage, lambda: load_episodes(folder)


def streams(
    job: AdaptersJob, heads: Sequence[Head], stored: Stage, held: HeldOut, workdir: Workdir
) -> Streamed:
    """The heads' examples as they come, each head's from its beginning; the validation episodes are
    left out. stored: the stage of `episodes_stage`. With several processes each decodes all of them
    and gives its devices their rows."""
    size = (job.env.size, job.env.size)
    found = {}
    for head in heads:
        reports = workdir / "quarantine" / head.name if processes.is_first() else None
        sources, weights = open_sources(job.data, reports)
        learnt, _ = apart(sources, job.validation_episodes)
        found[head.name] = ExampleStream(
            mixture(job.data, sources, weights, size, numbers=learnt), head, job.training.clips,
            job.training.examples, job.training.rows, job.data.per_episode, held,
        )  # fmt: skip
    return Streamed(found, load_sentences(stored.path), size, stored.fingerprint)


def run(raw, workdir: Workdir) -> dict:
    """Trains one adapter a head into ``stages/adapter_HEAD`` (PEFT folders), or together into
    ``stages/adapters/HEAD``, or all weights into ``stages/model``; then judges what it made."""
    job = config.build(AdaptersJob, raw)
    if not job.model:
        raise UserError("config.model: name a folder with a Qwen3-VL checkpoint")
    model = load_reward_model(job.model, dtype=job.dtype, mesh=job.mesh or None)
    by_name = {head.name: head for head in model.heads}
    for name in job.heads:
        if name not in by_name:
            raise UserError(f"config.heads: {name!r} is unknown; {did_you_mean(name, by_name)}")
    before, read = episodes_stage(workdir, job)
    chosen = job.heads or tuple(by_name)
    settings = {
        "training": job.training, "model": identity(model), "dtype": job.dtype,
        "validation": job.validation_episodes,
    }  # fmt: skip
    if job.training.start:
        starts = {n: Path(job.training.start.replace("{head}", n)) for n in chosen}
        settings["start"] = lora_files.facts(starts)
    held = HeldOut(job.held_out.make().sentences_in_use())
    made: list[tuple] = []  # store and clips, to train and to validate, once they are needed

    def data():
        if not made:
            store, episodes, kept = read()
            clips = []
            if episodes:
                clips = make_clips(episodes, store, job.training.clips, job.training.seed, held)
            first = len(episodes) - kept
            made.append((
                store, [c for c in clips if c.episode < first],
                [c for c in clips if c.episode >= first],
            ))  # fmt: skip
        return made[0]

    def train(name: str, head, save, settings: dict):
        """The stage `name`, whose folder `save` fills from what `head` (or several) learnt."""
        stage = workdir.stage(name, settings, after=[before])

        def compute(folder: Path) -> None:
            store, clips, validation = data()
            asked = [head] if isinstance(head, Head) else head
            streamed = streams(job, asked, before, held, workdir) if job.data.stream else None
            found = train_adapter(
                job.training, model, head, store, clips, stage.scratch,
                validation_clips=validation, streamed=streamed, metrics=workdir.path,
            )  # fmt: skip
            save(folder, found)

        return stage, Path(stage.run(compute, lambda folder: str(folder)))

    def save_one(folder: Path, adapter) -> None:
        save_adapter(folder, adapter, job.training, model)

    def save_each(folder: Path, adapters) -> None:
        for name, adapter in adapters.items():
            save_one(folder / name, adapter)

    heads = [by_name[name] for name in chosen]
    if job.training.method == "full":
        stage, folder = train("model", heads, save_one, settings | {"heads": chosen})
        judged, stages = load_reward_model(folder, dtype=job.dtype, mesh=job.mesh or None), [stage]
    elif job.training.together:
        stage, folder = train("adapters", heads, save_each, settings | {"heads": chosen})
        judged, stages = model.with_adapters({n: folder / n for n in chosen}), [stage]
    else:
        done = {
            h.name: train(f"adapter_{h.name}", h, save_one, settings | {"head": h.name})
            for h in heads
        }
        judged = model.with_adapters({name: folder for name, (_, folder) in done.items()})
        stages = [stage for stage, _ in done.values()]
    held_out = [TaskEpisodes(job.held_out, job.evaluate)]
    return judge(workdir, judged, held_out, job.bars, stages)
