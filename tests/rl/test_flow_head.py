"""The flow head in rollout, PPO and refinement."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pixel_point import SENTENCES, PixelPoint, demonstrations, draw
from test_learning import CLONE, closer

from lrm_jax.policies import (
    FlowConfig,
    Policy,
    PolicyConfig,
    Vocabulary,
    clone,
    from_episodes,
    init_variables,
)
from lrm_jax.policies.decisions import decide
from lrm_jax.policies.networks import PolicyOutput
from lrm_jax.rl import PPOConfig, RefineConfig, episode_keys, evaluate, ppo, refine
from lrm_jax.rl.refine import learn
from lrm_jax.rl.rollout import reset_keys, rollout_from

NETWORK = PolicyConfig(
    head="flow", waypoints=0, chunk=4, image_size=32, channels=8, blocks=1, keypoints=4,
    sentence_size=16, hidden=32, rho=0.0, explored=(0, 1),
    flow=FlowConfig(hidden=64, blocks=1, time_size=8, noise_hidden=8),
)  # fmt: skip
ENV = PixelPoint()
KEYS = episode_keys(0, 8)
CONFIG = RefineConfig(
    iterations=2, num_envs=8, num_chunks=5,
    ppo=PPOConfig(minibatches=2, kl_base=0.1, lr=1e-3, target_kl=0.5, adapt_lr=True),
)  # fmt: skip


@pytest.fixture(scope="module")
def policy():
    vocabulary = Vocabulary.of(SENTENCES)
    network = Policy(NETWORK, vocabulary.size, 2)
    return network, init_variables(network, jax.random.PRNGKey(0), vocabulary, SENTENCES)


def brightness(frames, task_ids, played):
    red = frames[..., 0].astype(jnp.float32).mean((-1, -2))
    return red[1:] - red[:-1], {}


@pytest.fixture(scope="module")
def whole(policy):
    """A refinement and evaluations before and after it, and how much was compiled for them."""
    rollout_from.clear_cache()  # entries of earlier tests go when their networks are collected
    learn.clear_cache()
    log = []
    first = evaluate(ENV, draw, *policy, KEYS, batch=8)
    state = refine(
        ENV, draw, *policy, brightness, CONFIG, jax.random.PRNGKey(3),
        on_iteration=lambda *x: log.append(x),
    )  # fmt: skip
    again = evaluate(ENV, draw, *policy, KEYS, batch=8, rng=jax.random.PRNGKey(5))
    return first, again, state, log, (rollout_from._cache_size(), learn._cache_size())


@pytest.fixture(scope="module")
def played(policy):
    keys = reset_keys(jax.random.PRNGKey(1), 8)
    options = dict(num_chunks=5, chunk=4, deterministic=False)  # the program that `whole` compiled
    return rollout_from(ENV, draw, *policy, keys, jax.random.PRNGKey(2), **options)


def test_nothing_compiles_twice_and_noise_free_episodes_belong_to_their_keys(whole):
    first, again, _, log, compiled = whole
    assert compiled == (1, 1)
    np.testing.assert_array_equal(first.progress, again.progress)
    assert len(log) == 2 and all(np.isfinite(list(m.values())[:10]).all() for _, m in log)


def test_refinement_moves_velocity_and_noise_and_measures_the_way_from_the_clone(policy, whole):
    _, _, state, log, _ = whole
    old, new = policy[1]["params"]["actor"], state.variables["params"]["actor"]
    for part in ("velocity", "noise", "raw_std"):
        pairs = zip(jax.tree.leaves(old[part]), jax.tree.leaves(new[part]), strict=True)
        assert any((a != b).any() for a, b in pairs)
    away = [m["kl_clone"] for _, m in log]
    assert abs(away[0]) < 1e-6 < away[1]
    assert log[0][1]["kl_base"] > 0 and log[0][1]["updates"] >= 1


def test_the_rollout_keeps_the_chain_and_its_ratio_is_one(policy, played):
    network, variables = policy
    assert played.chain.shape == (5, 8, 5, 4, 7) and played.log_probs.shape == (5, 8)
    np.testing.assert_array_equal(played.chain[:, :, -1], played.actions)
    flat = jax.tree.map(lambda x: x[:5].reshape(40, *x.shape[2:]), {
        "features": played.features, "proprio": played.proprio, "chain": played.chain,
        "actions": played.actions, "log_probs": played.log_probs, "values": played.values,
    })  # fmt: skip
    rng = np.random.default_rng(0)
    batch = ppo.Batch(
        frames=None, task_ids=None, elapsed=jnp.repeat(played.elapsed[:5], 8),
        advantages=jnp.asarray(rng.normal(size=40), jnp.float32), returns=jnp.zeros(40),
        mask=jnp.ones(40, bool), **flat,
    )  # fmt: skip
    config = PPOConfig(entropy=0.0, value_weight=0.0)

    def loss(params, batch):
        return ppo.ppo_loss(network, {**variables, "params": params}, batch, config)

    gradient, parts = jax.jit(jax.grad(loss, has_aux=True))(variables["params"], batch)
    along = network.apply(variables, flat["features"], flat["proprio"], flat["chain"], method="act")
    # 32 normal log-densities whose means are rounded to 1e-7 of numbers of order 1, std 0.15.
    np.testing.assert_allclose(along.log_prob(flat["chain"]), flat["log_probs"], atol=1e-4)
    assert parts["clip_fraction"] == 0 and abs(parts["kl"]) < 1e-6
    # At ratio 1 the gradient is that of -mean(A log_prob): every actor parameter has some, and the
    # frozen encoder none.
    scale = jax.tree.map(lambda g: float(jnp.abs(g).max()), gradient)
    assert min(jax.tree.leaves(scale["actor"]["velocity"])) > 0
    assert scale["actor"]["noise"]["std"]["kernel"] > 0
    assert max(jax.tree.leaves(scale["encoder"])) == 0


def test_ppo_finds_the_better_chunk_by_its_reward_alone(policy):
    """A bandit: the reward is how close a chunk comes to one that nobody showed."""
    network, start = policy
    size = 128
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(size, 3 * 4 + 16)), jnp.float32)
    proprio, target = jnp.zeros((size, 2)), jnp.array([0.6, -0.4])
    config = PPOConfig(lr=3e-3, epochs=4, minibatches=4, clip=0.2, entropy=0.0)

    def decided(variables, key, deterministic):
        output = PolicyOutput(None, jnp.zeros(size), features)
        keys = jax.random.split(jax.random.PRNGKey(7), size)
        return decide(network, variables, output, proprio, key, deterministic, keys, 0)

    def reward_of(actions):
        return -jnp.square(actions[..., :2] - target).mean((1, 2))

    @jax.jit
    def iteration(variables, optimiser, key, shuffled):
        found = decided(variables, key, False)
        rewards = reward_of(found.actions)
        mixed = jax.random.permutation(jax.random.fold_in(key, 1), rewards)
        rewards = jnp.where(shuffled, mixed, rewards)
        mask = jnp.ones(size, bool)
        batch = ppo.Batch(
            frames=None, task_ids=None, features=features, proprio=proprio, values=jnp.zeros(size),
            elapsed=jnp.zeros(size), actions=found.actions, chain=found.chain, mask=mask,
            log_probs=found.log_probs, returns=rewards, advantages=ppo.normalise(rewards, mask),
        )  # fmt: skip
        return ppo.update(network, config, variables, optimiser, batch, key)[:2]

    measure = jax.jit(lambda v: reward_of(decided(v, jax.random.PRNGKey(0), True).actions))
    base = np.asarray(measure(start))
    gains = {}
    for shuffled in (False, True):
        variables, optimiser = start, ppo.init_optimiser(start["params"], config)
        for i in range(30):
            key = jax.random.PRNGKey(100 + i)
            variables, optimiser = iteration(variables, optimiser, key, shuffled)
        gains[shuffled] = np.asarray(measure(variables)) - base
    # Paired over starts: a quarter of what is missing, ten standard errors from 0, and no such gain
    # from the same rewards dealt out at random.
    gain = gains[False]
    error = gain.std() / np.sqrt(size)
    assert gain.mean() > 0.25 * -base.mean() and gain.mean() > 10 * error
    assert gains[True].mean() < 0.5 * gain.mean()


@pytest.mark.slow
def test_refinement_mends_a_biased_flow_clone():
    env = PixelPoint(step_size=0.04)
    network = PolicyConfig(
        head="flow", waypoints=0, chunk=4, image_size=32, channels=16, blocks=1, keypoints=8,
        sentence_size=32, hidden=64, rho=0.0, explored=(0, 1),
        flow=FlowConfig(hidden=128, blocks=1),
    )  # fmt: skip
    vocabulary = Vocabulary.of(SENTENCES)
    policy = Policy(network, vocabulary.size, env.proprio_size)
    variables = init_variables(policy, jax.random.PRNGKey(0), vocabulary, SENTENCES)
    frames, proprio, tasks, actions = demonstrations(env, jax.random.PRNGKey(1), 300)
    actions = actions.copy()
    actions[..., 0] = np.clip(actions[..., 0] + 0.45, -1, 1)  # it always pulls to the right
    data = from_episodes(frames, proprio, tasks, actions, network.chunk)
    variables, _ = clone(policy, variables, data, CLONE, jax.random.PRNGKey(2))
    config = RefineConfig(
        iterations=20, num_envs=64, num_chunks=5, critic_warmup=1,
        ppo=PPOConfig(
            lr=3e-4, value_lr=1e-3, epochs=4, minibatches=4, clip=0.2, entropy=0.0, target_kl=0.1,
            decay=0.9,
        ),
    )  # fmt: skip
    keys = episode_keys(0, 256)
    base = evaluate(env, draw, policy, variables, keys, batch=64)
    state = refine(env, draw, policy, variables, closer, config, jax.random.PRNGKey(5))
    better = evaluate(env, draw, policy, state.variables, keys, batch=64)
    gained = int((better.success_end & ~base.success_end).sum())
    lost = int((~better.success_end & base.success_end).sum())
    assert (gained - lost) / np.sqrt(gained + lost) > 4  # McNemar's z
