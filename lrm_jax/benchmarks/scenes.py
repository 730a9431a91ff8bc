"""Scenes for measuring and testing the renderer."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from lrm_jax.run.quiet_mjx import mjx

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


def scattered_mjcf(count: int, lights: str = "") -> str:
    """`count` small solids of all kinds over a floor, each on a free joint, and a camera
    ``front``."""
    kinds = ("sphere", "capsule", "ellipsoid", "cylinder", "box")
    edge = 0.5 / max(count, 1) ** (1 / 3)
    size = f"{edge * 0.5} {edge * 0.35} {edge * 0.25}"
    solids = "".join(
        f'<body><freejoint/><geom type="{kinds[i % 5]}" size="{size}" '
        f'rgba="{0.2 + 0.1 * (i % 8)} {0.9 - 0.1 * (i % 7)} {0.3 + 0.2 * (i % 3)} 1"/></body>'
        for i in range(count)
    )
    return f"""
<mujoco>
  <statistic extent="1.5"/>
  <default><geom contype="0" conaffinity="0"/></default>
  <worldbody>
    {lights or '<light directional="true" dir="-.2 -.3 -1" diffuse=".6 .6 .6"/>'}
    <camera name="front" pos="1.6 0 .8" xyaxes="0 1 0 -.45 0 .9" fovy="45"/>
    <geom type="plane" size="0 0 .1" pos="0 0 -.5" rgba=".4 .4 .45 1"/>
    {solids}
  </worldbody>
</mujoco>"""


def scatter(model: mujoco.MjModel, rng: np.random.Generator) -> mujoco.MjData:
    """Every free body somewhere within half a metre of the origin, turned at random."""
    data = mujoco.MjData(model)
    for at in model.jnt_qposadr:
        turn = rng.normal(size=4)
        data.qpos[at : at + 7] = [*rng.uniform(-0.5, 0.5, 3), *turn / np.linalg.norm(turn)]
    mujoco.mj_forward(model, data)
    return data
