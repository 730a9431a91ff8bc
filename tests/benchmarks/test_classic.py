"""The classic task against MuJoCo's C engine and as Brax sees it; the figures of a run."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from lrm_jax.benchmarks import classic, scale
from lrm_jax.rl import PPOConfig, RefineConfig, refine
from lrm_jax.run.errors import UserError


@pytest.fixture(scope="module")
def env():
    return classic.CartPole(episode_length=12)


def test_the_cart_moves_as_in_mujoco(env):
    state = jax.jit(env.reset)(jax.random.PRNGKey(0))
    step = jax.jit(env.step)
    data = mujoco.MjData(env.mj_model)
    data.qpos[:], data.qvel[:] = state.data.qpos, state.data.qvel
    actions = np.random.default_rng(0).uniform(-1.5, 1.5, (30, 1)).astype(np.float32)
    for action in actions:
        state = step(state, jnp.asarray(action))
        data.ctrl[:] = np.clip(action, -1, 1)
        for _ in range(classic.SUBSTEPS):
            mujoco.mj_step(env.mj_model, data)
    place, angle = data.qpos
    expected = [place, np.cos(angle), np.sin(angle), *data.qvel]
    # Sixty steps in float32 of a system that loses 1 in 10 of its accuracy every 0.3 s.
    np.testing.assert_allclose(state.obs["proprio"], expected, atol=1e-3)
    best = (1 + np.exp(-((place / 0.5) ** 2))) / 2 * (np.cos(angle) + 1) / 2
    assert float(state.reward) == pytest.approx(best, abs=1e-3)
    assert float(state.metrics["progress"]) == float(state.reward) and float(state.done) == 1.0


def test_brax_sees_the_same_task(env):
    theirs = classic.brax_environment(env)
    key, action = jax.random.PRNGKey(3), jnp.array([0.7])
    a, b = jax.jit(env.reset)(key), jax.jit(theirs.reset)(key)
    ours, brax = jax.jit(env.step), jax.jit(theirs.step)
    for _ in range(3):
        a, b = ours(a, action), brax(b, action)
    np.testing.assert_array_equal(a.obs["proprio"], b.obs)
    assert float(a.reward) == float(b.reward)


def test_the_refinement_loop_trains_a_policy_without_pixels(env):
    policy = classic.StatePolicy(classic.StateConfig(hidden=(8,)))
    variables = classic.fresh(policy, env.proprio_size, 0)
    config = RefineConfig(
        iterations=2, num_envs=4, num_chunks=12, privileged_reward=True, track_clone=False,
        ppo=PPOConfig(minibatches=2, lr=1e-3),
    )  # fmt: skip
    rows = []
    state = refine(
        env, classic.blank, policy, variables, classic.environment_reward, config,
        jax.random.PRNGKey(0), on_iteration=lambda _, row: rows.append(row),
    )  # fmt: skip
    moved = jax.tree.map(
        lambda a, b: not np.array_equal(a, b), state.variables["params"], variables["params"]
    )
    assert all(jax.tree.leaves(moved))
    assert rows[-1]["env_steps"] == 2 * 4 * 12 and 0 < rows[-1]["reward_mean"] < 1


def test_a_runs_figures():
    seconds = [9.0, 3.0, 1.0, 1.0, 2.0]
    curve = [(10, 0.1), (20, 0.5), (30, 0.95), (40, 0.8), (50, 0.99)]
    found = classic.learnt(curve, seconds, 0.9)
    assert (found["samples_to_target"], found["seconds_to_target"]) == (30, 3.0)
    assert found["compilation_seconds"] == 10.0 and found["seconds_per_update"] == 1.0
    assert found["final_reward"] == 0.99 and found["curve"][-1]["seconds"] == 6.0
    never = classic.learnt(curve, seconds, 1.0)
    assert never["samples_to_target"] is None
    assert classic.middle([found, found, never], "samples_to_target") == 30
    assert classic.middle([found, never], "samples_to_target") is None


def test_numbers_of_environments():
    assert scale.numbers_of(["256", "64"]) == [64, 256]
    for bad in (["a"], ["2"], []):
        with pytest.raises(UserError, match="--environments"):
            scale.numbers_of(bad)


def test_only_memory_is_a_reason_not_to_fit():
    assert "machine's memory" in scale.failure(-9, "")
    said = "jaxlib.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes"
    assert scale.failure(1, f"Traceback\n{said}\nmore") == said
    with pytest.raises(UserError, match="no such module"):
        scale.failure(1, "Traceback\nno such module")


def test_peak_of_memory_grows_with_what_is_held():
    program = (
        "import numpy as np; from lrm_jax.benchmarks import scale; a = scale.peak_bytes(); "
        "x = np.ones(40_000_000); print(scale.peak_bytes() - a)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert int(done.stdout) == pytest.approx(320e6, rel=0.1)
