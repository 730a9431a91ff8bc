"""What the door `score` does with `--judge`: videos in, a published judge's curve out."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lrm_jax.jobs.score_files import batches, column, frame_columns, read_inputs, speed, write_files
from lrm_jax.rewards.judges import Judge, Judged
from lrm_jax.rewards.layout import check_sentence
from lrm_jax.run import atomic
from lrm_jax.run.progress import bar


def judge_inputs(
    judge: Judge,
    folder: str | os.PathLike[str],
    paths: Sequence[str | os.PathLike[str]],
    task: str,
    out: str | os.PathLike[str],
) -> dict[str, Any]:
    """Judges every frame of videos by what led up to it, and writes the files of
    `score_files.write_files`, where `score_files.read_inputs` says.

    Args:
      folder: where the judge was loaded from, for the manifest.
    Returns: {"inputs", "frames", "seconds", "frames_per_second"}; compilation included.
    Raises: UserError for an input that cannot be read or an empty task.
    """
    check_sentence(task)
    inputs = read_inputs(paths, out)
    known = {
        "judge": judge.name,
        "model_sha256": {
            f.name: atomic.sha256(f) for f in sorted(Path(folder).glob("*.safetensors"))
        },
        "tokenizer_sha256": judge.tokenizer.digest,
        "prompt": judge.prompt,
    }
    spent, written = 0.0, 0
    for batch in bar(batches(inputs), desc="judging", unit="batch"):
        for one in batch:  # videos of a batch may differ in their rate, which judges are told
            before = time.perf_counter()
            judged = judge.score(one.video.frames, task, fps=one.video.fps)
            spent += time.perf_counter() - before
            content = as_json(judged, task, judge.name) | {
                "input": str(one.path), "fps": one.video.fps,
            }  # fmt: skip
            columns = frame_columns(len(judged.value), written, judged.value)
            table = pa.table(columns | {"value": column(judged.value), "raw": column(judged.raw)})
            write_files(one, task, {judge.name: judged.value}, table, content, known)
            written += 1
    return speed(inputs, spent)


def as_json(judged: Judged, task: str, name: str) -> dict[str, Any]:
    """The content of scores.json for a judge's [T]: invalid values are None."""
    found: dict[str, Any] = {
        "value": _plain(judged.value),
        "valid": [bool(v) for v in judged.valid],
        "raw": _plain(judged.raw),
    }
    if judged.distribution is not None:
        found["distribution"] = [_plain(row) for row in judged.distribution]
    return {"judge": name, "task": task, "n_frames": len(judged.value), **found}


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(v) if math.isfinite(v) else None for v in np.asarray(values, np.float64)]
