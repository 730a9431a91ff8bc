"""The job `open_loop`: is a reward model right about episodes whose truth the simulator knows?"""

import dataclasses
from collections.abc import Mapping, Sequence
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
from lrm_jax.jobs.settings import CollectSettings, EnvSettings, TaskEpisodes
from lrm_jax.labels import time_map
from lrm_jax.labels.clips import done_index
from lrm_jax.report import blocks, write_report
from lrm_jax.rewards.model import RewardModel, load_reward_model
from lrm_jax.run import atomic, config, manifest, processes
from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError
from lrm_jax.run.progress import bar
from lrm_jax.run.workdir import Stage, Workdir

TABLES = 4  # version of what the stage "open_loop" holds: another one is computed anew
INTERVAL = 4  # stored frames between the two that contrastive compares: 8 control steps, 0.4 s


@dataclasses.dataclass(frozen=True)
class OpenLoopJob:
    """Everything that `job="open_loop"` depends on.

    model: a reward model's name or folder. held_out, evaluate: the episodes it is judged on;
    more_held_out: those of further tasks; unseen: those of tasks that it was not trained on, judged
    apart. bars: what the table's metrics should reach, by name.
    """

    job: str = "open_loop"
    model: str = "lrm-nano"
    held_out: EnvSettings = field(default_factory=EnvSettings)
    evaluate: CollectSettings = field(default_factory=CollectSettings)
    more_held_out: tuple[TaskEpisodes, ...] = ()
    unseen: tuple[TaskEpisodes, ...] = ()
    bars: tuple[tuple[str, float], ...] = ()


def run(raw, workdir: Workdir) -> dict:
    """Judge ``config.model``; writes summary.json, open_loop.md and report.html."""
    job = config.build(OpenLoopJob, raw)
    judged = [TaskEpisodes(job.held_out, job.evaluate), *job.more_held_out]
    return judge(workdir, load_reward_model(job.model), judged, job.bars, [], job.unseen)


def judge(
    workdir: Workdir,
    model: RewardModel,
    tasks: Sequence[TaskEpisodes],
    bars: tuple[tuple[str, float], ...],
    after: list[Stage],
    unseen: Sequence[TaskEpisodes] = (),
) -> dict:
    """The open-loop table of a model on scripted episodes of ``tasks``, and its files.

    With several tasks, or ``unseen`` ones, the summary holds further tables: "by_task" and
    "unseen", by the task's name, and "reworded", the same episodes in wordings that are kept from
    training, where wordings vary ("reworded_by_task": task by task). Each table has "any_distance":
    direction accuracy of pairs drawn from the whole episode, see `any_distance`.
    """
    names = [t.env.name for t in (*tasks, *unseen)]
    if len(set(names)) < len(names):
        raise UserError(f"tasks to judge are named twice: {', '.join(names)}")
    found, stages = [], list(after)
    for i, task in enumerate((*tasks, *unseen)):
        name = "held_out_episodes" if i == 0 else f"held_out_episodes_{task.env.name}"
        stage, arrays = collect_stage(workdir, name, task.env, task.collect)
        stages.append(stage)
        found.append((task, arrays))
    several = len(found) > 1
    facts = {"bars": bars, "model": identity(model), "interval": INTERVAL, "tables": TABLES}
    stage = workdir.stage("open_loop", facts, after=stages)

    def compute(folder: Path) -> None:
        made = tables(model, found[: len(tasks)], found[len(tasks) :], dict(bars), several)
        atomic.write_json(folder / "table.json", made)

    table = stage.run(compute, lambda folder: atomic.read_json(folder / "table.json"))
    if processes.is_first():
        _publish(workdir, model, table, several)
    return table


