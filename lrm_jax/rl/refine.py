"""Online refinement: roll out, let a reward function score the frames, improve the policy by PPO.

    for each iteration:
        rollout   physics, frames and decisions of N episodes            (one compiled program)
        score     reward_fn(frames, task_ids, rollout) -> rewards        (whatever the caller gives)
        learn     scale rewards, GAE, PPO epochs                         (one compiled program)

The loop knows nothing of vision-language models: a reward is a function. Frames never leave the
device; the host receives one dictionary of scalars an iteration. What the simulator knows (success,
progress) is removed from the rollout before the reward function sees it, unless the configuration
says that the reward is the privileged oracle; the learner never receives it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lrm_jax.parallel.mesh import ROW_AXES, replicated
from lrm_jax.parallel.placement import gathered, put
from lrm_jax.parallel.rows import shards
from lrm_jax.policies.networks import Policy, Variables
from lrm_jax.rl import ppo, stopping
from lrm_jax.rl.gae import gae
from lrm_jax.rl.rollout import Environment, RenderFn, Rollout, rollout
from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError

RewardFn = Callable[[jax.Array, jax.Array, Rollout], tuple[jax.Array, Mapping[str, Any]]]
"""(frames uint8 [T+1,N,H,W,3], task_ids int32 [N], rollout) -> (rewards [T,N], diagnostics).

