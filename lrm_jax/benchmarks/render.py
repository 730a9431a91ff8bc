"""Images per second of the ray caster and of its peers, on one scene, in one run.

    python -m lrm_jax.benchmarks.render --json=FILE [--envs=64 --size=64 --geoms=25]

25 geoms: a table, a floor, an arm of 7 links with a gripper, cubes and mats; other numbers: solids
scattered over a floor. The peers are `mujoco.Renderer` (OpenGL in software where there is no GPU)
and, where warp-lang is installed, the batch renderer of MuJoCo Warp that comes with MJX. All are
timed in turn, round by round: the machine may be busy with other things, ratios are of one round.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")  # before mujoco is imported

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from absl import flags

from lrm_jax.benchmarks import scenes
from lrm_jax.render import render
from lrm_jax.run import atomic
from lrm_jax.run.cli import reject_arguments, run_app
from lrm_jax.run.errors import UserError, one_line
from lrm_jax.run.quiet_mjx import mjx

_JSON = flags.DEFINE_string("json", None, "File for the figures.", required=True)
_ENVS = flags.DEFINE_integer("envs", 64, "Environments in a batch.", lower_bound=1)
_SIZE = flags.DEFINE_integer("size", 64, "Height and width of an image in pixels.", lower_bound=1)
_GEOMS = flags.DEFINE_integer("geoms", 25, "Geoms of the scene.", lower_bound=2)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "How often each renderer is timed.", lower_bound=1)
_BOUNDS = flags.DEFINE_enum(
    "bounds", "auto", ["auto", "on", "off"], "Whether tiles get lists of the geoms in them."
)
_SECONDS = flags.DEFINE_float("seconds", 0.5, "Time of a round for each.", lower_bound=0.01)

ARM = 25  # geoms of `scenes.arm_mjcf`
_SIDE = 1536  # of the matrices whose product tells what arithmetic costs here


def _in_turn(draws: dict[str, Callable[[], None]], images: int) -> dict[str, list[float]]:
    """Images/s of each in every round, by its fastest draw; a draw draws `images`."""
    for draw in draws.values():
        draw()
    rates: dict[str, list[float]] = {name: [] for name in draws}
    for _ in range(_ROUNDS.value):
        for name, draw in draws.items():
            times, start = [], time.perf_counter()
            while not times or time.perf_counter() - start < _SECONDS.value:
                before = time.perf_counter()
                draw()
                times.append(time.perf_counter() - before)
            rates[name].append(images / min(times))
    return rates


def _ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """How many times faster we are: the median over rounds, and best against best."""
    rounds = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return {"median": rounds, "best_over_best": max(ours) / max(theirs)}


def _floor(flops: float, pairs: int, peaks: list[float], ours: float) -> dict[str, float]:
    """FLOPs of an image, by pair of ray and geom, and what arithmetic alone would allow."""
    return {
        "flops_per_image": flops,
        "flops_per_ray_and_geom": flops / pairs,
        "images_per_second_at_that": max(peaks) / flops,
        "share_reached": ours * flops / max(peaks),
    }


def _arithmetic() -> Callable[[], float]:
    """Measures the FLOP/s of a large product of matrices: what multiply-adds can reach here."""
    product = jax.jit(lambda x: x @ x)
    x = jnp.ones((_SIDE, _SIDE))
    jax.block_until_ready(product(x))

    def measure() -> float:
        times = []
        for _ in range(5):
            before = time.perf_counter()
            jax.block_until_ready(product(x))
            times.append(time.perf_counter() - before)
        return 2 * _SIDE**3 / min(times)

    return measure


def _opengl(model: mujoco.MjModel, postures: list[mujoco.MjData], size: int, plain: bool):
    """A draw with `mujoco.Renderer`; `plain`: as little as we draw."""
    try:
        renderer = mujoco.Renderer(model, size, size)
    except Exception as error:
        raise UserError(f"mujoco.Renderer does not start, try MUJOCO_GL=osmesa: {error}") from error
    if plain:
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            renderer.scene.flags[flag] = 0

    def draw() -> None:
        for posture in postures:
            renderer.update_scene(posture, "front")
            renderer.render()

    return draw


def _warp(model: mujoco.MjModel, postures: list[mujoco.MjData], size: int):
    """A draw with MuJoCo Warp's batch renderer, called without JAX, on Warp's CPU device.

    Only frames of geoms and cameras differ between worlds; each draw refits the tree of bounds, as
    it has to after a step.
    """
    import mujoco.mjx.third_party.mujoco_warp as mjw
    import warp

    warp.config.quiet = True
    with warp.ScopedDevice("cpu"):
        warp_model = mjw.put_model(model)
        data = mjw.put_data(model, postures[0], nworld=len(postures))
        for name in ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat"):
            value = np.stack([getattr(d, name) for d in postures]).astype(np.float32)
            getattr(data, name).assign(value.reshape(getattr(data, name).numpy().shape))
        context = mjw.create_render_context(
            mjm=model, nworld=len(postures), cam_res=(size, size), use_textures=False,
            use_shadows=False, render_rgb=True, render_depth=False, enabled_geom_groups=[0, 1, 2],
        )  # fmt: skip

    def draw() -> None:
        with warp.ScopedDevice("cpu"):
            mjw.refit_bvh(warp_model, data, context)
            mjw.render(warp_model, data, context)
            warp.synchronize_device("cpu")

    draw()
    if np.unique(context.rgb_data.numpy()).size < 8:
        raise RuntimeError("its images are empty")
    return draw


def main(argv: list[str]) -> None:
    reject_arguments(argv)
    jax.config.update("jax_enable_compilation_cache", False)  # the time to compile is a figure
    n, size = _ENVS.value, _SIZE.value
    arm = _GEOMS.value == ARM
    text = scenes.arm_mjcf() if arm else scenes.scattered_mjcf(_GEOMS.value - 1)
    mj_model = mujoco.MjModel.from_xml_string(text)
    mj_model.vis.global_.offwidth = mj_model.vis.global_.offheight = max(size, 64)
    model = mjx.put_model(mj_model)
    rng = np.random.default_rng(0)
    pose = scenes.random_posture if arm else scenes.scatter
    postures = [pose(mj_model, rng) for _ in range(n)]
    data = scenes.stack(mj_model, postures)
    rgba = jnp.broadcast_to(jnp.asarray(model.geom_rgba), (n, *model.geom_rgba.shape))

    bounds = {"auto": None, "on": True, "off": False}[_BOUNDS.value]

    def image(colours, data):
        shown = model.replace(geom_rgba=colours)
        return render(shown, data, "front", size, size, bounds=bounds)

    start = time.perf_counter()
    compiled = jax.jit(jax.vmap(image)).lower(rgba, data).compile()
    compile_seconds = time.perf_counter() - start
    draws = {
        "lrm_jax": lambda: jax.block_until_ready(compiled(rgba, data)),
        "mujoco_renderer": _opengl(mj_model, postures, size, plain=False),
        "mujoco_renderer_without_shadows": _opengl(mj_model, postures, size, plain=True),
    }
    absent = {}
    try:
        draws["mujoco_warp_cpu"] = _warp(mj_model, postures, size)
    except Exception as error:  # not installed, or it refuses this device
        absent["mujoco_warp_cpu"] = f"{type(error).__name__}: {one_line(error)[:300]}"
    peers = [name for name in draws if name != "lrm_jax"]
    peak = _arithmetic()
    peaks = [peak()]
    rates = _in_turn(draws, n)
    peaks.append(peak())
    counted = (compiled.cost_analysis() or {}).get("flops")
    # A loop's body is counted once, however often it runs.
    flops = counted / n if counted and " while(" not in compiled.as_text() else None
    written = size * size * (4 + 3)  # packed pixels between the two passes, then bytes
    ours = max(rates["lrm_jax"])
    device = jax.devices()[0]
    figures = {
        "benchmark": "render",
        "envs": n,
        "size": size,
        "geoms": int(mj_model.ngeom),
        "bounds": _BOUNDS.value,
        "compile_seconds": compile_seconds,
        "images_per_second": {
            name: {"best": max(r), "median": statistics.median(r)} for name, r in rates.items()
        },
        "not_measured": absent,
        "ratio": {name: _ratio(rates["lrm_jax"], r) for name, r in rates.items() if name in peers},
        "floor": {
            "bytes_per_image": written,
            "multiply_add_flops_per_second": max(peaks),
            **(_floor(flops, size * size * int(mj_model.ngeom), peaks, ours) if flops else {}),
        },
        "mujoco_gl": os.environ.get("MUJOCO_GL", "default"),
        "device": f"{device.platform} {device.device_kind}, {platform.machine()}, "
        f"{os.cpu_count()} cores",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
    path = Path(_JSON.value)
    with atomic.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_json(path, figures)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    run_app(main)
