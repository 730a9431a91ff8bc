"""Segmentation and depth against MuJoCo's renderer: scenes of random solids, and every task."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from mujoco import mjx
from render_oracle import Oracle, interior
from test_oracle import random_kinds

from lrm_jax import envs
from lrm_jax.benchmarks.scenes import stack
from lrm_jax.render import render_all

SIZE, SCENES, RESETS = 64, 24, 3
_KINDS = ("sphere", "capsule", "ellipsoid", "cylinder", "box")
_EACH = 4
MJCF = f"""
<mujoco>
  <statistic extent="1.5"/>
  <default><geom contype="0" conaffinity="0" size=".1 .1 .1"/></default>
  <worldbody>
    <geom type="plane" size="0 0 .1" pos="0 0 -.8"/>
    <body mocap="true"><geom type="plane" size=".4 .3 .1"/></body>
    <body mocap="true"><camera name="eye" fovy="50"/></body>
    {"".join(f'<body><freejoint/><geom type="{k}"/></body>' for k in _KINDS * _EACH)}
  </worldbody>
</mujoco>"""


def _compare(model, frames, sizes, rgba, camera, drawn) -> tuple[float, float]:
    """Asserts agreement; returns the worst share of equal pixels and the largest depth error."""
    oracle = Oracle(model, SIZE, SIZE)
    _, depths, ids = (np.asarray(v) for v in drawn)
    worst, furthest = 1.0, 0.0
    for data, size, colour, depth, found in zip(frames, sizes, rgba, depths, ids, strict=True):
        model.geom_size[:], model.geom_rgba[:] = size, colour
        want, want_depth = oracle.draw(data, camera)
        same = found == want
        error = np.abs(depth / want_depth - 1)[same & interior(want)]
        worst, furthest = min(worst, same.mean()), max(furthest, error.max())
    oracle.close()
    print(f"worst agreement {worst:.4f}, largest depth error {furthest:.2e}")
    assert worst >= 0.99
    assert furthest < 0.005
    return worst, furthest


def test_scenes_of_random_solids():
    """Kinds, sizes, places and which of the solids are there are drawn anew for each scene."""
    model, rng = mujoco.MjModel.from_xml_string(MJCF), np.random.default_rng(0)
    frames = [random_kinds(model, rng) for _ in range(SCENES)]
    first = 2  # after the planes
    sizes = np.stack([model.geom_size] * SCENES)
    sizes[:, first:] = np.exp(rng.uniform(np.log(0.01), np.log(0.15), sizes[:, first:].shape))
    rgba = np.stack([model.geom_rgba] * SCENES)
    rgba[:, first:, 3] = rng.uniform(size=rgba[:, first:, 3].shape) < 0.7
    mjx_model = mjx.put_model(model)

    def image(size, colour, data):
        shown = mjx_model.replace(geom_size=size, geom_rgba=colour)
        return render_all(shown, data, "eye", SIZE, SIZE)

    single = (jnp.asarray(v, jnp.float32) for v in (sizes, rgba))
    drawn = jax.jit(jax.vmap(image))(*single, stack(model, frames))
    _compare(model, frames, sizes, rgba, "eye", drawn)
    assert set(np.unique(drawn[2])) >= set(range(model.ngeom))


@pytest.mark.parametrize("name", envs.names())
def test_every_task_after_reset(name):
    env = envs.make(name)

    def image(rng):
        model, data = env.scene(env.reset(rng))
        seen = {k: getattr(data, k) for k in ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat")}
        return (
            render_all(model, data, env.camera, SIZE, SIZE),
            seen,
            (model.geom_size, model.geom_rgba, model.cam_fovy),
        )

    drawn, seen, looks = jax.jit(jax.vmap(image))(jax.random.split(jax.random.key(1), RESETS))
    sizes, rgba, fovy = (np.asarray(v) for v in looks)
    assert np.all(fovy == env.mj_model.cam_fovy), "the oracle draws one field of view"
    frames = []
    for i in range(RESETS):
        data = mujoco.MjData(env.mj_model)
        for key, value in seen.items():
            field = getattr(data, key)
            field[:] = np.asarray(value[i]).reshape(field.shape)
        frames.append(data)
    _compare(env.mj_model, frames, sizes, rgba, env.camera, drawn)
