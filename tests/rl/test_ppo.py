import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from brax.training.agents.ppo import losses as brax_losses
from brax.training.types import Transition
from torch.distributions import MultivariateNormal

from lrm_jax.policies.distribution import ChunkNormal
from lrm_jax.policies.networks import Policy, PolicyConfig, init_variables
from lrm_jax.policies.vocabulary import Vocabulary
from lrm_jax.rl import ppo
from lrm_jax.run.errors import UserError

B, C, A, F, P = 24, 3, 2, 5, 4
SENTENCES = ("go to red", "go to blue")


class LinearPolicy:
    """A policy with the interface that the loss uses, simple enough to write again in torch."""

    config = SimpleNamespace(rho=0.6)

    def apply(self, variables, features, *inputs, method):
        p = variables["params"]
        if method == "act":
            mean = jnp.einsum("bf,fca->bca", features, p["actor"]["mean"])
            return ChunkNormal(mean, p["actor"]["log_std"], self.config.rho)
        return jnp.concatenate([features, inputs[1][:, None]], -1) @ p["critic"]["weight"]


def linear_problem(seed=0):
    rng = np.random.default_rng(seed)
    params = {
        "encoder": {},
        "actor": {"mean": 0.3 * rng.normal(size=(F, C, A)), "log_std": np.array([-1.0, -0.3])},
        "critic": {"weight": rng.normal(size=F + 1)},
    }
    features = rng.normal(size=(B, F))
    mean = np.einsum("bf,fca->bca", features, params["actor"]["mean"])
    log_probs = (
        LinearPolicy()
        .apply({"params": params}, features, None, method="act")
        .log_prob(actions := mean + 0.5 * rng.normal(size=mean.shape))
    )
    values = np.concatenate([features, np.full((B, 1), 0.5)], 1) @ params["critic"]["weight"]
    batch = ppo.Batch(
        frames=None, task_ids=None, features=features, proprio=np.zeros((B, P)),
        elapsed=np.full(B, 0.5), actions=actions,
        # off-policy enough that every branch of the loss is taken
        log_probs=np.asarray(log_probs) + rng.normal(0, 0.8, B),
        values=values + rng.normal(0, 0.3, B), advantages=rng.normal(size=B),
        returns=values + rng.normal(0, 1.0, B), mask=rng.random(B) < 0.8,
        base_mean=mean + 0.1 * rng.normal(size=mean.shape),
    )  # fmt: skip
    return params, batch