The reward of decision t is what chunk t earned, so it may use frames t and t+1.
diagnostics["valid"], bool [T,N], marks rewards that could be computed (default: the finite ones);
other entries are scalars for the log."""


@dataclass(frozen=True)
class RefineConfig:
    """Settings of the refinement loop.

    Attributes:
      iterations [30 in the paper]; num_envs [12]; num_chunks: decisions of an episode [16].
      critic_warmup: first iterations in which only the critic learns [0]. It starts untrained.
      normalise_rewards: divide by the running root mean square of all rewards seen. Not the
        standard deviation: it would blow up for a constant reward, which is a control that must
        be runnable.
      privileged_reward: pass the simulator's facts to the reward function (the oracle arm only).
      track_clone: log the KL from the cloned policy in each iteration (one more forward pass of
        the actor).
      stop: when to stop early [never].
      ppo: the update.
    """

    iterations: int = field(30, ge=1)
    num_envs: int = field(64, ge=1)
    num_chunks: int = field(16, ge=1)
    critic_warmup: int = field(0, ge=0)
    normalise_rewards: bool = True
    privileged_reward: bool = False
    track_clone: bool = True
    stop: stopping.StopConfig = field(default_factory=stopping.StopConfig)
    ppo: ppo.PPOConfig = field(default_factory=ppo.PPOConfig)

    @property
    def needs_clone(self) -> bool:
        """Whether the cloned policy is kept beside the refined one."""
        return self.track_clone or self.ppo.kl_base > 0 or self.stop.kl_clone is not None


@flax.struct.dataclass
class RewardScale:
    """Running second moment of valid rewards: count and mean square, float32 []."""

    count: jax.Array
    square: jax.Array

    @classmethod
    def create(cls) -> RewardScale:
        return cls(jnp.zeros(()), jnp.zeros(()))

    def seen(self, rewards: jax.Array, mask: jax.Array) -> RewardScale:
        """After more rewards [T,N], valid where mask."""
        new = mask.sum().astype(jnp.float32)
        total = self.count + new
        added = jnp.sum(jnp.where(mask, jnp.square(rewards), 0.0)) - new * self.square
        return RewardScale(total, self.square + added / jnp.maximum(total, 1.0))

    def apply(self, rewards: jax.Array) -> jax.Array:
        """rewards / RMS; all-zero rewards stay zero."""
        return rewards / jnp.maximum(jnp.sqrt(self.square), 1e-6)


@flax.struct.dataclass
class RefineState:
    """All that the loop goes on from; a plain pytree of arrays, to be saved after any iteration.

    base: actor and encoder parameters of the cloned policy if the KL from it is asked for, else
      None.
    rng: root key, constant; iteration i folds i into it. iteration int32 []: iterations done.
    """

    variables: Variables
    base: dict[str, Any] | None
    optimiser: ppo.OptimiserState
    scale: RewardScale
    rng: jax.Array
    iteration: jax.Array


def init_state(variables: Variables, config: RefineConfig, rng: jax.Array) -> RefineState:
    """The state before the first iteration, from a cloned policy."""
    params = variables["params"]
    base = {k: params[k] for k in ("encoder", "actor")} if config.needs_clone else None
    optimiser = ppo.init_optimiser(params, config.ppo)
    return RefineState(variables, base, optimiser, RewardScale.create(), rng, jnp.int32(0))


@partial(jax.jit, static_argnames=("policy", "config"))
def learn(
    policy: Policy,
    config: RefineConfig,
    state: RefineState,
    played: Rollout,
    rewards: jax.Array,
    valid: jax.Array,
) -> tuple[RefineState, dict[str, jax.Array]]:
    """One PPO iteration on a rollout and its rewards [T,N], valid bool [T,N] -> state, scalars.

    `played.privileged` is not read and may be None.
    """
    c = config.ppo
    usable = played.mask & valid & jnp.isfinite(rewards)
    scale = state.scale.seen(rewards, usable)
    scaled = jnp.where(usable, rewards, 0.0)
    scaled = scale.apply(scaled) if config.normalise_rewards else scaled
    advantages, returns = gae(
        scaled, played.values, terminated=played.terminated, truncated=played.truncated,
        mask=usable, discount=c.discount, decay=c.decay, bootstrap_truncated=c.bootstrap_truncated,
    )  # fmt: skip
    metrics = _describe(rewards, returns, advantages, played, usable)
    if c.normalise_advantages:
        advantages = ppo.normalise(advantages, usable)

    steps, envs = rewards.shape

    def flat(x):
        return x[:steps].reshape(steps * envs, *x.shape[2:])

    task_ids = jnp.broadcast_to(played.task_ids, (steps, envs))
    elapsed = jnp.broadcast_to(played.elapsed[:steps, None], (steps, envs))
    batch = ppo.Batch(
        frames=flat(played.frames) if c.train_encoder else None,
        task_ids=flat(task_ids) if c.train_encoder else None,
        features=None if c.train_encoder else flat(played.features),
        proprio=flat(played.proprio), elapsed=flat(elapsed), actions=flat(played.actions),
        log_probs=flat(played.log_probs), values=flat(played.values),
        advantages=flat(advantages), returns=flat(returns), mask=flat(usable),
        chain=None if played.chain is None else flat(played.chain),
    )  # fmt: skip
    base_log_std = None
    if state.base is not None:
        acting, cloned = _acting_and_cloned(policy, config, state, played)
        away = jnp.where(usable, acting.kl(cloned), 0.0).sum() / jnp.maximum(usable.sum(), 1)
        metrics["kl_clone"] = away
        if c.kl_base > 0:
            batch = batch.replace(base_mean=flat(cloned.mean))
            if played.chain is None:
                base_log_std = cloned.log_std
            else:  # a flow's noise differs between decisions
                batch = batch.replace(base_log_std=flat(cloned.log_std))
    variables, optimiser, parts = ppo.update(
        policy, c, state.variables, state.optimiser, batch,
        jax.random.fold_in(jax.random.fold_in(state.rng, state.iteration), 2),
        base_log_std, state.iteration >= config.critic_warmup,
    )  # fmt: skip
    new = state.replace(
        variables=variables, optimiser=optimiser, scale=scale, iteration=state.iteration + 1
    )
    metrics["reward_rms"] = jnp.sqrt(scale.square)
    metrics["policy_std"] = jnp.exp(played.log_std).mean()
    return new, {**metrics, **parts}


def refine(
    env: Environment,
    render_fn: RenderFn,
    policy: Policy,
    variables: Variables,
    reward_fn: RewardFn,
    config: RefineConfig,
    rng: jax.Array,
    *,
    state: RefineState | None = None,
    on_iteration: Callable[[RefineState, dict[str, float]], None] | None = None,
    history: Sequence[Mapping[str, float]] = (),
) -> RefineState:
    """Runs the loop to `config.iterations`, or until `config.stop` says that it is enough.

    Args:
      variables: the cloned policy; not used if `state` is given.
      reward_fn: see RewardFn.
      rng: root key of rollouts and updates; not used if `state` is given.
      state: go on from here (as given to on_iteration, or restored from a checkpoint): the end is
        bit for bit that of a run that was not interrupted.
      on_iteration: called after each iteration with the state and its metrics: iteration,
        reward_mean/std, return_mean, explained_variance, the parts of ppo.update, invalid_scores,
        bad_envs, env_steps, success_any, success_end (privileged, for the log alone),
        seconds_rollout/score/learn, and reward/NAME for each diagnostic; "proxy_oracle_rank", how
        an iteration's episodes rank by reward and by the simulator's progress (Spearman; privileged
        as well, NaN where one of them is constant).
      history: the metrics of the iterations that `state` has behind it, for `config.stop`.

    Raises:
      UserError: sizes that do not fit; rewards of the wrong shape.
      FloatingPointError: an iteration had no valid reward, or the update became non-finite; the
        state before it is the last one that on_iteration received.
    """
    chunk, length = policy.config.chunk, config.num_chunks
    if (config.num_envs * length) % config.ppo.minibatches:
        raise UserError(
            f"{config.num_envs} environments x {length} chunks do not divide into "
            f"{config.ppo.minibatches} minibatches"
        )
    if config.num_envs % shards(ROW_AXES):
        raise UserError(
            f"{config.num_envs} environments do not divide into the {shards(ROW_AXES)} parts that "
            "the mesh cuts rows into"
        )
    state = init_state(variables, config, rng) if state is None else state
    mesh = jax.sharding.get_mesh()
    if not mesh.empty:  # as iterations leave it: placed otherwise, the second one compiles anew
        state = put(state, replicated(mesh))
    rows = list(history)
    for i in range(int(state.iteration), config.iterations):
        if stopping.reason(config.stop, rows) is not None:
            break
        started = time.perf_counter()
        played = rollout(
            env, render_fn, policy, state.variables, jax.random.fold_in(state.rng, i),
            config.num_envs, length, chunk,
        )  # fmt: skip
        jax.block_until_ready(played)
        rolled = time.perf_counter()
        seen = played if config.privileged_reward else played.replace(privileged=None)
        rewards, diagnostics = reward_fn(played.frames, played.task_ids, seen)
        if rewards.shape != (length, config.num_envs):
            raise UserError(
                f"reward function returned shape {rewards.shape}, "
                f"not (chunks, environments) = {(length, config.num_envs)}"
            )
        diagnostics = dict(diagnostics)
        valid = diagnostics.pop("valid", jnp.isfinite(rewards))
        jax.block_until_ready((rewards, valid))
        scored = time.perf_counter()
        new, metrics = learn(
            policy, config, state, played.replace(privileged=None, step_frames=None), rewards, valid
        )
        facts = played.privileged
        metrics |= {
            "success_any": facts.success_any.mean(),
            "success_end": facts.success_end.mean(),
        }
        metrics |= {f"reward/{name}": value for name, value in diagnostics.items()}
        earned = jnp.where(played.mask & valid, rewards, 0.0).sum(0)
        gained = facts.progress[-1] - facts.progress[0]
        metrics, earned, gained = gathered((metrics, earned, gained))
        metrics = {name: float(value) for name, value in metrics.items()}
        metrics["proxy_oracle_rank"] = stopping.rank_correlation(earned, gained)
        learned = time.perf_counter()
        metrics |= {
            "iteration": i + 1,
            "env_steps": (i + 1) * config.num_envs * length * chunk,
            "seconds_rollout": rolled - started,
            "seconds_score": scored - rolled,
            "seconds_learn": learned - scored,
        }
        _check(metrics)
        state = new
        rows.append(metrics)
        if on_iteration is not None:
            on_iteration(state, metrics)
    return state


def _describe(rewards, returns, advantages, played, usable) -> dict[str, jax.Array]:
    """Scalars about an iteration's rewards and the critic before it learns from them."""
    count = jnp.maximum(usable.sum(), 1)

    def mean(x):
        return jnp.sum(jnp.where(usable, x, 0.0)) / count

    def variance(x):
        return mean(jnp.square(x - mean(x)))

    return {
        "reward_mean": mean(rewards),
        "reward_std": jnp.sqrt(variance(rewards)),
        "episode_reward": jnp.sum(jnp.where(usable, rewards, 0.0)) / rewards.shape[1],
        "return_mean": mean(returns),
        "value_mean": mean(returns - advantages),
        # What the critic misses on average: R - V = A before A is normalised.
        "value_bias": mean(advantages),
        "advantage_std": jnp.sqrt(variance(advantages)),
        # 1 - Var(R - V) / Var(R): 1 is a perfect critic, 0 one that knows only the mean.
        "explained_variance": 1.0 - variance(advantages) / jnp.maximum(variance(returns), 1e-8),
        "valid_decisions": usable.sum(),
        "invalid_scores": (played.mask & ~usable).sum(),
        "bad_envs": played.bad.sum(),
    }


