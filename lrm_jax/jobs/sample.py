"""Writes the short video that `doctor` asks lrm-nano about, from an open-loop run's episodes.

python -m lrm_jax.jobs.sample --config=configs/open_loop.py --workdir=runs/open_loop
"""

from __future__ import annotations

import io

import numpy as np
from absl import flags

from lrm_jax.episodes import Episode
from lrm_jax.jobs import simulated
from lrm_jax.jobs.collect import collect_stage
from lrm_jax.jobs.doctor import SAMPLE
from lrm_jax.jobs.open_loop import OpenLoopJob, other_task
from lrm_jax.labels.clips import done_index
from lrm_jax.run import atomic, cli, config
from lrm_jax.run.errors import UserError
from lrm_jax.run.workdir import Workdir

FRAMES = 12


def sample_of(episodes: list[Episode]) -> dict[str, np.ndarray]:
    """`FRAMES` frames of the first success, evenly from its start until it is done."""
    for episode in episodes:
        if episode.success:
            at = np.round(np.linspace(0, done_index(episode), FRAMES)).astype(int)
            return {
                "frames": episode.frames[at],
                "task": np.array(episode.task),
                "wrong": np.array(other_task(episode)),
            }
    raise UserError("none of the episodes is a success")


def main(argv: list[str]) -> None:
    """Reads the run's episodes and writes the sample into the package."""
    cli.reject_arguments(argv)
    job = config.build(OpenLoopJob, _CONFIG.value)
    with Workdir(_WORKDIR.value) as workdir:
        _, arrays = collect_stage(workdir, "held_out_episodes", job.held_out, job.evaluate)
    episodes = list(simulated.episodes(arrays, job.held_out.make(), job.evaluate.stride))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **sample_of(episodes))
    atomic.write_bytes(SAMPLE, buffer.getvalue())


if __name__ == "__main__":
    _CONFIG = cli.define_config()
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    cli.run_app(main)
