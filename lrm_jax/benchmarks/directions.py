"""What a step of the policy gains for the KL that it spends, by the direction that it takes.

    python -m lrm_jax.benchmarks.directions --policy=FILE --json=FILE [--rollouts=24]

`--policy` is the `policy.safetensors` of a quickstart's stage `base_policy_0`. The policy plays
rollouts of 128 episodes, exploring and learning nothing. Each rollout's gradient, by the privileged
dense reward, becomes a step in several directions. By the gradient of success in all other
rollouts, and with the KL of another rollout's decisions, the step is worth so much success for each
root of a nat; all to first order, so the length does not matter. The directions are the gradient
itself; the gradient divided by the root mean square of each parameter's gradients, as Adam does,
and the same for the first layer or the last alone; and the natural gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.flatten_util import ravel_pytree

from lrm_jax.benchmarks import peers
from lrm_jax.benchmarks.worlds import quickstart
from lrm_jax.jobs.base_policy import World
from lrm_jax.rewards import transforms
from lrm_jax.rl.gae import gae
from lrm_jax.rl.natural import fisher_product, natural_step
from lrm_jax.rl.ppo import PPOConfig
from lrm_jax.rl.rollout import Rollout, rollout
from lrm_jax.run.cli import reject_arguments, run_app
from lrm_jax.run.progress import bar
from lrm_jax.run.trees import load_tree

_JSON = flags.DEFINE_string("json", None, "File for the figures.", required=True)
_POLICY = flags.DEFINE_string("policy", None, "The cloned policy's file.", required=True)
_ROLLOUTS = flags.DEFINE_integer("rollouts", 24, "Rollouts.", lower_bound=3)
_ENVS = flags.DEFINE_integer("envs", 128, "Environments.", lower_bound=2)


def advantages(rewards: jax.Array, discount: float) -> jax.Array:
    """Returns of [T,N] rewards less their mean over environments: no critic, whose learning would
    be part of the figures."""
    steps, envs = rewards.shape
    nothing = jnp.zeros((steps, envs), bool)
    returns, _ = gae(
        rewards, jnp.zeros((steps + 1, envs)), terminated=nothing.at[-1].set(True),
        truncated=nothing, mask=~nothing, discount=discount, decay=1.0,
    )  # fmt: skip
    return returns - returns.mean(1, keepdims=True)


class Slopes:
    """Gradients and KL of an actor's parameters, as flat vectors [P], on a rollout's decisions."""

    def __init__(self, world: World, variables: Any, discount: float):
        self.world, self.variables, self.discount = world, variables, discount
        self.flat, self.tree = ravel_pytree(variables["params"]["actor"])
        self.gradients = jax.jit(self._gradients)
        self.natural = jax.jit(self._natural, static_argnums=(2, 3))
        self.kl = jax.jit(self._kl)

    def _acting(self, flat: jax.Array, played: Rollout) -> Any:
        params = {**self.variables["params"], "actor": self.tree(flat)}
        steps = played.actions.shape[0]
        inputs = (x[:steps].reshape(-1, x.shape[-1]) for x in (played.features, played.proprio))
        return self.world.policy.apply({**self.variables, "params": params}, *inputs, method="act")

    def _gradients(self, played: Rollout) -> tuple[jax.Array, jax.Array]:
        """d(dense return) / d(parameters) and d(success) / d(parameters), of an episode."""
        facts = played.privileged
        known = jnp.isfinite(facts.progress)
        dense, _ = transforms.delta(facts.progress, known, self.discount)  # as the oracle arm
        won = jnp.zeros_like(dense).at[-1].set(facts.success_end.astype(jnp.float32))
        weights = jnp.stack([advantages(dense, self.discount), advantages(won, 1.0)])

        def objective(flat, weight):
            drawn = played.actions.reshape(-1, *played.actions.shape[2:])
            chosen = self._acting(flat, played).log_prob(drawn).reshape(weight.shape)
            return jnp.where(played.mask, chosen * weight, 0.0).sum(0).mean()

        one, two = (jax.grad(objective)(self.flat, w) for w in weights)
        return one, two

    def _divergence(self, played: Rollout) -> Callable[[jax.Array], jax.Array]:
        now = self._acting(self.flat, played)
        return lambda flat: now.kl(self._acting(flat, played)).mean()

    def _natural(self, gradient: jax.Array, played: Rollout, iterations: int, damping: float):
        product = fisher_product(self._divergence(played), self.flat)
        return natural_step(-gradient, product, 0.01, iterations, damping)

    def _kl(self, step: jax.Array, played: Rollout) -> jax.Array:
        product = fisher_product(self._divergence(played), self.flat)
        return jnp.vdot(step, product(step)) / 2.0


def worth(steps: np.ndarray, kl: np.ndarray, success: np.ndarray) -> dict[str, float]:
    """Success gained for the root of a nat: mean and standard error over R steps [R,P], which spend
    `kl` [R]; success: gradients [R,P] of the same rollouts, of which each step's own is left out
    (with it noise would count as gain). The standard error is over steps: two steps share most of
    the rollouts that judge them. agreement: mean cosine between two steps."""
    count = len(steps)
    others = (success.sum(0) - success) / (count - 1)
    gains = (steps * others).sum(1) / np.sqrt(kl)
    units = steps / np.linalg.norm(steps, axis=1, keepdims=True)
    total = np.square(units.sum(0)).sum()
    return {
        "success_per_root_nat": float(gains.mean()),
        "standard_error": float(gains.std(ddof=1) / np.sqrt(count)),
        "agreement": float((total - count) / (count * (count - 1))),
    }


def main(argv: list[str]) -> None:
    """Plays, compares and writes the figures."""
    reject_arguments(argv)
    job = quickstart(_ENVS.value, 1)
    world = World.make(job.env, job.policy, "")
    variables = load_tree(_POLICY.value, like=world.fresh(0))
    slopes = Slopes(world, variables, job.refine.ppo.discount)
    play = partial(
        rollout, world.env, world.render, world.policy, variables,
        num_envs=_ENVS.value, num_chunks=job.refine.num_chunks, chunk=job.policy.chunk,
        store_frames=False,
    )  # fmt: skip
    played, rates = [], []
    with bar(total=_ROLLOUTS.value, desc="playing", unit="rollout") as progress:
        for number in range(_ROLLOUTS.value):
            played.append(play(rng=jax.random.fold_in(jax.random.PRNGKey(1), number)))
            rates.append(float(played[-1].privileged.success_end.mean()))
            progress.update(1)
    dense, success = (np.stack(x) for x in zip(*map(slopes.gradients, played), strict=True))
    scale = np.sqrt(np.square(dense).mean(0)) + 1e-12
    layers, _ = ravel_pytree(
        jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.full(x.shape, _layer(path)), variables["params"]["actor"]
        )
    )
    last = int(layers.max())
    settings = PPOConfig()
    directions = {
        "gradient": dense,
        "adam": dense / scale,
        "adam, first layer": dense / scale * (layers == 0),
        "adam, last layer": dense / scale * (layers == last),
        "natural": np.stack([
            slopes.natural(g, p, settings.cg_iterations, settings.damping)
            for g, p in zip(dense, played, strict=True)
        ]),
    }  # fmt: skip
    found = {}
    for name, steps in directions.items():
        another = played[1:] + played[:1]
        kl = [slopes.kl(s, p) for s, p in zip(steps, another, strict=True)]
        found[name] = worth(steps, np.asarray(kl), success)
    figures = {
        "benchmark": "directions", "environments": _ENVS.value, "rollouts": _ROLLOUTS.value,
        "success": float(np.mean(rates)), "directions": found, **peers.device_facts(),
    }  # fmt: skip
    peers.write(_JSON.value, figures)


def _layer(path: Any) -> int:
    """Which dense layer of the trunk a parameter belongs to; -1 for all others."""
    key = jax.tree_util.keystr(path)
    return int(key.split("Dense_")[1][0]) if "Dense_" in key else -1


if __name__ == "__main__":
    run_app(main)