def _acting_and_cloned(policy, config, state, played) -> tuple[Any, Any]:
    """The distributions of the acting and of the cloned policy on the rollout's observations, both
    over chunks [T,N,C,A] with one log std [A]; with a flow head along the rollout's denoise chains,
    means [T,N,K,C,A] and log std [T,N,K,A]."""
    steps = played.actions.shape[0]
    cloned = {**state.variables, "params": {**state.variables["params"], **state.base}}

    def one(inputs):
        frames, features, proprio, chain = inputs
        acting = policy.apply(state.variables, features, proprio, chain, method="act")
        if config.ppo.train_encoder:  # the rollout's features are of the encoder as it is now
            features = policy.apply(cloned, frames, played.task_ids, method="encode")
        return acting, policy.apply(cloned, features, proprio, chain, method="act")

    frames = played.frames[:steps] if config.ppo.train_encoder else None
    inputs = (frames, played.features[:steps], played.proprio[:steps], played.chain)
    pair = jax.lax.map(one, inputs)
    if played.chain is not None:
        return pair
    # The Gaussian head's standard deviation does not depend on what is seen.
    return tuple(d.replace(log_std=d.log_std[0]) for d in pair)


def _check(metrics: Mapping[str, float]) -> None:
    if metrics["valid_decisions"] == 0:
        raise FloatingPointError(
            f"iteration {metrics['iteration']}: no valid reward "
            f"({metrics['invalid_scores']:.0f} invalid scores, {metrics['bad_envs']:.0f} bad envs)"
        )
    for name in ("kl", "value_loss", "policy_grad_norm", "value_grad_norm"):
        if metrics[name] != metrics[name] or abs(metrics[name]) == float("inf"):
            raise FloatingPointError(f"iteration {metrics['iteration']}: {name} is not finite")
