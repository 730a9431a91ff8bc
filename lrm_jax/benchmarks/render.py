"""Images per second of the ray caster and of `mujoco.Renderer`, on one scene, in one run.

    python -m lrm_jax.benchmarks.render --json=FILE [--envs=64 --size=64]

Both draw the same 25 geoms: a table, a floor, an arm of 7 links with a gripper, cubes and mats.
"""

import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")  # before mujoco is imported

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from absl import flags
from mujoco import mjx

from lrm_jax.render import render
from lrm_jax.run import atomic
from lrm_jax.run.cli import reject_arguments, run_app
from lrm_jax.run.errors import UserError

_JSON = flags.DEFINE_string("json", None, "File for the figures.", required=True)
_ENVS = flags.DEFINE_integer("envs", 64, "Environments in a batch.", lower_bound=1)
_SIZE = flags.DEFINE_integer("size", 64, "Height and width of an image in pixels.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 2.0, "Time to measure each renderer for.", lower_bound=0.1)

_LINKS = (  # per link: two geoms of the arm, in the frame of the link's joint
    ('type="cylinder" size=".06 .1" pos="0 0 .1"', 'type="capsule" size=".05 .05" pos="0 0 .2"'),
    ('type="capsule" size=".055" fromto="0 0 0 0 0 .16"', 'type="cylinder" size=".06 .03"'),
    ('type="capsule" size=".05" fromto="0 0 0 .05 0 .14"', 'type="box" size=".05 .04 .05"'),
    ('type="capsule" size=".05" fromto="0 0 0 -.05 0 .14"', 'type="cylinder" size=".055 .06"'),
    ('type="capsule" size=".045" fromto="0 0 0 0 0 .14"', 'type="box" size=".045 .05 .05"'),
    ('type="capsule" size=".045" fromto="0 0 0 .06 0 .08"', 'type="cylinder" size=".05 .055"'),
    ('type="cylinder" size=".04 .05" pos="0 0 .05"', 'type="box" size=".02 .09 .03" pos="0 0 .12"'),
)


def arm_mjcf() -> str:
    """An arm-like scene of 25 geoms with joints everywhere and a camera ``front``."""
    finger = '<geom type="box" size=".009 .01 .03" pos="0 {} .18" rgba=".2 .2 .25 1"/>'
    arm = finger.format(-0.03) + finger.format(0.03)
    for i, geoms in reversed(tuple(enumerate(_LINKS))):
        axis, height = ("0 0 1", "0 1 0")[i % 2], 0.0 if i == 0 else 0.16
        grey = ("0.9 0.9 0.9 1", "0.5 0.5 0.6 1")
        drawn = "".join(f'<geom {g} rgba="{c}"/>' for g, c in zip(geoms, grey, strict=True))
        arm = f'<body pos="0 0 {height}"><joint type="hinge" axis="{axis}"/>{drawn}{arm}</body>'
    loose = ""
    for i, colour in enumerate(("1 0 0", "0 1 0", "0 0 1", "1 1 0")):
        shape = 'type="box" size=".022 .022 .022"' if i < 2 else 'type="cylinder" size=".06 .004"'
        loose += f'<body><freejoint/><geom {shape} rgba="{colour} 1"/></body>'
    return f"""
<mujoco>
  <statistic extent="1.5" center=".3 0 .3"/>
  <default><geom contype="0" conaffinity="0"/></default>
  <worldbody>
    <light directional="true" dir="-.2 -.3 -1" diffuse=".6 .6 .6"/>
    <camera name="front" pos="1.4 0 .8" xyaxes="0 1 0 -.5 0 .87" fovy="45"/>
    <geom type="plane" size="0 0 .1" pos="0 0 -.4" rgba=".4 .4 .45 1"/>
    <geom type="box" size=".5 .6 .02" pos=".3 0 -.02" rgba=".6 .5 .4 1"/>
    <geom type="sphere" size=".04" pos="0 -.4 .04" rgba=".8 .3 .8 1"/>
    <geom type="sphere" size=".04" pos="0 .4 .04" rgba=".3 .8 .8 1"/>
    <geom type="capsule" size=".015" fromto="-.15 -.55 .02 -.15 .55 .02" rgba=".3 .3 .3 1"/>
    {loose}{arm}
  </worldbody>
</mujoco>"""


def random_posture(model: mujoco.MjModel, rng: np.random.Generator) -> mujoco.MjData:
    """Joint angles up to 0.8 rad, the loose things somewhere on the table."""
    data = mujoco.MjData(model)
    for i, kind in enumerate(model.jnt_type):
        at = model.jnt_qposadr[i]
        if kind == mujoco.mjtJoint.mjJNT_HINGE:
            data.qpos[at] = rng.uniform(-0.8, 0.8)
        else:
            yaw = rng.uniform(-np.pi, np.pi)
            place = [rng.uniform(0.2, 0.6), rng.uniform(-0.4, 0.4), rng.uniform(0.005, 0.1)]
            data.qpos[at : at + 7] = [*place, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
    mujoco.mj_forward(model, data)
    return data


def stack(model: mujoco.MjModel, postures: list[mujoco.MjData]) -> mjx.Data:
    """An `mjx.Data` with the frames of N postures; only what a renderer reads is filled in."""
    frames = {
        name: np.stack([getattr(d, name) for d in postures]).astype(np.float32)
        for name in ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat")
    }
    for name in ("geom_xmat", "cam_xmat"):
        frames[name] = frames[name].reshape(*frames[name].shape[:2], 3, 3)
    n = len(postures)
    data = jax.tree.map(lambda v: jnp.broadcast_to(v, (n, *jnp.shape(v))), mjx.make_data(model))
    return data.replace(**{name: jnp.asarray(v) for name, v in frames.items()})


def _rate(draw, images: int) -> dict[str, float]:
    """Images per second of draw(), which draws `images`: median and best over repetitions."""
    draw()
    times, start = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < _SECONDS.value:
        before = time.perf_counter()
        draw()
        times.append(time.perf_counter() - before)
    return {"images_per_second": images / statistics.median(times), "best": images / min(times)}


def main(argv: list[str]) -> None:
    reject_arguments(argv)
    n, size = _ENVS.value, _SIZE.value
    mj_model = mujoco.MjModel.from_xml_string(arm_mjcf())
    mj_model.vis.global_.offwidth = mj_model.vis.global_.offheight = max(size, 64)
    model = mjx.put_model(mj_model)
    rng = np.random.default_rng(0)
    postures = [random_posture(mj_model, rng) for _ in range(n)]
    data = stack(mj_model, postures)
    rgba = jnp.broadcast_to(jnp.asarray(model.geom_rgba), (n, *model.geom_rgba.shape))

    start = time.perf_counter()
    compiled = (
        jax.jit(jax.vmap(lambda c, d: render(model.replace(geom_rgba=c), d, "front", size, size)))
        .lower(rgba, data)
        .compile()
    )
    compile_seconds = time.perf_counter() - start
    ours = _rate(lambda: jax.block_until_ready(compiled(rgba, data)), n)
    try:
        renderer = mujoco.Renderer(mj_model, size, size)
    except Exception as error:
        raise UserError(f"mujoco.Renderer does not start, try MUJOCO_GL=osmesa: {error}") from error

    def draw_all():
        for posture in postures:
            renderer.update_scene(posture, "front")
            renderer.render()

    theirs = _rate(draw_all, n)
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        renderer.scene.flags[flag] = 0  # as little as we draw
    plain = _rate(draw_all, n)
    renderer.close()
    device = jax.devices()[0]
    flops = (compiled.cost_analysis() or {}).get("flops", float("nan")) / n
    figures = {
        "benchmark": "render",
        "envs": n,
        "size": size,
        "geoms": int(mj_model.ngeom),
        "lrm_jax": ours | {"compile_seconds": compile_seconds},
        "mujoco_renderer": theirs | {"backend": os.environ.get("MUJOCO_GL", "default")},
        "mujoco_renderer_without_shadows": plain,
        "ratio": ours["images_per_second"] / theirs["images_per_second"],
        "ratio_without_shadows": ours["images_per_second"] / plain["images_per_second"],
        "flops_per_image": flops,
        "flops_per_second": flops * ours["images_per_second"],
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
