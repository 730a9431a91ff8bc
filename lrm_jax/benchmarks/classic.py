"""A classic control task from state, in our environment protocol and in Brax's: a cart balances a
pole (MJX), and a policy without pixels that the refinement loop can train."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from lrm_jax.envs.base import State
from lrm_jax.policies.distribution import ChunkNormal
from lrm_jax.policies.networks import PolicyOutput
from lrm_jax.run.quiet_mjx import mjx

MJCF = """
<mujoco>
  <option timestep="0.01" integrator="implicitfast"><flag contact="disable"/></option>
  <worldbody>
    <body name="cart">
      <joint name="slide" type="slide" axis="1 0 0" range="-1.8 1.8" damping="0.0005"/>
      <geom type="box" size="0.2 0.15 0.1" mass="1"/>
      <body name="pole">
        <joint name="hinge" type="hinge" axis="0 1 0" damping="0.000002"/>
        <geom type="capsule" fromto="0 0 0 0 0 1" size="0.045" mass="0.1"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="slide" gear="10" ctrllimited="true" ctrlrange="-1 1"/></actuator>
</mujoco>
"""
SUBSTEPS = 2


class CartPole:
    """Balance from a lean of up to 0.3 rad and anywhere within 0.5 m of the middle.

    The reward of a step, in [0, 1], is that of an upright pole (cos + 1) / 2 near the middle, as in
    the dm_control task without its terms for speed and effort. It stands in metrics["progress"]
    as well, where the refinement loop looks for what only the simulator knows. Nothing ends an
    episode but its length.
    """

    action_size, proprio_size, instructions = 1, 5, ("balance the pole",)

    def __init__(self, episode_length: int = 200):
        self.episode_length = episode_length
        self.mj_model = mujoco.MjModel.from_xml_string(MJCF)
        self.model = mjx.put_model(self.mj_model)
        self.fresh = mjx.make_data(self.model)

    def reset(self, rng: jax.Array) -> State:
        """A new episode."""
        low = jnp.array([-0.5, -0.3, -0.05, -0.05])
        start = jax.random.uniform(rng, (4,), minval=low, maxval=-low)
        data = self.fresh.replace(qpos=start[:2], qvel=start[2:])
        info = {"task_id": jnp.zeros((), jnp.int32), "step": jnp.zeros((), jnp.int32)}
        return self._seen(mjx.forward(self.model, data), info)

    def step(self, state: State, action: jax.Array) -> State:
        """One control step of 0.02 s with an action [1] in [-1, 1]."""
        data = state.data.replace(ctrl=jnp.clip(action, -1.0, 1.0))
        data = jax.lax.fori_loop(0, SUBSTEPS, lambda _, d: mjx.step(self.model, d), data)
        return self._seen(data, {**state.info, "step": state.info["step"] + 1})

    def _seen(self, data: Any, info: dict) -> State:
        place, angle = data.qpos
        reward = (jnp.cos(angle) + 1.0) / 2.0 * (1.0 + jnp.exp(-jnp.square(place / 0.5))) / 2.0
        seen = jnp.stack([place, jnp.cos(angle), jnp.sin(angle), *data.qvel])
        metrics = {"success": (reward > 0.9).astype(jnp.float32), "progress": reward}
        done = (info["step"] >= self.episode_length).astype(jnp.float32)
        return State(data, {"proprio": seen}, reward, done, metrics, info)


def blank(state: State) -> jax.Array:
    """In place of a renderer: uint8 [N,1,1,3] zeros."""
    return jnp.zeros((state.reward.shape[0], 1, 1, 3), jnp.uint8)


def environment_reward(frames, task_ids, played):
    """The simulator's own reward, for `rl.refine` with privileged_reward."""
    return played.privileged.progress[1:], {}


@dataclasses.dataclass(frozen=True)
class StateConfig:
    """Widths of the two networks, decisions of one step, and where exploration starts; head: as
    `PolicyConfig` has it."""

    head: str = "gaussian"
    hidden: tuple[int, ...] = (64, 64)
    action_size: int = 1
    chunk: int = 1
    init_std: float = 0.6


