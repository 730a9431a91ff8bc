import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linear_policy import A, B, C, P

from lrm_jax.policies.networks import Policy, PolicyConfig, init_variables
from lrm_jax.policies.vocabulary import Vocabulary
from lrm_jax.rl import ppo
from lrm_jax.run.errors import UserError

SENTENCES = ("go to red", "go to blue")


def test_every_branch_of_the_surrogate():
    log_ratio = jnp.log(jnp.array([1.5, 0.5, 1.05, 5.0, 0.5, 1.5]))
    advantages = jnp.array([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    loss = ppo.surrogate(log_ratio, advantages, 0.1, 3.0)
    np.testing.assert_allclose(loss, [-1.1, -0.5, -1.05, 3.0, 0.9, 1.5], rtol=1e-6)
    plain = ppo.surrogate(log_ratio, advantages, 0.1, None)
    np.testing.assert_allclose(plain[3], 5.0, rtol=1e-6)
    assert np.isfinite(ppo.surrogate(jnp.array([500.0]), jnp.array([-1.0]), 0.1, 3.0)).all()


def test_normalise_counts_valid_decisions_only():
    rng = np.random.default_rng(0)
    advantages, mask = rng.normal(3, 2, (6, 8)).astype(np.float32), rng.random((6, 8)) < 0.7
    advantages[~mask] = np.nan
    result = np.asarray(ppo.normalise(advantages, mask))
    kept = advantages[mask]
    expected = (kept - kept.mean()) / (kept.std() + 1e-5)
    np.testing.assert_allclose(result[mask], expected, atol=1e-5)
    assert not result[~mask].any()


NETWORK = PolicyConfig(
    waypoints=0, chunk=C, action_size=A, image_size=16, channels=8, blocks=1, keypoints=4,
    hidden=16,
    sentence_size=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def problem():
    vocabulary = Vocabulary.of(SENTENCES)
    policy = Policy(NETWORK, vocabulary.size, P)
    variables = init_variables(policy, jax.random.PRNGKey(0), vocabulary, SENTENCES)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (B, 16, 16, 3)).astype(np.uint8)
    tasks, proprio = rng.integers(0, 2, B), rng.normal(size=(B, P)).astype(np.float32)
    out = jax.jit(policy.apply)(variables, frames, proprio, tasks, jnp.full(B, 0.3))
    actions = out.distribution.sample(jax.random.PRNGKey(1))
    batch = ppo.Batch(
        frames=jnp.asarray(frames), task_ids=jnp.asarray(tasks), features=out.features,
        proprio=jnp.asarray(proprio), elapsed=jnp.full(B, 0.3), actions=actions,
        log_probs=out.distribution.log_prob(actions), values=out.value,
        advantages=jnp.asarray(rng.normal(size=B), jnp.float32),
        returns=jnp.asarray(rng.normal(size=B), jnp.float32),
        mask=jnp.asarray(rng.random(B) < 0.8),
    )  # fmt: skip
    return policy, variables, batch


def test_gradient_of_the_network_matches_finite_differences(problem):
    policy, variables, batch = problem
    config = ppo.PPOConfig(train_encoder=True)
    with jax.enable_x64(True):
        wide = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float64) if x.dtype == jnp.float32 else jnp.asarray(x),
            (variables, batch),
        )
        variables, batch = wide
        params = variables["params"]
        # away from rho = 1, where the surrogate has a kink
        keys = jax.random.split(jax.random.PRNGKey(2), len(jax.tree.leaves(params)))
        keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
        params = jax.tree.map(
            lambda x, k: x + 0.02 * jax.random.normal(k, x.shape, x.dtype), params, keys
        )

        def check(config, *learned, h):
            """Slope along a random direction of params[learned], against a central difference."""
            direction = jax.tree.map(jnp.zeros_like, params)
            for name in learned:
                direction[name] = jax.tree.map(
                    lambda x, k: jax.random.normal(jax.random.fold_in(k, 1), x.shape, x.dtype),
                    params[name], keys[name],
                )  # fmt: skip

            def along(step):
                moved = jax.tree.map(lambda x, d: x + step * d, params, direction)
                return ppo.ppo_loss(policy, {**variables, "params": moved}, batch, config)[0]

            value, slope = jax.jit(along), jax.jit(jax.grad(along))
            # Truncation h^2 and rounding 1e-16 / h are both below 1e-8 of the slope's size.
            np.testing.assert_allclose(
                slope(0.0), (value(h) - value(-h)) / (2 * h), rtol=1e-5, atol=1e-7
            )

        # The value loss stops at the features, so the encoder is checked without it.
        check(config, "actor", "critic", h=1e-6)
        check(dataclasses.replace(config, value_weight=0.0), "encoder", h=1e-6)


