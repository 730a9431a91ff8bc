import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pixel_point import SENTENCES, PixelPoint, draw

from lrm_jax.policies.networks import Policy, PolicyConfig, init_variables
from lrm_jax.policies.vocabulary import Vocabulary
from lrm_jax.rl.ppo import PPOConfig
from lrm_jax.rl.refine import RefineConfig, RewardScale, init_state, learn, refine
from lrm_jax.rl.rollout import rollout, rollout_from
from lrm_jax.rl.stopping import StopConfig
from lrm_jax.run.errors import UserError

NETWORK = PolicyConfig(
    waypoints=0,
    chunk=4,
    image_size=32,
    channels=8,
    blocks=1,
    keypoints=4,
    sentence_size=16,
    hidden=32,
)
CONFIG = RefineConfig(
    iterations=3, num_envs=8, num_chunks=5, ppo=PPOConfig(minibatches=2, kl_base=0.1)
)
ENV = PixelPoint()
RNG = jax.random.PRNGKey(3)


def brightness(frames, task_ids, played):
    """A reward from pixels alone: how much the red channel grew."""
    red = frames[..., 0].astype(jnp.float32).mean((-1, -2))
    return red[1:] - red[:-1], {"red": red.mean()}


@pytest.fixture(scope="module")
def policy():
    vocabulary = Vocabulary.of(SENTENCES)
    network = Policy(NETWORK, vocabulary.size, 2)
    return network, init_variables(network, jax.random.PRNGKey(0), vocabulary, SENTENCES)


@pytest.fixture(scope="module")
def whole(policy):
    # Caches start empty: entries of earlier tests go when their networks are collected.
    rollout_from.clear_cache()
    learn.clear_cache()
    log = []
    final = refine(
        ENV, draw, *policy, brightness, CONFIG, RNG, on_iteration=lambda *x: log.append(x)
    )
    return final, log, (rollout_from._cache_size(), learn._cache_size())