class Network(nn.Module):
    """[B,*] -> [B,out] through tanh layers; the last one starts small."""

    hidden: tuple[int, ...]
    out: int

    @nn.compact
    def __call__(self, x):
        for width in self.hidden:
            x = nn.tanh(nn.Dense(width, kernel_init=nn.initializers.orthogonal(2**0.5))(x))
        return nn.Dense(self.out, kernel_init=nn.initializers.orthogonal(0.01))(x)


class Actor(nn.Module):
    """inputs [B,P] -> mean [B,C,A] and log std [A], which does not depend on them."""

    config: StateConfig

    @nn.compact
    def __call__(self, x):
        c = self.config
        mean = Network(c.hidden, c.chunk * c.action_size)(x)
        start = jnp.log(jnp.full((c.action_size,), c.init_std, jnp.float32))
        return mean.reshape(-1, c.chunk, c.action_size), self.param("log_std", lambda _: start)


class StatePolicy(nn.Module):
    """The interface of `policies.Policy` on proprioception alone; frames are not looked at."""

    config: StateConfig

    def setup(self):
        self.actor = Actor(self.config)
        self.critic = Network(self.config.hidden, 1)

    def encode(self, frames, task_ids):
        """Nothing to see: float32 [B,0]."""
        return jnp.zeros((frames.shape[0], 0))

    def act(self, features, proprio, chain=None):
        """The distribution of a decision."""
        return ChunkNormal(*self.actor(proprio))

    def value(self, features, proprio, elapsed):
        """float32 [B]."""
        return self.critic(jnp.concatenate([proprio, elapsed[:, None]], -1))[:, 0]

    def __call__(self, frames, proprio, task_ids, elapsed):
        features = self.encode(frames, task_ids)
        return PolicyOutput(
            self.act(features, proprio), self.value(features, proprio, elapsed), features
        )


def fresh(policy: StatePolicy, size: int, seed: int) -> dict[str, Any]:
    """Untrained variables for proprioception of `size` numbers."""
    inputs = (jnp.zeros((1, 1, 1, 3), jnp.uint8), jnp.zeros((1, size)), jnp.zeros(1, jnp.int32))
    return dict(policy.init(jax.random.PRNGKey(seed), *inputs, jnp.zeros(1)))


def brax_environment(env: CartPole) -> Any:
    """The same physics and reward as a `brax.envs.Env`."""
    from brax.envs import base

    class Wrapped(base.Env):
        def reset(self, rng):
            state = env.reset(rng)
            zero = jnp.zeros(())
            return base.State(state.data, state.obs["proprio"], state.reward, zero, {}, {})

        def step(self, state, action):
            data = state.pipeline_state.replace(ctrl=jnp.clip(action, -1.0, 1.0))
            data = jax.lax.fori_loop(0, SUBSTEPS, lambda _, d: mjx.step(env.model, d), data)
            seen = env._seen(data, {"step": jnp.zeros((), jnp.int32)})
            return state.replace(
                pipeline_state=data, obs=seen.obs["proprio"], reward=seen.reward
            )

        observation_size = env.proprio_size
        action_size = env.action_size
        backend = "mjx"

    return Wrapped()


def learnt(
    curve: list[tuple[int, float]], seconds: list[float], target: float
) -> dict[str, Any]:
    """A run's curve with compilation apart, and when it first reached the target (None: never).

    curve: (samples, reward) after each update; seconds: of each update, at least three. The first
    two compile (the second because the first's results are typed more strictly than its arguments),
    and are taken to last as long as the median of the rest.
    """
    typical = float(np.median(seconds[2:]))
    clock = np.cumsum([typical, typical, *seconds[2:]])
    points = [
        {"samples": s, "seconds": float(t), "reward": r}
        for (s, r), t in zip(curve, clock, strict=True)
    ]
    reached = next((p for p in points if p["reward"] >= target), None)
    return {
        "curve": points, "compilation_seconds": max(sum(seconds[:2]) - 2 * typical, 0.0),
        "seconds_per_update": typical,
        "samples_to_target": reached and reached["samples"],
        "seconds_to_target": reached and reached["seconds"],
        "final_reward": points[-1]["reward"],
    }  # fmt: skip


def middle(runs: list[dict[str, Any]], name: str) -> float | None:
    """Median over seeds; None if half of the runs or more have no such number."""
    found = float(np.median([np.inf if r[name] is None else r[name] for r in runs]))
    return found if np.isfinite(found) else None
