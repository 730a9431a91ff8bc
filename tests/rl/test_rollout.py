import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pixel_point import SENTENCES, PixelPoint, draw

from lrm_jax.policies.networks import Policy, PolicyConfig, init_variables
from lrm_jax.policies.vocabulary import Vocabulary
from lrm_jax.rl.rollout import reset_keys, rollout, rollout_from
from lrm_jax.run.errors import UserError

CONFIG = PolicyConfig(
    waypoints=0,
    chunk=4,
    image_size=32,
    channels=8,
    blocks=1,
    keypoints=4,
    sentence_size=16,
    hidden=32,
)
VOCABULARY = Vocabulary.of(SENTENCES)


@pytest.fixture(scope="module")
def policy():
    policy = Policy(CONFIG, VOCABULARY.size, 2)
    return policy, init_variables(policy, jax.random.PRNGKey(0), VOCABULARY, SENTENCES)


@pytest.fixture(scope="module")
def played(policy):
    env = PixelPoint()
    return env, rollout(env, draw, *policy, jax.random.PRNGKey(1), 6, 5, 4, record_steps=True)


def replay(env, keys, actions):
    """The same episodes one by one, without scan or vmap: states after each step [N][T*C+1]."""
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    episodes = []
    for i, key in enumerate(keys):
        states = [reset(key)]
        for action in actions[:, i].reshape(-1, 7):
            states.append(step(states[-1], action))
        episodes.append(states)
    return episodes


def test_matches_a_plain_replay(policy, played):
    env, r = played
    episodes = replay(env, reset_keys(jax.random.PRNGKey(1), 6), r.actions)
    chex_shapes = {k: getattr(r, k).shape for k in ("frames", "actions", "values", "step_frames")}
    assert chex_shapes == {
        "frames": (6, 6, 32, 32, 3), "actions": (5, 6, 4, 7), "values": (6, 6),
        "step_frames": (5, 4, 6, 32, 32, 3),
    }  # fmt: skip
    for i, states in enumerate(episodes):
        at_decisions = states[::4]
        # Positions are a few float32 sums of numbers below 1: equal to a few ulp.
        proprio = np.stack([s.obs["proprio"] for s in at_decisions])
        np.testing.assert_allclose(r.proprio[:, i], proprio, atol=1e-6)
        progress = np.stack([s.metrics["progress"] for s in at_decisions])
        np.testing.assert_allclose(r.privileged.progress[:, i], progress, atol=1e-5)
        success = np.array([s.metrics["success"] > 0 for s in states[1:]])
        np.testing.assert_array_equal(r.privileged.success[:, i], success.reshape(5, 4).any(1))
        assert bool(r.privileged.success_any[i]) == success.any()
        assert bool(r.privileged.success_end[i]) == success[-1]
        batch = jax.tree.map(lambda x: x[None], states[-1])
        difference = np.abs(r.frames[-1, i].astype(int) - np.asarray(draw(batch)[0]).astype(int))
        assert difference.max() <= 1  # float rounding before the cast to uint8
    np.testing.assert_array_equal(r.step_frames[:, -1], r.frames[1:])
    assert bool(r.mask.all()) and not bool(r.bad.any()) and not bool(r.terminated.any())
    np.testing.assert_array_equal(r.truncated, np.arange(5)[:, None] == 4 * np.ones((1, 6)))
    np.testing.assert_allclose(r.elapsed, np.arange(6) / 5, atol=1e-7)


def test_log_probs_and_values_are_the_policys(policy, played):
    network, variables = policy
    _, r = played
    t = 3
    output = network.apply(
        variables, r.frames[t], r.proprio[t], r.task_ids, jnp.full(6, r.elapsed[t])
    )
    np.testing.assert_allclose(
        output.distribution.log_prob(r.actions[t]), r.log_probs[t], rtol=1e-4
    )
    np.testing.assert_allclose(output.value, r.values[t], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(output.features, r.features[t], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(output.distribution.log_std, r.log_std, rtol=1e-6)


def test_non_finite_physics_is_contained(policy):
    env = PixelPoint(break_below=0.35)
    r = rollout(env, draw, *policy, jax.random.PRNGKey(1), 16, 5, 4)
    bad = np.asarray(r.bad)
    assert 0 < bad.sum() < 16
    for leaf in jax.tree.leaves(r):
        assert np.isfinite(np.asarray(leaf, np.float64)).all()
    broken_at = np.argmin(np.asarray(r.mask), axis=0)
    for i in np.flatnonzero(bad):
        assert not r.mask[broken_at[i] :, i].any()
        # frozen in the last healthy state
        frozen = np.asarray(r.proprio[broken_at[i] :, i])
        assert (frozen == frozen[0]).all()
        assert not r.privileged.success_end[i] and not r.privileged.success[broken_at[i] :, i].any()
    assert np.asarray(r.mask)[:, ~bad].all()
    # the healthy environments play as if the others did not break
    free = rollout(PixelPoint(break_below=-9.0), draw, *policy, jax.random.PRNGKey(1), 16, 5, 4)
    np.testing.assert_array_equal(free.actions[:, ~bad], r.actions[:, ~bad])


def test_early_end_is_a_termination_and_masks_the_rest(policy):
    env = PixelPoint(radius=0.3, stop=True)
    r = rollout(env, draw, *policy, jax.random.PRNGKey(2), 16, 5, 4)
    ended = np.asarray(r.terminated)
    assert ended.any() and (ended.sum(0) <= 1).all()
    for i in np.flatnonzero(ended.any(0)):
        t = int(np.argmax(ended[:, i]))
        assert r.mask[: t + 1, i].all() and not r.mask[t + 1 :, i].any()
        assert not r.truncated[:, i].any() and bool(r.privileged.success_any[i])
    alive = ~ended.any(0) & np.asarray(r.mask).all(0)
    assert np.asarray(r.truncated)[-1, alive].all()


def test_deterministic_ignores_noise_and_pairs_by_key(policy):
    env = PixelPoint()
    keys = reset_keys(jax.random.PRNGKey(3), 4)
    options = dict(num_chunks=5, chunk=4, deterministic=True)
    a = rollout_from(env, draw, *policy, keys, jax.random.PRNGKey(0), **options)
    b = rollout_from(env, draw, *policy, keys, jax.random.PRNGKey(9), **options)
    np.testing.assert_array_equal(a.frames, b.frames)
    np.testing.assert_array_equal(a.actions, a.means)


def test_compiles_once(policy):
    env = PixelPoint()
    network, variables = policy
    rollout_from.clear_cache()  # entries of earlier tests go when their networks are collected
    for seed in range(3):
        scaled = jax.tree.map(lambda x, s=seed: x * (1 + s), variables["params"])
        tree = {**variables, "params": scaled}
        rollout(env, draw, network, tree, jax.random.PRNGKey(seed), 4, 5, 4)
    assert rollout_from._cache_size() == 1


def test_wrong_lengths_are_user_errors(policy):
    with pytest.raises(UserError, match="longer than the episode"):
        rollout(PixelPoint(), draw, *policy, jax.random.PRNGKey(1), 2, 6, 4)
    with pytest.raises(UserError, match="chunk 5"):
        rollout(PixelPoint(), draw, *policy, jax.random.PRNGKey(1), 2, 4, 5)
