"""Closed-loop evaluation on paired episodes: the same reset states for every policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.parallel.placement import gathered
from lrm_jax.policies.networks import Policy, Variables
from lrm_jax.rl.rollout import Environment, RenderFn, rollout_from
from lrm_jax.run.errors import UserError


@dataclass(frozen=True)
class Evaluation:
    """Results of E episodes on the host, in the order of their keys.

    success_any, success_end bool [E]: the task was done at some step, and at the last step.
    progress float32 [E,T+1]: the simulator's dense progress at each decision and at the end.
    bad bool [E]: physics broke; such an episode counts as a failure in both.
    task_ids int32 [E]: which of the environment's instructions each episode has.
    frames: episode index -> uint8 [T+1,H,W,3], for the episodes asked for.
    """

    success_any: np.ndarray
    success_end: np.ndarray
    progress: np.ndarray
    bad: np.ndarray
    task_ids: np.ndarray
    frames: dict[int, np.ndarray]

    @property
    def rate(self) -> float:
        """Share of episodes that end in success."""
        return float(self.success_end.mean())


def episode_keys(seed: int, episodes: int) -> jax.Array:
    """Reset keys [episodes, ...]; a longer list starts with the shorter one."""
    root = jax.random.PRNGKey(seed)
    return jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.arange(episodes))


def evaluate(
    env: Environment,
    render_fn: RenderFn,
    policy: Policy,
    variables: Variables,
    keys: jax.Array,
    *,
    batch: int,
    num_chunks: int | None = None,
    deterministic: bool = True,
    rng: jax.Array | None = None,
    keep_frames: Sequence[int] = (),
    on_batch: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Plays one episode from each reset key.

    Args:
      keys: [E]; use the same for the policies to be compared, then episode i pairs with episode i.
      batch: environments at once; the last batch is filled up and the surplus dropped.
      num_chunks: decisions; by default the whole episode.
      deterministic: act with the mean; else `rng` is needed.
      keep_frames: indices of the episodes whose frames to return.
      on_batch: called with (episodes done, E).

    Raises:
      UserError: no episodes, an index out of range, or sampling without a key.
    """
    total, chunk = len(keys), policy.config.chunk
    if total == 0 or batch < 1:
        raise UserError(f"evaluation needs episodes and environments, got {total} and {batch}")
    if any(not 0 <= i < total for i in keep_frames):
        raise UserError(f"keep_frames {list(keep_frames)} must be indices below {total}")
    if not deterministic and rng is None:
        raise UserError("evaluation of a sampling policy needs a key")
    rng = jax.random.PRNGKey(0) if rng is None else rng
    num_chunks = env.episode_length // chunk if num_chunks is None else num_chunks
    parts, frames = [], {}
    for b in range(math.ceil(total / batch)):
        index = np.arange(b * batch, (b + 1) * batch)
        played = rollout_from(
            env, render_fn, policy, variables, keys[np.minimum(index, total - 1)],
            jax.random.fold_in(rng, b), num_chunks=num_chunks, chunk=chunk,
            deterministic=deterministic,
        )  # fmt: skip
        inside = index < total
        facts = played.privileged
        columns = (
            facts.success_any, facts.success_end, facts.progress.T, played.bad, played.task_ids,
        )  # fmt: skip
        parts.append([x[inside] for x in gathered(columns)])
        for i in set(keep_frames) & set(index[inside].tolist()):
            frames[i] = gathered(played.frames[:, i - b * batch])
        if on_batch is not None:
            on_batch(min((b + 1) * batch, total), total)
    any_, end, progress, bad, tasks = (np.concatenate(x) for x in zip(*parts, strict=True))
    return Evaluation(any_ & ~bad, end & ~bad, progress, bad, tasks, frames)


def record(
    env: Environment,
    render_fn: RenderFn,
    policy: Policy,
    variables: Variables,
    keys: jax.Array,
    *,
    num_chunks: int | None = None,
    deterministic: bool = True,
    rng: jax.Array | None = None,
) -> np.ndarray:
    """Frames of a few episodes after every control step, for videos: uint8 [N,S+1,H,W,3].

    The first is the reset state. Deterministic episodes equal those of `evaluate`, up to float
    rounding that differs with the batch size.
    """
    chunk = policy.config.chunk
    played = rollout_from(
        env, render_fn, policy, variables, keys,
        jax.random.PRNGKey(0) if rng is None else rng,
        num_chunks=env.episode_length // chunk if num_chunks is None else num_chunks,
        chunk=chunk, deterministic=deterministic, record_steps=True,
    )  # fmt: skip
    steps = played.step_frames.reshape(-1, *played.step_frames.shape[2:])
    return np.asarray(jnp.concatenate([played.frames[:1], steps]).swapaxes(0, 1))
