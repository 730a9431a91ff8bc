"""Run as a program: a tiny training from scratch, over one device, several, or several processes.

    python tests/reward_training/spread.py DEVICES MESH FOLDER COORDINATOR COUNT NUMBER

DEVICES in all, cut over MESH ("" for one device). Trains once through and once killed and resumed;
prints the losses of each step, the validation and a digest of the parameters of both.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count={int(sys.argv[1]) // int(sys.argv[5])}"
)

import lrm_jax  # noqa: F401 - before jax

# isort: split
import dataclasses

import jax
import numpy as np

from lrm_jax.parallel.mesh import make_mesh, start_processes
from lrm_jax.reward_training import NanoSize, loop, resumable
from lrm_jax.run import metrics

sys.path.insert(0, str(Path(__file__).parent))
import toy

devices, mesh, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
coordinator, count, number = sys.argv[4], int(sys.argv[5]), int(sys.argv[6])
SIZE = NanoSize(
    image_size=32, vision_depth=1, vision_hidden=16, vision_heads=2, vision_mlp=16, deepstack=(0,),
    text_layers=1, text_hidden=32, text_heads=2, text_kv_heads=2, text_mlp=16,
)  # fmt: skip


class Source:
    """An iterator's state of each process's own."""

    def __init__(self):
        self.given = 0

    def get_state(self):
        return {"process": jax.process_index(), "given": self.given}

    def set_state(self, state):
        assert state["process"] == jax.process_index()
        self.given = state["given"]


def train(name: str, die_at: int | None = None) -> dict:
    store, clips = toy.toy_clips(count=8, length=6)
    phase = dict(heads={"progress": 1.0}, pairs_per_row=0, rows=8, frames_per_row=1)
    settings = toy.settings(4, phase=phase, checkpoint_every=1, evaluate_every=2)
    settings = dataclasses.replace(settings, size=SIZE)
    source, run = Source(), resumable.run

    def watched(steps, *args, **more):
        def draw(step):
            assert source.given == step
            source.given += 1
            if step == die_at:
                raise InterruptedError
            return steps.draw(step)

        return run(dataclasses.replace(steps, draw=draw), *args, data=source, **more)

    out = folder / name
    out.mkdir(parents=True, exist_ok=True)
    loop.resumable.run = watched
    try:
        made = loop.train(
            settings, store, clips[:6], out, validation_clips=clips[6:], metrics=out,
            mesh=make_mesh(mesh) if mesh else None,
        )  # fmt: skip
    except InterruptedError:
        return {}
    finally:
        loop.resumable.run = run
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(made.params):
        digest.update(np.ascontiguousarray(leaf))
    rows = metrics.read(out, "reward") if jax.process_index() == 0 else []
    return {
        "losses": [row["loss"] for row in rows if "loss" in row],
        "validation": made.validation,
        "digest": digest.hexdigest(),
    }


if __name__ == "__main__":
    if count > 1:
        start_processes(coordinator, count, number)
    assert len(jax.devices()) == devices and jax.process_count() == count
    resumable.LOG_EVERY = 1
    whole = train("whole")
    train("killed", die_at=2)
    print(json.dumps({"whole": whole, "resumed": train("killed")}), flush=True)
