"""Our PPO on a classic task beside Brax's own, in one process: return against samples and seconds.

    python -m lrm_jax.benchmarks.ppo_classic --json=FILE

Both learn to balance a pole on a cart (`benchmarks.classic`) from state: the same physics, reward,
number of environments, samples between updates, epochs, minibatches, widths, learning rate,
discount and clipping. Ours is `rl.refine` as it stands, which plays whole episodes; the peer is
`brax.training.agents.ppo.train` with its own distribution and normalisation of observations.
Compilation is given apart: the first two updates of either compile, and count as much as the median
of the rest.
"""

from __future__ import annotations

import time
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from lrm_jax.benchmarks import classic, peers
from lrm_jax.rl.evaluate import episode_keys, evaluate
from lrm_jax.rl.ppo import PPOConfig
from lrm_jax.rl.refine import RefineConfig, refine
from lrm_jax.run.cli import reject_arguments, run_app
from lrm_jax.run.errors import UserError
from lrm_jax.run.progress import note

_JSON = flags.DEFINE_string("json", None, "File for the figures.", required=True)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Training seeds of each learner.", 1)
_ITERATIONS = flags.DEFINE_integer("iterations", 60, "Updates of each learner.", 3)
_ENVS = flags.DEFINE_integer("envs", 64, "Environments.", 2)
_LENGTH = flags.DEFINE_integer("length", 200, "Control steps of an episode.", 10)
_UNROLL = flags.DEFINE_integer("unroll", 25, "Steps of the peer's unrolls.", 1)
_TARGET = flags.DEFINE_float("target", 0.85, "Share of the best reward that counts as learnt.")

MINIBATCHES, EPOCHS = 16, 4
LR, DISCOUNT, DECAY, CLIP = 1e-3, 0.97, 0.95, 0.2
JUDGED = 64  # episodes of an evaluation, the same in every one


def ours(env: classic.CartPole, seed: int) -> dict[str, Any]:
    """A run of `rl.refine`: mean reward of a step of the deterministic policy after each update,
    samples and seconds so far."""
    policy = classic.StatePolicy(classic.StateConfig())
    config = RefineConfig(
        iterations=_ITERATIONS.value, num_envs=_ENVS.value, num_chunks=env.episode_length,
        privileged_reward=True, normalise_rewards=False, track_clone=False,
        ppo=PPOConfig(
            epochs=EPOCHS, minibatches=MINIBATCHES, lr=LR, value_lr=LR, clip=CLIP, dual_clip=None,
            value_clip=None, huber=None, value_weight=0.5, entropy=0.0, discount=DISCOUNT,
            decay=DECAY, beta2=0.999, eps=1e-8, grad_clip=None,
        ),
    )  # fmt: skip
    variables = classic.fresh(policy, env.proprio_size, seed)
    keys, curve, seconds = episode_keys(1_000, JUDGED), [], []

    def on_iteration(state, row):
        seconds.append(sum(row[f"seconds_{p}"] for p in ("rollout", "score", "learn")))
        found = evaluate(env, classic.blank, policy, state.variables, keys, batch=JUDGED)
        curve.append((int(row["env_steps"]), float(found.progress[:, 1:].mean())))

    refine(
        env, classic.blank, policy, variables, classic.environment_reward, config,
        jax.random.PRNGKey(seed), on_iteration=on_iteration,
    )  # fmt: skip
    return classic.learnt(curve, seconds, _TARGET.value)


def theirs(env: classic.CartPole, seed: int) -> dict[str, Any]:
    """A run of Brax's PPO on the same task."""
    from brax.training.agents.ppo import networks
    from brax.training.agents.ppo import train as brax_ppo

    each = _ENVS.value * env.episode_length  # samples between updates
    unrolls, rest = divmod(each, _UNROLL.value)
    if rest or unrolls % MINIBATCHES or (unrolls % _ENVS.value):
        raise UserError(
            f"--envs={_ENVS.value} x --length={_LENGTH.value} do not divide into unrolls of "
            f"{_UNROLL.value} for {MINIBATCHES} minibatches"
        )
    curve: list[tuple[int, float]] = []
    clock: list[float] = []

    def progress(steps, metrics):
        if steps:
            curve.append((int(steps), float(metrics["eval/episode_reward"]) / env.episode_length))
            clock.append(float(metrics["training/walltime"]))

    def factory(observation, action, preprocess_observations_fn):
        return networks.make_ppo_networks(
            observation, action, preprocess_observations_fn,
            policy_hidden_layer_sizes=(64, 64), value_hidden_layer_sizes=(64, 64),
        )  # fmt: skip

    with mock.patch.object(jax, "device_put_replicated", replicated, create=True):
        brax_ppo.train(
            classic.brax_environment(env), num_timesteps=each * _ITERATIONS.value,
            episode_length=env.episode_length, num_envs=_ENVS.value, unroll_length=_UNROLL.value,
            batch_size=unrolls // MINIBATCHES, num_minibatches=MINIBATCHES,
            num_updates_per_batch=EPOCHS, learning_rate=LR, entropy_cost=0.0, discounting=DISCOUNT,
            gae_lambda=DECAY, clipping_epsilon=CLIP, normalize_observations=True,
            num_evals=_ITERATIONS.value + 1, num_eval_envs=JUDGED, deterministic_eval=True,
            seed=seed, network_factory=factory, progress_fn=progress,
        )  # fmt: skip
    return classic.learnt(curve, np.diff(clock, prepend=0.0).tolist(), _TARGET.value)


def replicated(tree: Any, devices: Any) -> Any:
    """What `jax.device_put_replicated` did, on this one device; Brax 0.14.2 still calls it."""
    return jax.tree.map(lambda x: jnp.stack([x] * len(devices)), tree)


def main(argv: list[str]) -> None:
    """Trains both and writes the figures."""
    reject_arguments(argv)
    env = classic.CartPole(_LENGTH.value)
    started = time.perf_counter()
    runs: dict[str, list[dict[str, Any]]] = {"lrm_jax": [], "brax": []}
    for seed in range(_SEEDS.value):  # in turns, so that a busy machine slows down both
        for name, learner in (("lrm_jax", ours), ("brax", theirs)):
            note(f"{name}, seed {seed}")
            runs[name].append(learner(env, seed))
    names = ("samples_to_target", "seconds_to_target", "seconds_per_update", "final_reward")
    middles = {who: {n: classic.middle(found, n) for n in names} for who, found in runs.items()}

    def ratio(name):
        a, b = middles["brax"][name], middles["lrm_jax"][name]
        return None if a is None or b is None else a / b

    figures = {
        "benchmark": "ppo_classic", "task": "cart-pole from state (MJX)",
        "environments": _ENVS.value, "episode": _LENGTH.value, "updates": _ITERATIONS.value,
        "target": _TARGET.value, "median": middles,
        "brax_over_ours": {n: ratio(n) for n in names[:3]},
        "runs": runs, "seconds": time.perf_counter() - started, **peers.device_facts(),
    }  # fmt: skip
    peers.write(_JSON.value, figures)


if __name__ == "__main__":
    run_app(main)
