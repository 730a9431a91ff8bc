"""Tasks of MuJoCo Playground behind this package's interface: ``make("playground:NAME")``.

The package `playground` is optional and imported only here. Tasks with robots of the MuJoCo
Menagerie need its files beside the package; nothing is downloaded from here.
"""

import importlib.util
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.envs import implementation
from lrm_jax.envs.base import State
from lrm_jax.run.errors import UserError, did_you_mean
from lrm_jax.run.quiet_mjx import mjx

PREFIX = "playground:"


class Playground:
    """One of Playground's tasks, which has a single sentence.

    Its own dense reward of a step, cut to [0, 1], is the privileged progress; a step whose reward
    is at least ``success_reward`` counts as success. (dm_control's rewards are 1 at the goal.)
    obs["proprio"] is its observation as one vector; parts of a dict follow each other by name.
    """

    def __init__(
        self,
        name: str,
        instruction: str | None = None,
        episode_length: int | None = None,
        camera: str | int = 0,
        success_reward: float = 0.9,
        impl: str = "jax",
    ):
        """Load a task.

        Raises:
          UserError: the package or the task's assets are not here, or there is no such task.
        """
        if importlib.util.find_spec("mujoco_playground") is None:
            raise UserError(f"{PREFIX}{name} needs the package playground: pip install playground")
        from mujoco_playground import registry
        from mujoco_playground._src import dm_control_suite, mjx_env

        if name not in registry.ALL_ENVS:
            raise UserError(
                f"MuJoCo Playground has no task {name!r}: {did_you_mean(name, registry.ALL_ENVS)}"
            )
        if name not in dm_control_suite.ALL_ENVS and not mjx_env.MENAGERIE_PATH.exists():
            raise UserError(f"{PREFIX}{name} needs MuJoCo Menagerie at {mjx_env.MENAGERIE_PATH}")
        config = registry.get_default_config(name)
        chosen = implementation.choose(impl)
        self._env = registry.load(name, config, {"impl": chosen} if "impl" in config else None)
        self.name = PREFIX + name
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
        self.instructions = (instruction or words,)
        self.episode_length = episode_length or int(config.episode_length)
        self.success_reward = success_reward
        self.mj_model, self.model = self._env.mj_model, self._env.mjx_model
        self.camera = camera
        self.action_size = self._env.action_size
        self.control_hz = 1.0 / self._env.dt
        seen = jax.eval_shape(self._env.reset, jax.random.PRNGKey(0)).obs
        self.proprio_size = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(seen))

    def reset(self, rng: jax.Array) -> State:
        """A new episode from a PRNG key."""
        return self._wrap(self._env.reset(rng), jnp.zeros((), jnp.int32))

    def step(self, state: State, action: jax.Array) -> State:
        """One control step with an action [action_size] in [-1, 1]."""
        inner = state.info["inner"].replace(data=state.data)
        moved = self._env.step(inner, jnp.clip(action, -1.0, 1.0))
        return self._wrap(moved, state.info["step"] + 1)

    def _wrap(self, inner: Any, step: jax.Array) -> State:
        parts = jax.tree.leaves(inner.obs)
        reward = jnp.asarray(inner.reward, jnp.float32)
        ended = jnp.asarray(inner.done, jnp.float32)
        late = (step >= self.episode_length).astype(jnp.float32)
        info = {
            "task_id": jnp.zeros((), jnp.int32),
            "step": step,
            "truncation": late * (1.0 - ended),
            "inner": inner.replace(data=None),
        }
        metrics = {
            "success": (reward >= self.success_reward).astype(jnp.float32),
            "progress": jnp.clip(reward, 0.0, 1.0),
        }
        proprio = jnp.concatenate([jnp.ravel(x).astype(jnp.float32) for x in parts])
        done = jnp.maximum(ended, late)
        return State(inner.data, {"proprio": proprio}, reward, done, metrics, info)

    def sentences_in_use(self) -> tuple[str, ...]:
        """The one instruction."""
        return self.instructions

    def scene(self, state: State) -> tuple[mjx.Model, mjx.Data]:
        """The model, and the data with frames of bodies and cameras up to date."""
        return self.model, mjx.camlight(self.model, mjx.kinematics(self.model, state.data))
