"""Tasks in MJX: agreement with C MuJoCo, one compilation, broken neighbours, variations."""

import importlib.util

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from lrm_jax import envs
from lrm_jax.rl.rollout import finite, make_render_fn

COUNT = 3
# The one with the fewest contacts stands for all in the quick run: MJX compiles slowly.
TASKS = [
    pytest.param(name, marks=() if name == "OpenDrawer" else pytest.mark.slow)
    for name in envs.names()
]


@pytest.fixture(scope="module")
def drawer():
    env = envs.make("OpenDrawer")
    step = jax.jit(jax.vmap(env.step))
    state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), COUNT))
    return env, state, step


@pytest.mark.parametrize("name", TASKS)
def test_motion_follows_mujocos_c_engine_and_compiles_once(name, drawer):
    if name == "OpenDrawer":
        env, state, step = drawer
    else:
        env = envs.make(name)
        step = jax.jit(jax.vmap(env.step))
        state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), COUNT))
    data = mujoco.MjData(env.mj_model)
    data.qpos[:] = np.asarray(state.data.qpos[0])
    data.mocap_pos[:] = np.asarray(state.data.mocap_pos[0])
    mujoco.mj_forward(env.mj_model, data)
    rng = np.random.default_rng(1)
    for _ in range(8):
        action = np.append(rng.uniform(-0.6, 0.6, 6), 1.0)
        action[2] = abs(action[2])
        state = step(state, jnp.broadcast_to(jnp.asarray(action, jnp.float32), (COUNT, 7)))
        data.ctrl[:] = np.asarray(state.data.ctrl[0])
        for _ in range(env.config.substeps):
            mujoco.mj_step(env.mj_model, data)
    assert step._cache_size() == 1
    # float32 against float64 over 40 steps of stiff servos: tenths of a millimetre; things at
    # rest on soft contacts settle by less than that.
    np.testing.assert_allclose(state.data.qpos[0], data.qpos, atol=2e-3)


@pytest.mark.parametrize("fault", [np.nan, 1e12])
def test_a_broken_environment_leaves_the_others_as_they_are(drawer, fault):
    _, state, step = drawer
    action = jnp.full((COUNT, 7), 0.3)
    broken = state.replace(data=state.data.replace(qvel=state.data.qvel.at[1, 3].set(fault)))
    clean, dirty = step(state, action), step(broken, action)
    assert np.asarray(finite(clean)).all()
    np.testing.assert_array_equal(np.asarray(finite(dirty)), [True, False, True])
    for a, b in zip(
        jax.tree.leaves((clean.data.qpos, clean.data.qvel, clean.obs, clean.metrics)),
        jax.tree.leaves((dirty.data.qpos, dirty.data.qvel, dirty.obs, dirty.metrics)),
        strict=True,
    ):
        np.testing.assert_array_equal(np.asarray(a)[[0, 2]], np.asarray(b)[[0, 2]])


@pytest.mark.slow
def test_variations_differ_between_episodes_and_compile_once():
    settings = {"distractors": 2, "stretch": 0.3, "camera_jitter": 0.02, "lighting": 0.3,
                "physics": 0.3, "combos": "all"}  # fmt: skip
    env = envs.make("StackCubes", **settings)
    plain = envs.make("StackCubes", combos="all")
    keys = jax.random.split(jax.random.key(0), COUNT)
    reset, step = jax.jit(jax.vmap(env.reset)), jax.jit(jax.vmap(env.step))
    state = reset(keys)
    state = step(step(state, jnp.zeros((COUNT, 7))), jnp.zeros((COUNT, 7)))
    assert step._cache_size() == 1 and np.isfinite(np.asarray(state.data.qpos)).all()
    drawn = state.info["variation"]
    for leaf in jax.tree.leaves(drawn):
        assert len(np.unique(np.asarray(leaf).reshape(COUNT, -1), axis=0)) == COUNT
    # Scenes and sentences are those that the task draws without variations.
    bare = jax.vmap(plain.draw)(keys)
    np.testing.assert_array_equal(bare.data.qpos[:, 9:], jax.vmap(env.draw)(keys).data.qpos[:, 9:])
    images = np.asarray(jax.jit(make_render_fn(env, 32, 32))(state)).astype(int)
    assert np.abs(images[0] - images[1]).max() > 30
    # A heavier cube presses the table as before but is harder to move: its mass is the model's.
    one = jax.tree.map(lambda x: x[0], state.info)
    model = env._model(one)
    cube = env.mj_model.body("cube0").id
    share = float(model.body_mass[cube]) / env.mj_model.body_mass[cube]
    np.testing.assert_allclose(share, one["variation"]["mass"][0], rtol=1e-6)


@pytest.mark.skipif(
    importlib.util.find_spec("mujoco_playground") is None, reason="needs the package playground"
)
def test_playground_tasks_have_this_packages_interface():
    env = envs.make("playground:CartpoleBalance", episode_length=3)
    state = jax.jit(env.reset)(jax.random.key(0))
    assert state.obs["proprio"].shape == (env.proprio_size,)
    step = jax.jit(env.step)
    for i in range(3):
        assert not float(state.done)
        state = step(state, jnp.zeros(env.action_size))
        assert 0 <= float(state.metrics["progress"]) <= 1 and int(state.info["step"]) == i + 1
    assert float(state.done) == float(state.info["truncation"]) == 1 and step._cache_size() == 1
    image = make_render_fn(env, 16, 16)(jax.tree.map(lambda x: x[None], state))
    assert np.asarray(image).std() > 5
