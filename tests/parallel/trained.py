"""Adapters of lrm-nano trained on a mesh and on one device."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np

import lrm_jax
from lrm_jax.lora.transform import factors_of
from lrm_jax.reward_training import AdapterTraining, Optimiser, adapters, resumable
from lrm_jax.rewards.heads import by_name
from lrm_jax.run import metrics

sys.path.insert(0, str(Path(__file__).parents[1] / "reward_training"))
import toy

SETTINGS = AdapterTraining(
    rank=4, alpha=8.0, rows=8, steps=3, remat="none",
    optimiser=Optimiser(learning_rate=1e-2, warmup_steps=1),
)  # fmt: skip
MESH = "fsdp=4,tensor=2"


def measured(folder: Path) -> dict:
    """The losses of each step, and whether a factor is cut."""
    store, clips = toy.toy_clips(count=8, length=6)
    frames = np.repeat(np.repeat(store.frames, 2, axis=1), 2, axis=2)  # lrm-nano's 64 x 64
    store, out = dataclasses.replace(store, frames=frames), {}
    resumable.LOG_EVERY = 1  # this process only measures
    for name, mesh in (("one", None), ("many", MESH)):
        model = lrm_jax.load_reward_model("lrm-nano", mesh=mesh)
        own = folder / name
        own.mkdir(parents=True)
        adapter = adapters.train_adapter(
            SETTINGS, model, by_name(model.heads)["progress"], store, clips, own, metrics=own
        )
        out[name] = [row["loss"] for row in metrics.read(own, "adapter_progress")]
        out[f"{name}_moved"] = max(
            float(np.abs(pair["b"]).max()) for _, pair in factors_of(adapter["lora"])
        )
        out[f"{name}_cut"] = any(
            not x.sharding.is_fully_replicated for x in jax.tree.leaves(adapter)
        )
    return out
