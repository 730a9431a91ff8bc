"""Videos in, files out: what scoring with a reward model and with a judge have in common."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lrm_jax.episodes.video import Video, read_video
from lrm_jax.report import plots
from lrm_jax.report.video import Clip, overlay_video
from lrm_jax.run import atomic, manifest
from lrm_jax.run.errors import UserError
from lrm_jax.run.progress import bar

BATCH = 8  # videos of one shape that are scored together
PICTURE = 320


class Input(NamedTuple):
    """A video to be scored: where it came from, and the folder that its results go to."""

    path: Path
    folder: Path
    video: Video


def read_inputs(
    paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]
) -> list[Input]:
    """All videos, read before any folder is made, so that a bad one loses nothing.

    One input's results go into `out`; several inputs' into `out/NAME`, a number added where names
    repeat. UserError for nothing to score, an input that cannot be read, an `out` that cannot be
    written.
    """
    if not paths:
        raise UserError("there is nothing to score: give a video, a folder of images or an array")
    videos = [read_video(p) for p in bar(paths, desc="reading", unit="video")]
    inputs = [
        Input(Path(p), folder, video)
        for p, folder, video in zip(paths, _folders(paths, Path(out)), videos, strict=True)
    ]
    try:
        for one in inputs:
            one.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): choose another --out") from (
            error
        )
    return inputs


def batches(inputs: Sequence[Input]) -> list[list[Input]]:
    """Inputs that can be scored together: of one shape, at most `BATCH`."""
    groups: dict[tuple[int, ...], list[Input]] = {}
    for one in inputs:
        groups.setdefault(one.video.frames.shape, []).append(one)
    return [
        group[at : at + BATCH] for group in groups.values() for at in range(0, len(group), BATCH)
    ]


def speed(inputs: Sequence[Input], seconds: float) -> dict[str, Any]:
    """{"inputs", "frames", "seconds", "frames_per_second"}."""
    frames = sum(len(one.video.frames) for one in inputs)
    found = {"inputs": len(inputs), "frames": frames, "seconds": seconds}
    return found | {"frames_per_second": frames / seconds}


def frame_columns(count: int, episode: int, progress: Any, first: int = 0) -> dict[str, pa.Array]:
    """LeRobot's progress columns of one episode of `count` frames."""
    return {
        "index": pa.array(np.arange(first, first + count, dtype=np.int64)),
        "episode_index": pa.array(np.full(count, episode, np.int64)),
        "frame_index": pa.array(np.arange(count, dtype=np.int64)),
        "progress_sparse": column(progress),
    }


def column(values: Any) -> pa.Array:
    """float32, null where it is NaN."""
    values = np.asarray(values, np.float32)
    return pa.array(values, mask=np.isnan(values))


def write_files(
    one: Input,
    task: str,
    curves: Mapping[str, np.ndarray],
    table: pa.Table,
    content: dict[str, Any],
    facts: dict[str, Any],
) -> None:
    """plot.png and overlay.mp4 of `curves`, scores.parquet, manifest.json, scores.json."""
    frames, fps = one.video
    drawing = plots.reward_components(dict(curves), seconds_per_frame=1 / fps, title=task)
    atomic.write_bytes(one.folder / "plot.png", drawing)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    atomic.write_bytes(one.folder / "scores.parquet", sink.getvalue().to_pybytes())
    clip = Clip(frames, task, dict(curves))
    overlay_video(clip, one.folder / "overlay.mp4", fps=fps, picture=PICTURE)
    manifest.write(one.folder, hashes=facts, job="score")
    atomic.write_bytes(one.folder / "scores.json", json.dumps(content, indent=1).encode())


def _folders(paths: Sequence[str | os.PathLike[str]], out: Path) -> list[Path]:
    if len(paths) == 1:
        return [out]
    names: list[str] = []
    for path in paths:
        name = Path(path).resolve().stem or "input"
        fresh, number = name, 2
        while fresh in names:
            fresh, number = f"{name}_{number}", number + 1
        names.append(fresh)
    return [out / name for name in names]
