"""The quickstart's report: curves, one episode before and after with its rewards, and tables."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from lrm_jax.jobs.base_policy import World
from lrm_jax.report import blocks, film_strip, overlay_video, write_report
from lrm_jax.report.video import Clip
from lrm_jax.rewards.model import RewardModel
from lrm_jax.rl import stopping
from lrm_jax.rl.evaluate import episode_keys, record
from lrm_jax.run import atomic
from lrm_jax.run.workdir import Workdir

WINDOW = stopping.StopConfig().window
FRAME_STEP = 2  # control steps from one judged frame of the film to the next


def film(
    world: World,
    model: RewardModel,
    base: Any,
    refined: Any,
    before: dict[str, np.ndarray],
    after: dict[str, np.ndarray],
    seed: int,
    workdir: Workdir,
) -> tuple[dict, dict]:
    """One paired episode as media for the report, and the numbers behind it.

    The episode is the first that the base policy fails and the refined one solves; if there is
    none, the first episode.
    """
    turned = np.flatnonzero(after["success_end"] & ~before["success_end"])
    number = int(turned[0]) if len(turned) else 0
    keys = episode_keys(seed, number + 1)[number:]
    sentence = world.env.instructions[int(before["task_ids"][number])]
    clips, media, example = [], {}, {"episode": number, "sentence": sentence}
    for label, policy in (("before refinement", base), ("after refinement", refined)):
        frames = record(world.env, world.render, world.policy, policy, jnp.asarray(keys))[0]
        frames = frames[::FRAME_STEP]
        scores = model.score(frames, sentence, heads=("progress", "completion"))
        curves = {"progress": scores.progress, "completion": scores.completion}
        clips.append(Clip(frames, sentence, curves, label))
        media[f"Film strip, {label}"] = {
            "png": film_strip(frames, curves), "caption": f'"{sentence}", {label}',
        }  # fmt: skip
        example[label] = {k: np.asarray(v).tolist() for k, v in curves.items()}
    data = overlay_video(clips, path=workdir / "episode.mp4", fps=world.env.control_hz / FRAME_STEP)
    caption = f"Evaluation episode {number}: the same start, before and after refinement."
    return {"Before and after": {"mp4": data, "caption": caption}, **media}, example


def write(
    workdir: Workdir,
    summary: dict,
    rows: list[dict],
    seconds: dict[str, float],
    media: dict,
    example: dict,
) -> None:
    """Write report.html from what the run measured."""
    iterations = [int(r["iteration"]) for r in rows]
    curves = [
        {
            "kind": "learning_curves",
            "title": "Success while refining",
            "caption": "Share of the rollouts of an iteration that end in success. The simulator "
            "knows it; neither reward nor learner does.",
            "x": iterations,
            "arms": {summary["arm"]: {"mean": [r["success_end"] for r in rows]}},
        },
        {
            "kind": "proxy_and_oracle",
            "title": "Reward and success",
            "caption": "Above, what an episode earned by the reward; below, success. Shaded: over "
            f"the last {WINDOW} iterations the two moved against each other (rank correlation "
            "below 0), as they do where a policy learns to please the reward instead of the task.",
            "x": iterations,
            "proxy": [[r[stopping.PROXY] for r in rows]],
            "oracle": [[r[stopping.ORACLE] for r in rows]],
            "apart": stopping.divergence(rows, WINDOW),
        },
        {
            "kind": "reward_components",
            "title": "What the reward model saw",
            "caption": f'"{example["sentence"]}", after refinement.',
            "scores": example["after refinement"],
        },
    ]
    tables = {
        "Where the time went": blocks.minutes(seconds, summary["wall_seconds"]),
    }
    manifest = atomic.read_json(workdir / "manifest.json")
    write_report(
        workdir / "report.html", summary, curves, tables, media, manifest,
        title="lrm_jax quickstart", subtitle=f"reward: {summary['arm']}, seed {summary['seed']}",
    )  # fmt: skip
