"""What the door `score` does: videos in, the reward model's curves out."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from lrm_jax.episodes.video import read_picture
from lrm_jax.jobs.score_files import (
    Input,
    batches,
    column,
    frame_columns,
    read_inputs,
    speed,
    write_files,
)
from lrm_jax.rewards import parsing
from lrm_jax.rewards.engine import HEADS
from lrm_jax.rewards.generated import check_decode
from lrm_jax.rewards.layout import check_sentence
from lrm_jax.rewards.model import RewardModel
from lrm_jax.rewards.scores import NAMES, Scores
from lrm_jax.run.errors import UserError, did_you_mean
from lrm_jax.run.progress import bar


def score_inputs(
    model: RewardModel,
    paths: Sequence[str | os.PathLike[str]],
    task: str,
    out: str | os.PathLike[str],
    *,
    heads: Sequence[str] | None = None,
    interval: int = 1,
    goal: str | os.PathLike[str] | None = None,
    decode: str = "closed",
    max_new_tokens: int | None = None,
    scaffold: bool = False,
) -> dict[str, Any]:
    """Scores videos and writes scores.json, scores.parquet, plot.png, overlay.mp4, manifest.json.

    Where they go: see `score_files.read_inputs`.

    Returns: {"inputs", "frames", "seconds", "frames_per_second", "folders", "unreadable",
      "answers"}; seconds of scoring, compilation included; how many generated answers could not be
      read, of how many.
    goal: a picture (or video, its last frame) of the finished task, for heads that show one.
    decode, max_new_tokens, scaffold: as in `RewardModel.score`. Generated texts go into
      scores.json.
    Raises: UserError for an input that cannot be read, an empty task, an unknown head, an interval
      below 1 or an `out` that cannot be written.
    """
    check_sentence(task)
    if interval < 1:
        raise UserError(f"interval is {interval}: it counts frames and must be at least 1")
    known = [head.name for head in model.heads]
    for name in heads if heads is not None else ():
        if name not in known:
            raise UserError(f"heads: {name!r} is unknown; {did_you_mean(name, known)}")
    if heads is not None and not heads:
        raise UserError(f"heads: name at least one of {', '.join(known)}")
    check_decode(decode, max_new_tokens, scaffold)
    if decode == "generate":  # heads that cannot be read are refused before anything is written
        for head in model.heads:
            if heads is None or head.name in heads:
                parsing.reader(head)
    picture = None if goal is None else read_picture(goal)
    inputs = read_inputs(paths, out)
    spent, written, unreadable, answers = 0.0, 0, 0, 0
    settings = dict(heads=heads, interval=interval, goal=picture)
    for batch in bar(batches(inputs), desc="scoring", unit="batch"):
        before = time.perf_counter()
        frames = np.stack([one.video.frames for one in batch])
        texts: dict[str, np.ndarray] = {}
        if decode == "generate":
            said = model.generate(
                frames, task, **settings, max_new_tokens=max_new_tokens, scaffold=scaffold
            )
            scores, texts = said.scores, said.texts
            unreadable += sum(said.unreadable.values())
            answers += sum(said.answers.values())
        else:
            scores = model.score(frames, task, **settings)
        spent += time.perf_counter() - before
        for i, one in enumerate(batch):
            own = _of_video(scores, i)
            _write(one, own, task, model, interval, written, {k: t[i] for k, t in texts.items()})
            written += 1
    folders = [str(one.folder) for one in inputs]
    counts = {"folders": folders, "unreadable": unreadable, "answers": answers}
    return speed(inputs, spent) | counts


def as_json(scores: Scores, task: str, model: str) -> dict[str, Any]:
    """The content of scores.json for scores [T]: invalid values are None."""
    heads: dict[str, Any] = {}
    for name in NAMES:
        values = np.asarray(getattr(scores, name), np.float64)
        heads[name] = {
            "value": [None if math.isnan(v) else float(v) for v in values],
            "valid": [bool(v) for v in np.asarray(scores.valid[name])],
        }
    heads["progress"]["distribution"] = [
        [None if math.isnan(p) else float(p) for p in row]
        for row in np.asarray(scores.distribution, np.float64)
    ]
    return {"model": model, "task": task, "n_frames": len(scores.progress), "heads": heads}


def as_table(scores: Scores, episode: int, first: int = 0) -> pa.Table:
    """Scores [T] as a table: LeRobot's progress columns, then every head; invalid is null."""
    columns = frame_columns(len(scores.progress), episode, scores.progress, first)
    return pa.table(
        columns
        | {name: column(getattr(scores, name)) for name in NAMES}
        | {"entropy": column(scores.entropy)}
    )


def _of_video(scores: Scores, i: int) -> Scores:
    parts = {k: np.asarray(v)[i] for k, v in vars(scores).items() if k != "valid"}
    return Scores(valid={k: np.asarray(v)[i] for k, v in scores.valid.items()}, **parts)


def _write(
    one: Input,
    scores: Scores,
    task: str,
    model: RewardModel,
    interval: int,
    episode: int,
    texts: Mapping[str, np.ndarray],
) -> None:
    content = as_json(scores, task, model.name) | {
        "input": str(one.path), "fps": one.video.fps, "interval": interval,
        "decode": "generate" if texts else "closed",
    }  # fmt: skip
    for name, said in texts.items():  # comparisons: a text for each order
        content["heads"][name]["texts"] = said.tolist()
    asked = {name: np.asarray(getattr(scores, name)) for name in HEADS}
    # A video of one frame has no comparison; a head that said nothing at all gets no curve.
    curves = {k: v for k, v in asked.items() if np.asarray(scores.valid[k]).any()} or asked
    write_files(one, task, curves, as_table(scores, episode), content, model.facts)