def test_update_is_the_plain_loop(problem):
    policy, variables, batch = problem
    config = ppo.PPOConfig(epochs=2, minibatches=3, lr=1e-3, value_lr=2e-3)
    optimiser = ppo.init_optimiser(variables["params"], config)
    rng = jax.random.PRNGKey(5)
    new, _, metrics = ppo.update(policy, config, variables, optimiser, batch, rng)

    params = variables["params"]
    chain = [
        optax.chain(optax.clip_by_global_norm(0.3), optax.adam(lr, 0.9, 0.95, 1e-5))
        for lr in (1e-3, 2e-3)
    ]
    names = ("actor", "critic")
    states = [c.init({n: params[n]}) for c, n in zip(chain, names, strict=True)]
    slope = jax.jit(
        jax.grad(lambda p, b: ppo.ppo_loss(policy, {**variables, "params": p}, b, config)[0])
    )
    for key in jax.random.split(rng, 2):
        for index in np.asarray(jax.random.permutation(key, B)).reshape(3, -1):
            gradient = slope(params, jax.tree.map(lambda x, i=index: x[i], batch))
            for k, name in enumerate(names):
                move, states[k] = chain[k].update({name: gradient[name]}, states[k])
                moved = optax.apply_updates({name: params[name]}, move)
                params = {**params, **moved}
    assert metrics["updates"] == 6
    # Adam divides by the root of a squared gradient: float differences of 1e-6 grow to 1e-4 of a
    # step.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=6 * 2e-3 * 1e-3), new["params"], params
    )
    same = jax.tree.map(np.array_equal, new["params"]["encoder"], variables["params"]["encoder"])
    assert all(jax.tree.leaves(same))


def changed(a, b):
    return any(not np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_switches(problem):
    policy, variables, batch = problem
    rng, params = jax.random.PRNGKey(0), variables["params"]

    def run(batch=batch, train_policy=True, **changes):
        config = ppo.PPOConfig(epochs=2, minibatches=2, lr=1e-2, **changes)
        optimiser = ppo.init_optimiser(params, config)
        made = ppo.update(policy, config, variables, optimiser, batch, rng, None, train_policy)
        return made[0]["params"], made[2], changed(optimiser.policy, made[1].policy)

    plain, metrics, _ = run()
    assert changed(plain["actor"], params["actor"]) and changed(plain["critic"], params["critic"])
    assert metrics["updates"] == 4 and metrics["kl"] >= 0

    warm, _, moments_moved = run(train_policy=False)
    assert not changed(warm["actor"], params["actor"]) and not moments_moved
    assert changed(warm["critic"], params["critic"])

    stopped, metrics, _ = run(target_kl=1e-12)
    # the first minibatch sees rho = 1 (KL 0), the second stops the rest
    assert 1 <= metrics["updates"] < 4 and changed(stopped, plain)

    learned, _, _ = run(train_encoder=True)
    assert changed(learned["encoder"], params["encoder"])

    # what a masked decision holds does not matter
    noise = jnp.where(batch.mask, 0.0, jnp.nan)
    dirty = batch.replace(
        advantages=batch.advantages + noise, returns=batch.returns + noise,
        log_probs=batch.log_probs + noise,
    )  # fmt: skip
    again, _, _ = run(batch=dirty)
    assert not changed(again, plain)


def test_batch_must_divide(problem):
    policy, variables, batch = problem
    config = ppo.PPOConfig(minibatches=7)
    with pytest.raises(UserError, match="24 decisions"):
        ppo.update(
            policy, config, variables, ppo.init_optimiser(variables["params"], config), batch,
            jax.random.PRNGKey(0),
        )  # fmt: skip


def test_the_step_follows_the_kl(problem):
    policy, variables, batch = problem
    config = ppo.PPOConfig(epochs=2, minibatches=2, target_kl=0.03, adapt_lr=True)

    def after(lr, train_policy=True):
        optimiser = ppo.init_optimiser(variables["params"], config).replace(lr=jnp.float32(lr))
        made = ppo.update(
            policy, config, variables, optimiser, batch, jax.random.PRNGKey(0), None, train_policy
        )
        return float(made[1].lr), float(made[2]["last_kl"])

    fast, kl = after(1e-2)
    assert kl > 0.03
    factor = np.clip(np.sqrt(0.02 / kl), 0.2, 1.5)
    np.testing.assert_allclose(fast, 1e-2 * factor, rtol=1e-5)
    slow, kl = after(1e-6)
    assert kl < 0.01
    np.testing.assert_allclose(slow, 1.5e-6, rtol=1e-5)
    assert after(1e-2, train_policy=False)[0] == np.float32(1e-2)  # warm-up says nothing
    with pytest.raises(UserError, match="target_kl"):
        ppo.update(
            policy,
            ppo.PPOConfig(adapt_lr=True),
            variables,
            ppo.init_optimiser(variables["params"], config),
            batch,
            jax.random.PRNGKey(0),
        )
