"""Run as a program: forks tiny trainings from scratch, so that imports are paid for once.

    python tests/reward_training/killed_run.py

Each line of stdin names a folder; a child trains there and prints "step N" as it goes, and at its
end "done DIGEST", the SHA-256 of its parameters. "status N" follows when it is gone. Batches come
from an iterator with a state of its own, and metrics are written, as in a real run.
"""

import functools
import hashlib
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Two threads, for otherwise each child starts eight.
os.environ["NPROC"] = "2"

import lrm_jax  # noqa: F401 - before jax

# isort: split
import jax
import numpy as np
import orbax.checkpoint  # noqa: F401 - before the fork
import tensorboardX  # noqa: F401

from lrm_jax.reward_training import NanoSize, loop, resumable
from lrm_jax.run import cli

sys.path.insert(0, str(Path(__file__).parent))
import toy

STEPS = 160
SIZE = NanoSize(
    image_size=32, vision_depth=1, vision_hidden=16, vision_heads=2, vision_mlp=16, deepstack=(0,),
    text_layers=1, text_hidden=32, text_heads=2, text_kv_heads=1, text_mlp=16,
)  # fmt: skip


class Counter:
    """Numbers by a generator whose state is not a function of the step: it must be restored."""

    def __init__(self):
        self._rng = np.random.default_rng(0)

    def __next__(self):
        return int(self._rng.integers(1 << 30))

    def get_state(self):
        return self._rng.bit_generator.state

    def set_state(self, state):
        self._rng.bit_generator.state = state


def say(word: str, value) -> None:
    """One line on stdout in one piece: `print` can be left half done by a signal's handler."""
    os.write(1, f"{word} {value}\n".encode())


def train(folder: str, argv: list[str]) -> None:
    store, clips = toy.toy_clips(count=8, length=6)
    phase = dict(heads={"progress": 1.0}, pairs_per_row=0, rows=4, frames_per_row=1)
    settings = toy.settings(STEPS, phase=phase, checkpoint_every=3)
    object.__setattr__(settings, "size", SIZE)
    source, run = Counter(), resumable.run

    def watched(steps, *args, **more):
        def draw(number, own=steps.draw):
            say("step", number)
            return own(next(source) % STEPS)

        object.__setattr__(steps, "draw", draw)
        return run(steps, *args, data=source, **more)

    resumable.run = watched
    made = loop.train(settings, store, clips, folder, metrics=folder)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(made.params):
        digest.update(np.ascontiguousarray(leaf))
    say("done", digest.hexdigest())


if __name__ == "__main__":
    for folder in map(str.strip, sys.stdin):
        child = os.fork()
        if child == 0:
            say("pid", os.getpid())
            cli.run_app(functools.partial(train, folder), ["killed_run"])
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        say("status", status)
