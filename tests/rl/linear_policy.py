"""A linear policy with the interface that the loss uses, and the loss written again in torch."""

from functools import partial
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import torch
from torch.distributions import MultivariateNormal

from lrm_jax.policies.distribution import ChunkNormal
from lrm_jax.rl import ppo

B, C, A, F, P = 24, 3, 2, 5, 4


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
