"""Rollouts: physics, rendering and the policy in one compiled program.

Every environment plays one episode of fixed length, all in step. A decision covers a chunk of C
control steps, so T = num_chunks decisions make T * C steps. Frames stay uint8 on the device; they
are scored after the rollout, in large batches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from lrm_jax.parallel import rows
from lrm_jax.parallel.mesh import ROW_AXES
from lrm_jax.policies.decisions import decide as choose
from lrm_jax.policies.networks import Policy, Variables
from lrm_jax.run.errors import UserError

DIVERGED = 1e10  # MuJoCo's mjMAXVAL

RenderFn = Callable[[Any], jax.Array]
"""Batched State (leading axis N on every leaf) -> frames uint8 [N,H,W,3]."""


class Environment(Protocol):
    """What a rollout needs of an environment (lrm_jax.envs); pure functions of one environment.

    A State has data, obs {"proprio": float32 [P]}, reward, done, metrics {"success", "progress"}
    and info {"task_id": int32}; info may have "truncation" as in Brax.
    """

    episode_length: int
    action_size: int

    def reset(self, rng: jax.Array) -> Any: ...

    def step(self, state: Any, action: jax.Array) -> Any: ...


@flax.struct.dataclass
class Privileged:
    """What only evaluation, logging and the oracle reward may read. No loss does.

    success_any bool [N]: succeeded at some control step.
    success_end bool [N]: succeeds at the last one.
    progress float32 [T+1,N]: the simulator's dense progress at each decision (and at the end).
    success bool [T,N]: succeeded at some step of chunk t.
    """

    success_any: jax.Array
    success_end: jax.Array
    progress: jax.Array
    success: jax.Array


@flax.struct.dataclass
class Rollout:
    """T decisions of N environments.

    frames uint8 [T+1,N,H,W,3]: what the policy saw at each decision, and the last state; None if
      not stored.
    features float32 [T+1,N,F]: the encoder's output for those frames, under the acting policy.
    proprio float32 [T+1,N,P]; task_ids int32 [N]; elapsed float32 [T+1]: share passed.
    actions float32 [T,N,C,A]: as sampled, not clipped; means: of their distributions; log_std [A].
      With the flow head both are those of the last denoise step, log_std [N,A] of decision 0.
    log_probs float32 [T,N] of whole chunks, or of their denoise chains; values float32 [T+1,N].
    mask bool [T,N]: the decision counts: its environment was alive before it and healthy after it.
    terminated, truncated bool [T,N]: the episode ended in chunk t, by itself or by its time limit.
    bad bool [N]: physics became non-finite in the episode (state kept from the last healthy chunk).
    step_frames uint8 [T,C,N,H,W,3]: the frame after every control step, if asked for, else None.
    chain float32 [T,N,K+1,C,A]: the denoise chain of each decision, flow head only, else None.
    """

    frames: jax.Array | None
    features: jax.Array
    proprio: jax.Array
    task_ids: jax.Array
    elapsed: jax.Array
    actions: jax.Array
    means: jax.Array
    log_std: jax.Array
    log_probs: jax.Array
    values: jax.Array
    mask: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    bad: jax.Array
    privileged: Privileged
    step_frames: jax.Array | None = None
    chain: jax.Array | None = None


def reset_keys(rng: jax.Array, num_envs: int) -> jax.Array:
    """Reset keys [num_envs, ...] of a rollout from one key."""
    return jax.random.split(jax.random.fold_in(rng, 0), num_envs)


@partial(
    jax.jit,
    static_argnames=(
        "env", "render_fn", "policy", "num_chunks", "chunk",
        "store_frames", "record_steps",
    ),
)  # fmt: skip
def rollout_from(
    env: Environment,
    render_fn: RenderFn,
    policy: Policy,
    variables: Variables,
    keys: jax.Array,
    rng: jax.Array,
    *,
    num_chunks: int,
    chunk: int,
    deterministic: bool = False,
    store_frames: bool = True,
    record_steps: bool = False,
) -> Rollout:
    """One episode in each environment, from given reset keys.

    Compiles once for each set of static arguments (env, render_fn and policy are compared by
    identity or by fields, so make them once) and number of environments.

    Args:
      variables: the policy's {params, norm, tasks}.
      keys: [N] reset keys. rng: key of the exploration noise.
      deterministic: act with the mean, or without noise on the denoise steps (flow head). Not
        static: one program serves refinement and evaluation.
      store_frames: keep frames at decisions; record_steps: also render after every control step.

    Raises:
      UserError: the chunk differs from the policy's, or the episode is too short for num_chunks.
    """
    if chunk != policy.config.chunk:
        raise UserError(
            f"chunk {chunk}, but the policy decides {policy.config.chunk} steps at once"
        )
    if num_chunks * chunk > env.episode_length:
        raise UserError(
            f"{num_chunks} chunks of {chunk} steps are longer than the episode of "
            f"{env.episode_length} steps"
        )
    num_envs = keys.shape[0]
    reset, step = (rows.apart(jax.vmap(f), ROW_AXES) for f in (env.reset, env.step))
    render = rows.apart(render_fn, ROW_AXES)
    state = reset(keys)
    task_ids = state.info["task_id"].astype(jnp.int32)
    elapsed = jnp.arange(num_chunks + 1, dtype=jnp.float32) * (chunk / env.episode_length)

    def control_step(carry, inputs):
        state, ended = carry
        action, steps_done = inputs
        state = step(state, action)
        done = state.done > 0.5
        stopped = done & ~ended
        limit = state.info.get("truncation")
        # An environment that does not say why it stopped stops at its time limit or terminates.
        cut = limit > 0.5 if limit is not None else steps_done >= env.episode_length
        output = {
            # Steps of the same chunk after the end are played but not looked at.
            "success": (state.metrics["success"] > 0.5) & ~ended,
            "terminated": stopped & ~cut,
            "truncated": stopped & cut,
        }
        if record_steps:
            output["frame"] = render(state)
        return (state, ended | done), output

    def play(operand):
        state, ended, actions, t = operand
        steps_done = t * chunk + 1 + jnp.arange(chunk)
        (state, ended), outputs = jax.lax.scan(
            control_step, (state, ended), (jnp.moveaxis(actions, 1, 0), steps_done)
        )
        return state, ended, outputs

    def skip(operand):
        state, ended, *_ = operand
        shapes = jax.eval_shape(play, operand)[2]
        return state, ended, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def decide(carry, t):
        state, ended, bad = carry
        frames = render(state)
        proprio = state.obs["proprio"]
        output = policy.apply(
            variables, frames, proprio, task_ids, jnp.broadcast_to(elapsed[t], (num_envs,))
        )
        noise = jax.random.fold_in(rng, t)
        chosen = choose(policy, variables, output, proprio, noise, deterministic, keys, t)
        actions = chosen.actions

        alive = ~(ended | bad)
        # The physics only ever sees finite actions, so one broken environment stays one.
        safe = jnp.where(alive[:, None, None] & jnp.isfinite(actions), actions, 0.0)
        # The last iteration only looks: it yields the final frame, features and value.
        played, now_ended, steps = jax.lax.cond(t < num_chunks, play, skip, (state, ended, safe, t))
        healthy = finite(played)
        bad_now = bad | (~healthy & ~ended)
        keep = alive & healthy
        state_next = select(keep, played, state)
        now_ended = jnp.where(keep, now_ended, ended)
        # A rollout shorter than the episode cuts it off after the last chunk.
        last = (t == num_chunks - 1) & keep & ~now_ended
        record = {
            "frames": frames if store_frames else None,
            "features": output.features,
            "proprio": proprio,
            "values": output.value,
            "actions": actions,
            "means": chosen.mean,
            "log_probs": chosen.log_probs,
            "chain": chosen.chain,
            "mask": keep,
            "terminated": steps["terminated"].any(0) & keep,
            "truncated": (steps["truncated"].any(0) & keep) | last,
            "success": steps["success"].any(0) & keep,
            "success_now": state.metrics["success"] > 0.5,
            "progress": state.metrics["progress"].astype(jnp.float32),
            "step_frames": steps["frame"] if record_steps else None,
        }
        return (state_next, now_ended, bad_now), (record, chosen.log_std)

    nobody = jnp.zeros(num_envs, bool)
    bad_start = ~finite(state)
    (_, _, bad), (records, log_std) = jax.lax.scan(
        decide, (state, nobody, bad_start), jnp.arange(num_chunks + 1)
    )
    decisions = {
        k: records[k][:num_chunks]
        for k in ("actions", "means", "log_probs", "mask", "terminated", "truncated")
    }
    success = records["success"][:num_chunks]
    return Rollout(
        frames=records["frames"],
        features=records["features"],
        proprio=records["proprio"],
        task_ids=task_ids,
        elapsed=elapsed,
        log_std=log_std[0],
        values=records["values"],
        bad=bad,
        privileged=Privileged(
            success_any=success.any(0),
            success_end=records["success_now"][-1] & ~bad,
            progress=records["progress"],
            success=success,
        ),
        step_frames=records["step_frames"][:num_chunks] if record_steps else None,
        chain=None if records["chain"] is None else records["chain"][:num_chunks],
        **decisions,
    )


def rollout(
    env: Environment,
    render_fn: RenderFn,
    policy: Policy,
    variables: Variables,
    rng: jax.Array,
    num_envs: int,
    num_chunks: int,
    chunk: int,
    deterministic: bool = False,
    **options: bool,
) -> Rollout:
    """`rollout_from` with reset keys drawn from rng."""
    return rollout_from(
        env, render_fn, policy, variables, reset_keys(rng, num_envs), jax.random.fold_in(rng, 1),
        num_chunks=num_chunks, chunk=chunk, deterministic=deterministic, **options,
    )  # fmt: skip


def make_render_fn(env: Any, height: int, width: int) -> RenderFn:
    """The renderer of `env`'s camera for `rollout`. Keep the function: each new one recompiles."""
    from lrm_jax.render import render

    def one(state):
        model, data = env.scene(state)
        return render(model, data, env.camera, height, width)

    return jax.vmap(one)


def finite(state: Any) -> jax.Array:
    """bool [N]: every number that physics or observation produced is finite, and below the bound
    from which MuJoCo's C engine calls a state unstable.

    Of an mjx.Data only qpos and qvel are read: a non-finite acceleration or force reaches them
    within the step, while unused contact slots may hold anything. Metrics are not read: they are
    privileged, and this decides which samples the learner sees.
    """
    data = state.data
    physics = (data.qpos, data.qvel) if hasattr(data, "qpos") else data
    leaves = jax.tree.leaves((physics, state.obs))
    floats = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    # false for NaN too
    checks = [(jnp.abs(x) < DIVERGED).reshape(x.shape[0], -1).all(-1) for x in floats]
    return jnp.stack(checks).all(0)


def select(choose: jax.Array, new: Any, old: Any) -> Any:
    """Leafwise new where choose [N], else old; leaves have the leading axis N."""

    def pick(a, b):
        if a is b:
            return a
        return jnp.where(choose.reshape(choose.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, new, old)
