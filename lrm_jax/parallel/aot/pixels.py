"""The renderer alone: images of a task's camera for N environments, cut over the chips."""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from lrm_jax import envs
from lrm_jax.parallel.aot.programs import Program, placed
from lrm_jax.parallel.mesh import batch_sharding
from lrm_jax.rl.rollout import make_render_fn
from lrm_jax.run.errors import UserError

TASK = "PutOnPlate"


def program(mesh: Mesh, environments: int, side: int, task: str = TASK) -> Program:
    """States of `environments` episodes in, uint8 [N,side,side,3] out.

    Raises:
      UserError: environments that do not divide over data and fsdp.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if environments % parts:
        raise UserError(f"--batch={environments} must be a multiple of data*fsdp = {parts}")
    env, rows = envs.make(task), batch_sharding(mesh)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.PRNGKey(0), environments))
    states = placed(jax.eval_shape(jax.vmap(env.reset), keys), rows)
    images = make_render_fn(env, side, side)

    def draw(states):
        return jax.lax.with_sharding_constraint(images(states), rows)

    return Program(draw, (states,), (), base={}, adapters={}, fallbacks=())
