"""Episodes of a policy in parallel environments: physics, pixels and policy as one program, beside
MuJoCo's C engine.

    python -m lrm_jax.benchmarks.rollout --json=FILE [--task=StackCubes] [--mesh=data=2]

Ours is `rl.rollout_from` with an untrained policy, as refinement calls it. Two peers, both in
double precision and with contacts solved by the same settings: "one_after_another" steps one
environment with `mj_step` and draws the frames of its decisions with `mujoco.Renderer`;
"threads" is `mujoco.rollout`, which steps all environments on every core and draws nothing. The
peers' controller and policy are left out, in their favour.
"""

import os
import sys
import time

if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")  # before mujoco is imported

import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from absl import flags

from lrm_jax.benchmarks import peers
from lrm_jax.benchmarks.worlds import physics_and_pixels, quickstart
from lrm_jax.jobs.base_policy import World
from lrm_jax.jobs.refine import RefineJob
from lrm_jax.parallel.mesh import ask_for_cores, under
from lrm_jax.rl.rollout import reset_keys, rollout_from
from lrm_jax.run.cli import reject_arguments, run_app
from lrm_jax.run.progress import note

_JSON = flags.DEFINE_string("json", None, "File for the figures.", required=True)
_TASK = flags.DEFINE_string("task", "PutOnPlate", "Which task, see lrm_jax.envs.names().")
_ENVS = flags.DEFINE_integer("envs", 128, "Environments.", lower_bound=2)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Measured rollouts.", lower_bound=1)
_EPISODES = flags.DEFINE_integer("peer_episodes", 4, "Episodes of the single environment.", 1)
_MESH = flags.DEFINE_string("mesh", "", "Devices of our rollout, such as data=2; one by default.")


def settings() -> RefineJob:
    """The quickstart's settings in the task that was asked for, for its whole horizon."""
    job = quickstart(_ENVS.value, 1)
    own = {} if _TASK.value == job.env.name else {"name": _TASK.value, "settings": {}}
    return dataclasses.replace(job, env=dataclasses.replace(job.env, **own))


def ours(world: World, chunks: int, chunk: int) -> dict[str, float]:
    """Median seconds of a rollout and of its physics alone; seconds of the first one, which
    compiles.

    RuntimeError: a later rollout compiled again, which would make the figures worthless.
    """
    variables = world.placed(world.fresh(0))
    keys = reset_keys(jax.random.PRNGKey(0), _ENVS.value)

    def whole(number):
        found = rollout_from(
            world.env, world.render, world.policy, variables, keys, jax.random.PRNGKey(number),
            num_chunks=chunks, chunk=chunk,
        )  # fmt: skip
        jax.block_until_ready(found)

    @jax.jit
    def physics(state, actions):
        step = jax.vmap(world.env.step)
        return jax.lax.scan(lambda s, a: (step(s, a), None), state, actions)[0]

    def timed(run) -> tuple[float, float]:
        start = time.perf_counter()
        run(0)
        first = time.perf_counter() - start
        seconds = []
        for number in range(1, _REPEATS.value + 1):
            start = time.perf_counter()
            run(number)
            seconds.append(time.perf_counter() - start)
        return first, float(np.median(seconds))

    with under(world.mesh):
        before = rollout_from._cache_size()
        first, seconds = timed(whole)
        if rollout_from._cache_size() > before + 1:
            raise RuntimeError("a rollout of the same shapes compiled again")
    state = jax.jit(jax.vmap(world.env.reset))(keys)
    shape = (chunks * chunk, _ENVS.value, world.env.action_size)
    _, stepped = timed(
        lambda _: jax.block_until_ready(physics(state, jnp.zeros(shape)).data.qpos)
    )
    return {"rollout": seconds, "physics": stepped, "compilation": first - seconds}


def threads(world: World, steps: int) -> float:
    """Seconds in which `mujoco.rollout` makes so many physics steps in every environment."""
    from mujoco import rollout as c_rollout

    model = world.env.mj_model
    count = os.cpu_count() or 1
    datas = [mujoco.MjData(model) for _ in range(count)]
    spec = mujoco.mjtState.mjSTATE_FULLPHYSICS
    first = np.zeros((_ENVS.value, mujoco.mj_stateSize(model, spec)))
    mujoco.mj_resetData(model, datas[0])
    mujoco.mj_getState(model, datas[0], first[0], spec)
    first[:] = first[0]
    with c_rollout.Rollout(nthread=count) as run:
        run.rollout(model, datas, first, nstep=1)
        start = time.perf_counter()
        run.rollout(model, datas, first, nstep=steps)
        return time.perf_counter() - start


def main(argv: list[str]) -> None:
    """Measures and writes the figures."""
    reject_arguments(argv)
    ask_for_cores(_MESH.value)
    job = settings()
    world = World.make(job.env, job.policy, _MESH.value)
    chunk = job.policy.chunk
    chunks = world.env.episode_length // chunk
    steps, frames = _ENVS.value * chunks * chunk, _ENVS.value * (chunks + 1)
    substeps = world.env.config.substeps
    note("lrm_jax")
    found = ours(world, chunks, chunk)
    note("MuJoCo's C engine")
    episode = physics_and_pixels(world.env, job.env.size, chunks + 1, _EPISODES.value)
    single = _ENVS.value * sum(episode.values())
    parallel = threads(world, chunks * chunk * substeps)
    figures = {
        "benchmark": "rollout", "task": world.env.name, "environments": _ENVS.value,
        "control_steps": steps, "physics_steps": steps * substeps, "frames": frames,
        "image": job.env.size, "mesh": _MESH.value,
        "lrm_jax": found | {
            "control_steps_per_second": steps / found["rollout"],
            "frames_per_second": frames / found["rollout"],
            "physics_steps_per_second_alone": steps * substeps / found["physics"],
        },
        "one_after_another": {"rollout": single, "episode": episode,
                              "control_steps_per_second": steps / single},
        "threads": {"physics": parallel, "physics_steps_per_second": steps * substeps / parallel},
        "ratio": {"rollout": single / found["rollout"], "physics": parallel / found["physics"]},
        **peers.device_facts(),
    }  # fmt: skip
    peers.write(_JSON.value, figures)


if __name__ == "__main__":
    run_app(main)
