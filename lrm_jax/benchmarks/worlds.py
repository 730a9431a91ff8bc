"""The quickstart's settings, and MuJoCo's C engine and renderer on its scenes, one at a time."""

import time
from pathlib import Path

import mujoco

import lrm_jax
from lrm_jax.envs.tabletop import Tabletop
from lrm_jax.jobs.refine import RefineJob
from lrm_jax.run import config
from lrm_jax.run.errors import UserError


def quickstart(envs: int, iterations: int) -> RefineJob:
    """The quickstart's settings, for so many environments and iterations."""
    path = Path(lrm_jax.__file__).parents[1] / "configs" / "quickstart.py"
    if not path.is_file():
        raise UserError(f"{path} is missing: run this from a checkout")
    raw = config.sibling(str(path), "quickstart").get_config("")
    raw.job, raw.refine.num_envs, raw.refine.iterations = "refine", envs, iterations
    return config.build(RefineJob, raw)


def physics_and_pixels(env: Tabletop, size: int, frames: int, episodes: int) -> dict[str, float]:
    """Seconds of one episode of one environment in MuJoCo's C engine, and of drawing `frames`
    pictures of it, `size` pixels wide and high; means over `episodes`."""
    model = env.mj_model
    data = mujoco.MjData(model)
    start = time.perf_counter()
    for _ in range(episodes):
        mujoco.mj_resetData(model, data)
        for _ in range(env.episode_length * env.config.substeps):
            mujoco.mj_step(model, data)
    stepped = (time.perf_counter() - start) / episodes
    with mujoco.Renderer(model, size, size) as renderer:
        renderer.update_scene(data, camera=0)
        renderer.render()
        start = time.perf_counter()
        for _ in range(episodes * frames):
            renderer.update_scene(data, camera=0)
            renderer.render()
        drawn = (time.perf_counter() - start) / episodes
    return {"physics": stepped, "pixels": drawn}