def torch_loss(params, batch, config, base_log_std):
    """The formulas of the module docstring, decision by decision with full covariance matrices."""
    t = partial(torch.tensor, dtype=torch.float64)
    weights = {
        name: torch.tensor(np.asarray(value), dtype=torch.float64, requires_grad=True)
        for name, value in {**params["actor"], **params["critic"]}.items()
    }

    def normals(mean, log_std):
        rho = LinearPolicy.config.rho
        same = t(rho * np.ones((C, C)) + (1 - rho) * np.eye(C))
        return [MultivariateNormal(mean[:, d], torch.exp(log_std[d]) ** 2 * same) for d in range(A)]

    losses = []
    for i in np.flatnonzero(batch.mask):
        features = t(batch.features[i])
        chosen = normals(torch.einsum("f,fca->ca", features, weights["mean"]), weights["log_std"])
        action = t(batch.actions[i])
        log_prob = sum(n.log_prob(action[:, d]) for d, n in enumerate(chosen))
        ratio = torch.exp(log_prob - batch.log_probs[i])
        advantage = batch.advantages[i]
        clipped = torch.clamp(ratio, 1 - config.clip, 1 + config.clip)
        loss = torch.maximum(-advantage * ratio, -advantage * clipped)
        if config.dual_clip is not None and advantage < 0:
            loss = torch.minimum(loss, t(-config.dual_clip * advantage))
        loss = loss - config.entropy * sum(n.entropy() for n in chosen)
        if config.kl_base:
            base = normals(t(batch.base_mean[i]), t(base_log_std))
            pairs = zip(chosen, base, strict=True)
            kl = sum(torch.distributions.kl_divergence(p, q) for p, q in pairs)
            loss = loss + config.kl_base * kl
        value = torch.cat([features, t([batch.elapsed[i]])]) @ weights["weight"]
        old, target = batch.values[i], t(batch.returns[i])

        def penalty(guess, target=target):
            if config.huber is None:
                return (guess - target) ** 2 / 2
            return torch.nn.functional.huber_loss(guess, target, delta=config.huber)

        worst = penalty(value)
        if config.value_clip is not None:
            move = torch.clamp(value - old, -config.value_clip, config.value_clip)
            worst = torch.maximum(worst, penalty(old + move))
        losses.append(loss + config.value_weight * worst)
    total = sum(losses) / len(losses)
    total.backward()
    return float(total.detach()), {name: w.grad.numpy() for name, w in weights.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kl_base": 0.3, "entropy": 0.01, "huber": 0.4, "clip": 0.3, "dual_clip": 1.5},
        {"dual_clip": None, "value_clip": None, "huber": None, "value_weight": 0.5},
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradient_match_torch(changes, seed):
    config = ppo.PPOConfig(**changes)
    params, batch = linear_problem(seed)
    base_log_std = np.array([-0.8, -0.5])
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)

        def loss_of(params):
            variables = {"params": params}
            return ppo.ppo_loss(LinearPolicy(), variables, batch, config, base_log_std)[0]

        loss, gradient = jax.jit(jax.value_and_grad(loss_of))(params)
        expected, slopes = torch_loss(params, batch, config, base_log_std)
        np.testing.assert_allclose(loss, expected, rtol=1e-9)
        for name, slope in slopes.items():
            part = gradient["critic" if name == "weight" else "actor"][name]
            np.testing.assert_allclose(part, slope, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(("joint", "grad_clip"), [(False, 0.3), (True, 0.3), (True, None)])
def test_a_whole_update_matches_torchs_optimiser(joint, grad_clip):
    """Epochs, minibatches, clipping of gradients and Adam, with every branch of the paper's loss:
    parameters after 4 steps of torch.optim.Adam on the loss above, float64."""
    config = ppo.PPOConfig(
        epochs=2, minibatches=2, lr=0.03, value_lr=0.05, grad_clip=grad_clip,
        joint_grad_clip=joint, huber=0.5, entropy=0.01,
    )  # fmt: skip
    params, batch = linear_problem(3)
    rng = jax.random.PRNGKey(5)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        data = jax.tree.map(jnp.asarray, batch)
        optimiser = ppo.init_optimiser(wide, config).replace(lr=jnp.float64(config.lr))
        variables, _, metrics = ppo.update(
            LinearPolicy(), config, {"params": wide}, optimiser, data, rng
        )
        orders = [np.asarray(jax.random.permutation(k, B)) for k in jax.random.split(rng, 2)]
    assert metrics["updates"] == 4

    place = {"mean": "actor", "log_std": "actor", "weight": "critic"}
    weights = {
        name: torch.tensor(np.array(params[group][name]), requires_grad=True)
        for name, group in place.items()
    }
    groups = [[weights["mean"], weights["log_std"]], [weights["weight"]]]
    adam = torch.optim.Adam(
        [
            {"params": g, "lr": lr}
            for g, lr in zip(groups, (config.lr, config.value_lr), strict=True)
        ],
        betas=(config.beta1, config.beta2), eps=config.eps,
    )  # fmt: skip
    for order in orders:
        for index in order.reshape(2, -1):
            now = {"actor": {}, "critic": {}}
            for name, group in place.items():
                now[group][name] = weights[name].detach().numpy()
            part = jax.tree.map(lambda x, i=index: np.asarray(x)[i], batch)
            _, slopes = torch_loss(now, part, config, None)
            for name, weight in weights.items():
                weight.grad = torch.tensor(slopes[name])
            if grad_clip is not None:
                for group in [[*groups[0], *groups[1]]] if joint else groups:
                    torch.nn.utils.clip_grad_norm_(group, grad_clip)
            adam.step()
    for name, group in place.items():
        # torch adds 1e-6 to the norm that it divides by; our clipping does not.
        expected = weights[name].detach().numpy()
        np.testing.assert_allclose(variables["params"][group][name], expected, atol=1e-6)
        assert np.abs(expected - params[group][name]).max() > 0.03


@pytest.mark.parametrize("value_clip", [None, 0.2])
def test_loss_matches_brax(value_clip):
    """Brax's compute_ppo_loss on the same decisions, with the terms that it has, and the advantages
    and targets that its compute_gae gives."""
    steps, envs = 6, 4
    rng = np.random.default_rng(0)
    features = rng.normal(size=(steps + 1, envs, F))
    params = {
        "encoder": {},
        "actor": {"mean": 0.3 * rng.normal(size=(F, C, A)), "log_std": np.array([-1.0, -0.3])},
        "critic": {"weight": rng.normal(size=F + 1)},
    }

    class Diagonal(LinearPolicy):
        config = SimpleNamespace(rho=0.0)

    def act(features):
        return Diagonal().apply({"params": params}, features, None, method="act")

    def value(features):
        inputs = (None, jnp.full(len(features), 0.5))
        return Diagonal().apply({"params": params}, features, *inputs, method="value")

    class Normal:  # what Brax's loss asks of a distribution of its own
        def create_dist(self, logits):
            return SimpleNamespace(loc=logits, scale=jnp.ones(1))

        def log_prob(self, logits, action):
            flat = act(logits.reshape(-1, F)).log_prob(action.reshape(-1, C, A))
            return flat.reshape(logits.shape[:-1])

        def entropy(self, logits, _):
            return act(logits.reshape(-1, F)).entropy().reshape(logits.shape[:-1])

    def by_env(x):
        return jnp.swapaxes(jnp.asarray(x), 0, 1)

    with jax.enable_x64(True):
        flat = features[:-1].reshape(-1, F)
        chosen = act(flat)
        actions = np.asarray(chosen.mean) + 0.4 * rng.normal(size=chosen.mean.shape)
        old = np.asarray(chosen.log_prob(actions)) + rng.normal(0, 0.4, steps * envs)
        values = np.asarray(value(flat))
        old_values = values + rng.normal(0, 0.4, values.shape)
        rewards, ended = rng.normal(size=(steps, envs)), rng.random((steps, envs)) < 0.2

        def grid(x):
            return by_env(x.reshape(steps, envs, *x.shape[1:]))

        data = Transition(
            observation=by_env(features[:-1]), action=grid(actions), reward=by_env(rewards),
            discount=by_env(1.0 - ended), next_observation=by_env(features[1:]),
            extras={
                "state_extras": {"truncation": jnp.zeros((envs, steps))},
                "policy_extras": {
                    "raw_action": grid(actions), "log_prob": grid(old), "value": grid(old_values),
                },
            },
        )  # fmt: skip
        network = SimpleNamespace(
            parametric_action_distribution=Normal(),
            policy_network=SimpleNamespace(apply=lambda _, p, x: x),
            value_network=SimpleNamespace(
                apply=lambda _, p, x: value(x.reshape(-1, F)).reshape(x.shape[:-1])
            ),
        )
        options = dict(discounting=0.97, gae_lambda=0.9, clipping_epsilon=0.2, entropy_cost=0.01)
        loss, parts = brax_losses.compute_ppo_loss(
            SimpleNamespace(policy=None, value=None), None, data, jax.random.PRNGKey(0), network,
            vf_coefficient=0.5, clipping_epsilon_value=value_clip, **options,
        )  # fmt: skip
        targets, advantages = brax_losses.compute_gae(
            jnp.zeros((steps, envs)), jnp.asarray(ended, jnp.float64), jnp.asarray(rewards),
            jnp.asarray(values.reshape(steps, envs)), value(features[-1]), 0.9, 0.97,
        )  # fmt: skip
        everything = jnp.ones((steps, envs), bool)
        batch = ppo.Batch(
            frames=None, task_ids=None, features=flat, proprio=np.zeros((len(flat), P)),
            elapsed=jnp.full(len(flat), 0.5), actions=actions, log_probs=old, values=old_values,
            advantages=ppo.normalise(advantages, everything, 1e-8).ravel(),
            returns=targets.ravel(), mask=everything.ravel(),
        )  # fmt: skip
        config = ppo.PPOConfig(
            clip=0.2, dual_clip=None, huber=None, value_clip=value_clip, entropy=0.01,
            value_weight=0.5,
        )  # fmt: skip
        ours, own = ppo.ppo_loss(Diagonal(), {"params": params}, batch, config)
        np.testing.assert_allclose(own["policy_loss"], parts["policy_loss"], rtol=1e-9)
        np.testing.assert_allclose(0.5 * own["value_loss"], parts["v_loss"], rtol=1e-9)
        np.testing.assert_allclose(ours, loss, rtol=1e-9)


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
