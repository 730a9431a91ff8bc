"""Run as a program: lrm-nano's adapters trained over one device, several, or several processes.

    python tests/reward_training/spread_adapters.py DEVICES MESH FOLDER COORDINATOR COUNT N

As `spread.py`, with validation: completion by supervised fine-tuning and contrastive by DPO in one
run, each with its own best.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling takes longest, and is not what is tested.
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count={int(sys.argv[1]) // int(sys.argv[5])} "
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import lrm_jax  # noqa: F401 - before jax

# isort: split
import dataclasses

import jax
import numpy as np

from lrm_jax.labels import ExampleSettings
from lrm_jax.parallel.mesh import start_processes
from lrm_jax.parallel.placement import gathered
from lrm_jax.reward_training import AdapterTraining, Optimiser, adapters, resumable
from lrm_jax.rewards.heads import by_name
from lrm_jax.rewards.model import load_reward_model
from lrm_jax.run import metrics

sys.path.insert(0, str(Path(__file__).parent))
import toy

devices, mesh, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
coordinator, count, number = sys.argv[4], int(sys.argv[5]), int(sys.argv[6])
NAMES = ("completion", "contrastive")
SETTINGS = AdapterTraining(
    rank=4, alpha=8.0, rows=8, steps=4, remat="none", checkpoint_every=2, evaluate_every=2,
    examples=ExampleSettings(pairs_per_clip=3), together=True, objectives={"contrastive": "dpo"},
    best="{head}/loss", final="best",
    optimiser=Optimiser(learning_rate=3e-3, warmup_steps=1),
)  # fmt: skip


def train(name: str, die_at: int | None = None) -> dict:
    store, clips = toy.toy_clips(count=10, length=6)
    frames = np.repeat(np.repeat(store.frames, 2, axis=1), 2, axis=2)  # lrm-nano's 64 x 64
    store, out = dataclasses.replace(store, frames=frames), folder / name
    model = load_reward_model("lrm-nano", mesh=mesh or None)
    out.mkdir(parents=True, exist_ok=True)
    run = resumable.run

    def watched(steps, *args, **more):
        def draw(step):
            if step == die_at:
                raise InterruptedError
            return steps.draw(step)

        return run(dataclasses.replace(steps, draw=draw), *args, **more)

    resumable.run = watched
    try:
        made = adapters.train_adapter(
            SETTINGS, model, [by_name(model.heads)[n] for n in NAMES], store, clips[:7], out,
            validation_clips=clips[7:], metrics=out,
        )  # fmt: skip
    except InterruptedError:
        return {}
    finally:
        resumable.run = run
    for head, tree in made.items():  # each process into a folder of its own
        own = folder / name / f"saved_{jax.process_index()}" / head
        own.mkdir(parents=True, exist_ok=True)
        adapters.save_adapter(own, tree, SETTINGS, model)
    videos = frames[: 4 * 3].reshape(4, 3, 64, 64, 3)  # the others' devices answer too
    answers = model.score(videos, clips[0].task)
    assert answers.valid["contrastive"].tolist() == 4 * [[False, True, True]]
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(gathered(made)):
        digest.update(np.ascontiguousarray(leaf))
    rows = metrics.read(out, "adapters") if jax.process_index() == 0 else []
    return {
        "losses": [row["loss"] for row in rows if "loss" in row],
        "validation": [
            {k: v for k, v in row.items() if "validation/" in k} for row in rows
            if "validation/loss" in row
        ],
        "digest": digest.hexdigest(),
        "progress": answers.progress.tolist(),
        "contrastive": answers.contrastive[:, 1:].tolist(),
        "cut": any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(made)),
    }  # fmt: skip


if __name__ == "__main__":
    if count > 1:
        start_processes(coordinator, count, number)
    assert len(jax.devices()) == devices and jax.process_count() == count
    resumable.LOG_EVERY = 1
    whole = train("whole")
    train("killed", die_at=3)
    print(json.dumps({"whole": whole, "resumed": train("killed")}), flush=True)