def _publish(workdir: Workdir, model: RewardModel, table: dict, several: bool) -> None:
    """The files of `judge`."""
    shown = {"Open loop": table}
    for group in ("by_task", "unseen"):
        title = {"by_task": "", "unseen": " (not trained on)"}[group]
        shown |= {name + title: own for name, own in table.get(group, {}).items()}
    if "reworded" in table:
        shown["Wordings kept from training"] = table["reworded"]
        for name, own in table.get("reworded_by_task", {}).items():
            shown[f"{name}, wordings kept from training"] = own
    text = "\n\n".join(
        (f"## {name}\n\n" if several else "") + _markdown(own) for name, own in shown.items()
    )
    atomic.write_bytes(workdir / "open_loop.md", text.encode())
    atomic.write_json(workdir / "summary.json", table)
    manifest.update(workdir.path, hashes=model.facts)
    write_report(
        workdir / "report.html", {"model": model.name, "episodes": table["episodes"]}, [],
        {name: blocks.open_loop(own) for name, own in shown.items()}, {},
        atomic.read_json(workdir / "manifest.json"),
        title="Open-loop evaluation", subtitle=model.name,
    )  # fmt: skip


def tables(model, tasks: list, unseen: list, bars: dict[str, float], several: bool) -> dict:
    """The tables of `judge` as one; tasks, unseen: (TaskEpisodes, arrays)."""

    each, reworded = {}, {}
    for number, (task, arrays) in enumerate((*tasks, *unseen)):
        env = task.env.make()
        episodes = list(simulated.episodes(arrays, env, task.collect.stride))
        each[task.env.name] = score_episodes(model, episodes), any_distance(model, episodes)
        if number < len(tasks) and task.env.settings.get("wordings", "plain") != "plain":
            said = env.words.in_use("held_out")
            again = list(simulated.episodes(arrays, env, task.collect.stride, said))
            reworded[task.env.name] = score_episodes(model, again), any_distance(model, again)

    def together(found) -> tuple[list, list]:
        return [e for s, _ in found for e in s], [e for _, p in found for e in p]

    table = table_of(*together([each[task.env.name] for task, _ in tasks]), bars)
    if several:
        table["by_task"] = {t.env.name: table_of(*each[t.env.name]) for t, _ in tasks}
        table["unseen"] = {t.env.name: table_of(*each[t.env.name]) for t, _ in unseen}
    if reworded:
        table["reworded"] = table_of(*together(reworded.values()))
        if several:
            table["reworded_by_task"] = {name: table_of(*own) for name, own in reworded.items()}
    return table


def table_of(
    scored: Sequence[ScoredEpisode],
    pairs: Sequence[ScoredEpisode],
    bars: Mapping[str, float] | None = None,
) -> dict:
    """`open_loop_table` of what `score_episodes` gives, with "any_distance" of what the function of
    that name gives."""
    made = open_loop_table(scored, bars=bars)
    row = open_loop_table(pairs)["metrics"]["direction_accuracy"]
    made["any_distance"] = {arm: row[arm] for arm in ("model", "constant", "time ramp")}
    return made


def _markdown(table: dict) -> str:
    """The table and the line about pairs at any distance."""
    row = table["any_distance"]
    cells = ", ".join(
        f"{arm} {values['value']:.3f}" for arm, values in row.items() if values["value"] is not None
    )
    return f"{open_loop_markdown(table)}\n\nDirection accuracy of pairs at any distance: {cells}."


def any_distance(
    model: RewardModel, episodes: list, pairs: int = 16, batch: int = 32
) -> list[ScoredEpisode]:
    """Contrastive scores of ``pairs`` pairs of frames of each episode, drawn from all of it.

    Returned as episodes of 2 ``pairs`` frames, all earlier ones first, whose interval is ``pairs``:
    of the open-loop table only the rows about directions mean anything.
    """
    scale, scored = time_map(episodes), []
    for start in bar(range(0, len(episodes), batch), desc="pairs", unit="batch"):
        some = episodes[start : start + batch]
        padded = some + [some[-1]] * (batch - len(some))
        shown = []
        for i, episode in enumerate(padded):
            rng = np.random.default_rng([11, start + i])
            two = [rng.choice(len(episode.frames), 2, replace=False) for _ in range(pairs)]
            shown.append(np.sort(np.array(two), 1).T.reshape(-1))
        frames = np.stack([e.frames[at] for e, at in zip(padded, shown, strict=True)])
        answers = model.score(
            frames, [e.task for e in padded], interval=pairs, heads=("contrastive",)
        ).contrastive
        for episode, at, own in zip(some, shown, answers, strict=False):
            target, done = (values[at] for values in truth(episode, scale))
            heads = HeadScores(contrastive=own)
            scored.append(ScoredEpisode(heads, target, done, episode.success, interval=pairs))
    return scored


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
