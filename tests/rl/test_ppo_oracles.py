"""The loss and a whole update of PPO against torch, and the loss against Brax's."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from brax.training.agents.ppo import losses as brax_losses
from brax.training.types import Transition
from linear_policy import A, B, C, F, LinearPolicy, P, linear_problem, torch_loss

from lrm_jax.rl import ppo


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
