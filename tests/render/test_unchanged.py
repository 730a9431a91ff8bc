"""PutOnPlate looks as it did when the embedded reward model was trained on it."""

from pathlib import Path

import jax
import mujoco
import numpy as np
from PIL import Image

from lrm_jax import envs
from lrm_jax.benchmarks.scenes import stack
from lrm_jax.envs import panda
from lrm_jax.envs.put_on_plate import COLOURS, PALETTE
from lrm_jax.render import render

KEPT = Path(__file__).with_name("put_on_plate.png")  # drawn before the renderer grew
SIZE, COUNT = 64, 8


def draw() -> np.ndarray:
    """uint8 [COUNT,SIZE,SIZE,3]: postures around the ready one, cubes and plates at random."""
    env = envs.make("PutOnPlate")
    model, rng = env.mj_model, np.random.default_rng(0)
    postures, colours = [], []
    for _ in range(COUNT):
        data = mujoco.MjData(model)
        data.qpos[:7] = np.asarray(panda.READY) + rng.uniform(-0.3, 0.3, 7)
        data.qpos[7:9] = rng.uniform(0, panda.FINGER_MAX)
        for i in range(2):
            at, yaw = model.joint(f"cube{i}").qposadr[0], rng.uniform(-1, 1)
            place = [rng.uniform(0.4, 0.6), rng.uniform(-0.2, 0.2), rng.uniform(0.022, 0.2)]
            data.qpos[at : at + 7] = [*place, np.cos(yaw), 0, 0, np.sin(yaw)]
            mocap = model.body(f"plate{i}").mocapid[0]
            data.mocap_pos[mocap] = [rng.uniform(0.4, 0.6), rng.uniform(-0.2, 0.2), 0.002]
        mujoco.mj_forward(model, data)
        rgba = model.geom_rgba.copy()
        for name in ("cube0", "cube1", "plate0", "plate1"):
            rgba[model.geom(name).id, :3] = PALETTE[rng.choice(COLOURS)]
        postures.append(data)
        colours.append(rgba)

    def image(rgba, data):
        return render(env.model.replace(geom_rgba=rgba), data, env.camera, SIZE, SIZE)

    colours = np.stack(colours).astype(np.float32)
    return np.asarray(jax.jit(jax.vmap(image))(colours, stack(model, postures)))


def test_images_of_put_on_plate_stay_within_a_grey_level():
    want = np.asarray(Image.open(KEPT)).reshape(SIZE, COUNT, SIZE, 3).swapaxes(0, 1)
    got = draw()
    assert np.ptp(want) > 200 and len(np.unique(want.reshape(-1, 3), axis=0)) > 100
    assert np.max(np.abs(got.astype(int) - want)) <= 1


if __name__ == "__main__":
    drawn = draw().swapaxes(0, 1).reshape(SIZE, COUNT * SIZE, 3)
    Image.fromarray(drawn).save(KEPT, optimize=True)