def equal(a, b):
    pairs = zip(*map(jax.tree.leaves, (a, b)), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def test_metrics(whole):
    final, log, _ = whole
    assert int(final.iteration) == 3 and [m["iteration"] for _, m in log] == [1, 2, 3]
    last = log[-1][1]
    assert all(isinstance(v, (int, float)) and np.isfinite(v) for v in last.values())
    expected = {
        "reward_mean", "reward_std", "return_mean", "value_loss", "kl", "clip_fraction", "entropy",
        "explained_variance", "success_any", "success_end", "invalid_scores", "bad_envs",
        "env_steps", "seconds_rollout", "seconds_score", "seconds_learn", "reward/red", "kl_base",
        "kl_clone", "value_mean", "value_bias", "value_clip_fraction", "proxy_oracle_rank",
    }  # fmt: skip
    assert expected <= set(last)
    assert last["env_steps"] == 3 * 8 * 20 and last["invalid_scores"] == 0
    assert not equal(log[0][0].variables["params"]["actor"], final.variables["params"]["actor"])


def test_the_clone_is_left_step_by_step(whole):
    _, log, _ = whole
    away = [m["kl_clone"] for _, m in log]
    # The first iteration acts as the clone does; two forward passes differ in rounding alone.
    assert abs(away[0]) < 1e-6 and 1e-7 < away[1] < away[2]


def test_nothing_recompiles_between_iterations(whole):
    assert whole[2] == (1, 1)


def test_nothing_recompiles_over_a_mesh():
    program = Path(__file__).parent / "on_two_devices.py"
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    once = {"rollout": 1, "learn": 1}
    assert json.loads(done.stdout.splitlines()[-1]) == {"fresh": once, "resumed": once}


def test_a_run_stops_where_its_rule_says_and_stays_stopped(policy, whole):
    _, log, _ = whole
    limit = (log[0][1]["kl_clone"] + log[1][1]["kl_clone"]) / 2
    config = dataclasses.replace(CONFIG, stop=StopConfig(kl_clone=limit))
    seen = []

    def run(state=None, history=()):
        return refine(
            ENV, draw, *policy, brightness, config, RNG, state=state, history=history,
            on_iteration=lambda *x: seen.append(x),
        )  # fmt: skip

    stopped = run()
    assert int(stopped.iteration) == 2 and equal(stopped, log[1][0])
    again = run(stopped, [m for _, m in seen])
    assert len(seen) == 2 and equal(again, stopped)


@pytest.mark.parametrize("after", [1, 2])
def test_resume_is_bit_identical(policy, whole, after):
    final, log, _ = whole
    restored = jax.tree.map(np.asarray, log[after - 1][0])  # as from a checkpoint
    log_again = []
    again = refine(
        ENV, draw, *policy, brightness, CONFIG, jax.random.PRNGKey(77), state=restored,
        on_iteration=lambda *x: log_again.append(x),
    )  # fmt: skip
    assert len(log_again) == 3 - after and equal(final, again)


def test_simulator_facts_cannot_reach_the_update(policy):
    seen = []

    class Blind(PixelPoint):
        """The same physics; success and progress report something else."""

        def _observe(self, state):
            state = super()._observe(state)
            lies = {k: 0.3 + 0.5 * (1 - v) for k, v in state.metrics.items()}
            return state.replace(metrics=lies)

    def reward(frames, task_ids, played):
        seen.append(played.privileged)
        return brightness(frames, task_ids, played)

    logs = []

    def run(env):
        log = []
        config = dataclasses.replace(CONFIG, iterations=2)
        state = refine(
            env, draw, *policy, reward, config, RNG, on_iteration=lambda *x: log.append(x)
        )
        logs.append(log)
        return state

    assert equal(run(ENV), run(Blind()))
    assert logs[0][0][1]["success_any"] != logs[1][0][1]["success_any"]
    assert seen == [None] * 4


def test_oracle_arm_gets_the_facts(policy):
    def oracle(frames, task_ids, played):
        progress = played.privileged.progress
        return progress[1:] - progress[:-1], {}

    config = dataclasses.replace(CONFIG, iterations=1, privileged_reward=True)
    log = []
    refine(ENV, draw, *policy, oracle, config, RNG, on_iteration=lambda *x: log.append(x))
    assert log[0][1]["reward_std"] > 0


def test_invalid_scores_are_left_out(policy):
    config = dataclasses.replace(CONFIG, iterations=1)

    def flawed(value):
        def reward(frames, task_ids, played):
            rewards, diagnostics = brightness(frames, task_ids, played)
            valid = jnp.ones(rewards.shape, bool).at[2, 3].set(False).at[0, 1].set(False)
            return jnp.where(valid, rewards, value), {**diagnostics, "valid": valid}

        log = []
        run = (ENV, draw, *policy, reward, config, RNG)
        state = refine(*run, on_iteration=lambda *x: log.append(x))
        return state, log[0][1]

    a, metrics = flawed(123.0)
    b, _ = flawed(jnp.nan)
    assert equal(a, b) and metrics["invalid_scores"] == 2 and metrics["valid_decisions"] == 38


def test_no_valid_score_at_all_is_an_error(policy):
    def nothing(frames, task_ids, played):
        return jnp.full((5, 8), jnp.nan), {}

    with pytest.raises(FloatingPointError, match="40 invalid"):
        refine(ENV, draw, *policy, nothing, CONFIG, RNG)


def test_warm_up_moves_the_critic_alone(policy):
    network, variables = policy
    config = dataclasses.replace(CONFIG, iterations=1, critic_warmup=1)
    state = refine(ENV, draw, network, variables, brightness, config, RNG)
    params = state.variables["params"]
    for name in ("actor", "encoder"):
        assert equal(params[name], variables["params"][name])
    assert not equal(params["critic"], variables["params"]["critic"])


def test_kl_to_the_base_is_that_of_the_policies(policy, whole):
    """With one minibatch the penalty is evaluated before any step: against the definition."""
    network, variables = policy
    config = dataclasses.replace(
        CONFIG, ppo=PPOConfig(minibatches=1, epochs=1, kl_base=0.1, train_encoder=True)
    )
    drift = whole[0].variables["params"]
    state = init_state(variables, config, RNG)
    state = state.replace(variables={**variables, "params": drift})
    played = rollout(ENV, draw, network, state.variables, RNG, 8, 5, 4)
    rewards, _ = brightness(played.frames, None, None)
    _, metrics = learn(network, config, state, played, rewards, jnp.ones((5, 8), bool))

    @jax.jit
    def distribution(params, frames, proprio):
        tree = {**variables, "params": params}
        return network.apply(tree, frames, proprio, played.task_ids, jnp.zeros(8)).distribution

    expected = np.mean([
        distribution(drift, f, p).kl(distribution(variables["params"], f, p))
        for f, p in zip(played.frames[:-1], played.proprio[:-1], strict=True)
    ])  # fmt: skip
    np.testing.assert_allclose(metrics["kl_base"], expected, rtol=1e-3)
    assert expected > 1e-5


def test_reward_scale_is_the_running_rms():
    rng = np.random.default_rng(0)
    scale, kept = RewardScale.create(), []
    for size in (3, 5, 0):
        rewards, mask = rng.normal(2, 3, (size, 4)).astype(np.float32), rng.random((size, 4)) < 0.6
        kept.append(rewards[mask])
        scale = scale.seen(jnp.asarray(rewards), jnp.asarray(mask))
    rms = np.sqrt(np.mean(np.square(np.concatenate(kept))))
    np.testing.assert_allclose(scale.apply(jnp.ones(1)), 1 / rms, rtol=1e-5)
    empty = RewardScale.create().seen(jnp.zeros((2, 2)), jnp.ones((2, 2), bool))
    np.testing.assert_array_equal(empty.apply(jnp.zeros(3)), np.zeros(3))


def test_sizes_are_checked(policy):
    wrong = dataclasses.replace(CONFIG, ppo=PPOConfig(minibatches=7))
    with pytest.raises(UserError, match="7 minibatches"):
        refine(ENV, draw, *policy, brightness, wrong, RNG)
    with pytest.raises(UserError, match="shape"):
        refine(ENV, draw, *policy, lambda f, t, r: (jnp.zeros((6, 8)), {}), CONFIG, RNG)
