"""The job `open_loop`: is a reward model right about episodes whose truth the simulator knows?"""

import dataclasses
from pathlib import Path

import numpy as np

from lrm_jax.evaluation.open_loop import (
    HeadScores,
    ScoredEpisode,
    open_loop_markdown,
    open_loop_table,
)
from lrm_jax.jobs import simulated
from lrm_jax.jobs.collect import collect_stage
from lrm_jax.jobs.settings import CollectSettings, EnvSettings
from lrm_jax.labels import time_map
from lrm_jax.labels.clips import done_index
from lrm_jax.report import blocks, write_report
from lrm_jax.rewards.model import RewardModel, load_reward_model
from lrm_jax.run import atomic, config, manifest
from lrm_jax.run.config import field
from lrm_jax.run.progress import bar
from lrm_jax.run.workdir import Stage, Workdir

INTERVAL = 4  # stored frames between the two that contrastive compares: 8 control steps, 0.4 s


@dataclasses.dataclass(frozen=True)
class OpenLoopJob:
    """Everything that `job="open_loop"` depends on.

    model: a reward model's name or folder. held_out, evaluate: the episodes it is judged on. bars:
    what the table's metrics should reach, by name.
    """

    job: str = "open_loop"
    model: str = "lrm-nano"
    held_out: EnvSettings = field(default_factory=EnvSettings)
    evaluate: CollectSettings = field(default_factory=CollectSettings)
    bars: tuple[tuple[str, float], ...] = ()


def run(raw, workdir: Workdir) -> dict:
    """Judge ``config.model``; writes summary.json, open_loop.md and report.html."""
    job = config.build(OpenLoopJob, raw)
    return judge(workdir, load_reward_model(job.model), job.held_out, job.evaluate, job.bars, [])


def judge(
    workdir: Workdir,
    model: RewardModel,
    env: EnvSettings,
    collect: CollectSettings,
    bars: tuple[tuple[str, float], ...],
    after: list[Stage],
) -> dict:
    """The open-loop table of a model on scripted episodes of ``env``, and its files."""
    judged, arrays = collect_stage(workdir, "held_out_episodes", env, collect)
    facts = {"bars": bars, "model": identity(model), "interval": INTERVAL}
    stage = workdir.stage("open_loop", facts, after=[*after, judged])

    def compute(folder: Path) -> None:
        scored = score_episodes(model, list(simulated.episodes(arrays, env.make(), collect.stride)))
        atomic.write_json(folder / "table.json", open_loop_table(scored, bars=dict(bars)))

    table = stage.run(compute, lambda folder: atomic.read_json(folder / "table.json"))
    atomic.write_bytes(workdir / "open_loop.md", open_loop_markdown(table).encode())
    atomic.write_json(workdir / "summary.json", table)
    manifest.update(workdir.path, hashes=model.facts)
    write_report(
        workdir / "report.html", {"model": model.name, "episodes": table["episodes"]}, [],
        {"Open loop": blocks.open_loop(table)}, {}, atomic.read_json(workdir / "manifest.json"),
        title="Open-loop evaluation", subtitle=model.name,
    )  # fmt: skip
    return table


def identity(model: RewardModel) -> dict:
    """All that a model's scores depend on, wherever it lies: weights, prompts, calibration."""
    return {name: fact for name, fact in model.facts.items() if name != "model"}


def score_episodes(model: RewardModel, episodes: list, batch: int = 32) -> list[ScoredEpisode]:
    """Score episodes under their own and under a wrong sentence, beside what the simulator knows.

    Progress targets are the method's t / T until a demonstration is done; afterwards, and in
    failures, the simulator's progress on the time scale of these demonstrations. The wrong sentence
    names the other cube and the other plate.
    """
    scale = time_map(episodes)
    scored = []
    for start in bar(range(0, len(episodes), batch), desc="scoring", unit="batch"):
        some = episodes[start : start + batch]
        padded = some + [some[-1]] * (batch - len(some))
        frames = np.stack([e.frames for e in padded])
        own = model.score(frames, [e.task for e in padded], interval=INTERVAL)
        other = model.score(frames, [other_task(e) for e in padded], interval=INTERVAL)
        for i, episode in enumerate(some):
            target, done = truth(episode, scale)
            scored.append(
                ScoredEpisode(
                    scores=_heads(own, i), target=target, done=done, success=episode.success,
                    wrong=_heads(other, i), interval=INTERVAL,
                )
            )  # fmt: skip
    return scored


def truth(episode, scale) -> tuple[np.ndarray, np.ndarray]:
    """What progress should be float [T], and whether the task is done bool [T]; see
    `score_episodes`. scale: `time_map` of the episodes."""
    done = episode.progress >= 1.0 - 1e-6
    if not episode.success:
        return scale(episode.progress), done
    first = done_index(episode)
    target = np.minimum(np.arange(len(done)) / max(first, 1), 1.0)
    target[first:] = scale(episode.progress[first:])
    return target, done


def other_task(episode) -> str:
    """The sentence of the scene that shares the fewest words with the episode's own."""
    words = set(episode.task.split())
    return min(episode.meta["progress_by_task"], key=lambda s: len(words & set(s.split())))


def _heads(scores, i: int) -> HeadScores:
    return HeadScores(scores.progress[i], scores.completion[i], scores.contrastive[i])
