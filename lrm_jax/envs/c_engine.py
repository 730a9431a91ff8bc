"""Scripted episodes in MuJoCo's C engine: nothing of MJX to compile, for checks and pictures.

The task's own functions read the state and decide; only the physics between is C MuJoCo's, in
double precision, one environment after another.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct

from lrm_jax.envs import expert
from lrm_jax.envs.base import State

_FIELDS = (
    "qpos", "qvel", "ctrl", "mocap_pos", "xpos", "xmat", "site_xpos", "site_xmat", "geom_xpos",
    "geom_xmat", "cam_xpos", "cam_xmat",
)  # fmt: skip


@struct.dataclass
class Snapshot:
    """The fields of an `mjx.Data` that tasks and the renderer read, with their shapes."""

    qpos: jax.Array
    qvel: jax.Array
    ctrl: jax.Array
    mocap_pos: jax.Array
    xpos: jax.Array
    xmat: jax.Array
    site_xpos: jax.Array
    site_xmat: jax.Array
    geom_xpos: jax.Array
    geom_xmat: jax.Array
    cam_xpos: jax.Array
    cam_xmat: jax.Array


def snapshot(datas: list[mujoco.MjData]) -> Snapshot:
    """N states with a leading axis, float32; rotations are [3,3]."""
    found = {}
    for name in _FIELDS:
        values = np.stack([np.asarray(getattr(d, name), np.float32) for d in datas])
        found[name] = values.reshape(*values.shape[:2], 3, 3) if name.endswith("xmat") else values
    return Snapshot(**found)


def play(
    env,
    keys: jax.Array,
    modes: np.ndarray,
    config: expert.DemonstratorConfig | None = None,
) -> Iterator[State]:
    """The demonstrator's episodes: the batched State at reset and after each control step.

    Args:
      env: a task on the table without variation of its physics.
      keys: [N] PRNG keys, of which reset and plan get their own. modes: int32 [N].
    """
    config = config or expert.DemonstratorConfig()
    pairs = jax.vmap(jax.random.split)(keys)
    state = jax.jit(jax.vmap(env.draw))(pairs[:, 0])
    plan = jax.vmap(lambda k, m: expert.begin(k, m, config, env.spans))(
        pairs[:, 1], jnp.asarray(modes, jnp.int32)
    )

    @jax.jit
    def decide(state, plan):
        action, plan = jax.vmap(lambda s, p: expert.act(env, s, p, config))(state, plan)
        return jax.vmap(env.command)(state, action), plan

    advance = jax.jit(jax.vmap(env.advance))
    datas = [mujoco.MjData(env.mj_model) for _ in range(len(modes))]
    for i, data in enumerate(datas):
        data.qpos[:] = np.asarray(state.data.qpos[i])
        data.mocap_pos[:] = np.asarray(state.data.mocap_pos[i])
        data.ctrl[:] = np.asarray(state.data.ctrl[i])
        mujoco.mj_forward(env.mj_model, data)
    state = jax.jit(jax.vmap(env.observe))(state.replace(data=snapshot(datas)), state.reward)
    yield state
    for _ in range(env.episode_length):
        state, plan = decide(state, plan)
        controls = np.asarray(state.data.ctrl)
        for data, ctrl in zip(datas, controls, strict=True):
            data.ctrl[:] = ctrl
            for _ in range(env.config.substeps):
                mujoco.mj_step(env.mj_model, data)
            mujoco.mj_kinematics(env.mj_model, data)
        state = advance(state, snapshot(datas))
        yield state
