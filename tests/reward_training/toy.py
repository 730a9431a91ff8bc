"""A toy world for training tests: a square of the named colour crosses the picture; progress is how
far it is."""

import numpy as np

from lrm_jax.labels import FrameStore
from lrm_jax.labels.store import SUCCESS, Clip
from lrm_jax.reward_training import NanoSize, Optimiser, Phase, RewardTraining

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 180, 50),
    "blue": (40, 60, 220),
    "yellow": (230, 210, 30),
}
SIZE = NanoSize(
    image_size=32,
    vision_depth=2,
    vision_hidden=48,
    vision_heads=2,
    vision_mlp=96,
    deepstack=(0,),
    text_layers=2,
    text_hidden=64,
    text_heads=2,
    text_kv_heads=1,
    text_mlp=128,
)


def toy_clips(count=48, length=12, seed=0):
    """(store, clips): episodes in which a square of the sentence's colour and one of another cross
    in rows."""
    rng = np.random.default_rng(seed)
    names = list(COLOURS)
    frames = np.full((count * length, 32, 32, 3), 120, np.uint8)
    clips = []
    for e in range(count):
        mine, other = rng.choice(len(names), 2, replace=False)
        top = rng.permutation([2, 18])
        # The other square goes the other way, so that colour alone tells them apart.
        for t in range(length):
            at = round(t / (length - 1) * 22)
            picture = frames[e * length + t]
            picture[top[0] : top[0] + 10, at : at + 10] = COLOURS[names[mine]]
            picture[top[1] : top[1] + 10, 22 - at : 32 - at] = COLOURS[names[other]]
        progress = np.linspace(0, 1, length, dtype=np.float32)
        done = (progress > 0.9).astype(np.float32)
        task = f"put the {names[mine]} cube on the white plate"
        at = np.arange(e * length, (e + 1) * length)
        facts = {"object_x": progress}
        clips.append(Clip(at, e, task, progress, done, SUCCESS, facts))
    starts = np.arange(count + 1) * length
    return FrameStore(frames, starts), clips


def settings(steps=6, **change):
    """A short training of the three heads."""
    heads = {"progress": 1.0, "completion": 0.5, "contrastive": 0.5}
    phase = dict(name="judge", steps=steps, rows=4, frames_per_row=2, pairs_per_row=1, heads=heads)
    phase.update(change.pop("phase", {}))
    return RewardTraining(
        size=SIZE,
        phases=(Phase(**phase),),
        optimiser=Optimiser(learning_rate=3e-3, warmup_steps=50),
        **{"evaluate_every": 10_000, "checkpoint_every": 10_000, **change},
    )
