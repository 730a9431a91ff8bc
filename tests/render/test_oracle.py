"""Which geom is seen where, and how far: against MuJoCo's own renderer."""

import jax
import mujoco
import numpy as np
import pytest
from mujoco import mjx
from render_oracle import Oracle, interior

from lrm_jax.benchmarks.scenes import arm_mjcf, random_posture, stack
from lrm_jax.render import render_all

SIZE = 64
POSES = 50

# Solids of every kind float between a finite plane that turns and an infinite floor, before a
# camera that moves. Nothing collides: MJX lacks some pairs of kinds.
_SOLIDS = [
    'type="sphere" size=".12"',
    'type="sphere" size=".05"',
    'type="capsule" size=".06 .15"',
    'type="capsule" size=".03 .03"',
    'type="ellipsoid" size=".2 .1 .05"',
    'type="ellipsoid" size=".05 .08 .11"',
    'type="cylinder" size=".1 .12"',
    'type="cylinder" size=".15 .004"',
    'type="cylinder" size=".02 .2"',
    'type="box" size=".1 .05 .15"',
    'type="box" size=".2 .2 .01"',
]
KINDS_MJCF = f"""
<mujoco>
  <statistic extent="1.5"/>
  <default><geom contype="0" conaffinity="0"/></default>
  <worldbody>
    <geom type="plane" size="0 0 .1" pos="0 0 -.8"/>
    <body mocap="true" name="wall"><geom type="plane" size=".4 .3 .1"/></body>
    <body mocap="true" name="eye"><camera name="eye" fovy="50"/></body>
    {"".join(f"<body><freejoint/><geom {solid}/></body>" for solid in _SOLIDS)}
  </worldbody>
</mujoco>"""


def _turn(rng: np.random.Generator) -> np.ndarray:
    quat = rng.normal(size=4)
    return quat / np.linalg.norm(quat)


def random_kinds(model: mujoco.MjModel, rng: np.random.Generator) -> mujoco.MjData:
    """Everything at random around the origin; the camera looks there from 1 to 2 m away."""
    data = mujoco.MjData(model)
    for i in range(model.njnt):
        data.qpos[7 * i : 7 * i + 7] = [*rng.uniform(-0.5, 0.5, 3), *_turn(rng)]
    data.mocap_pos[0], data.mocap_quat[0] = rng.uniform(-0.5, 0.5, 3), _turn(rng)
    back = rng.normal(size=3) * [1, 1, 0.4]
    back /= np.linalg.norm(back)
    right = np.cross([0, 0, 1], back)
    frame = np.stack([right / np.linalg.norm(right), np.zeros(3), back], 1)
    frame[:, 1] = np.cross(back, frame[:, 0])
    data.mocap_pos[1] = rng.uniform(1.0, 2.0) * back + rng.uniform(-0.1, 0.1, 3)
    mujoco.mju_mat2Quat(data.mocap_quat[1], frame.ravel())
    mujoco.mj_forward(model, data)
    return data


@pytest.mark.parametrize(
    ("mjcf", "posture", "camera"),
    [(KINDS_MJCF, random_kinds, "eye"), (arm_mjcf(), random_posture, "front")],
    ids=["every kind", "arm"],
)
def test_segmentation_and_depth_agree_with_mujoco(mjcf, posture, camera):
    model = mujoco.MjModel.from_xml_string(mjcf)
    rng = np.random.default_rng(0)
    postures = [posture(model, rng) for _ in range(POSES)]
    oracle = Oracle(model, SIZE, SIZE)
    drawn = [oracle.draw(d, camera) for d in postures]
    want, want_depth = (np.stack(v) for v in zip(*drawn, strict=True))
    mjx_model = mjx.put_model(model)
    draw = jax.jit(jax.vmap(lambda d: render_all(mjx_model, d, camera, SIZE, SIZE)))
    _, depth, segmentation = (np.asarray(v) for v in draw(stack(model, postures)))

    same = segmentation == want
    inside = interior(want)
    error = np.abs(depth / want_depth - 1)
    print(
        f"agreement {same.mean():.5f}, interior {same[inside].mean():.6f} "
        f"({inside.mean():.3f} of pixels), depth error {error[same].max():.2e} "
        f"(99.9 %: {np.quantile(error[same], 0.999):.2e})"
    )
    assert set(np.unique(want)) >= set(range(model.ngeom)) - {-1}, "a geom is never seen"
    assert same.mean() >= 0.98
    assert same[inside].mean() >= 0.995
    assert error[same].max() < 0.01


# Rooms in a row, each with a geom close to the camera or around it, and the same furniture behind.
_AROUND = [
    'type="sphere" size=".5"',
    'type="capsule" size=".3 .5" pos="0 .1 .4"',
    'type="capsule" size=".3 .5" pos="0 0 .7"',
    'type="ellipsoid" size=".4 .5 .6"',
    'type="cylinder" size=".4 .3"',
    'type="box" size=".4 .5 .3"',
]
_NEAR = [
    'type="sphere" size=".05" pos="0 .12 0"',
    'type="box" size=".05 .05 .05" pos="0 .12 .03" euler="20 30 0"',
    'type="capsule" size=".03 .2" pos="0 .1 0" euler="70 20 0"',
    'type="cylinder" size=".05 .05" pos="0 .12 0" euler="50 0 0"',
    'type="plane" size=".3 .3 .1" pos="0 .2 -.05" euler="20 0 0"',
]
_FURNITURE = '<geom type="box" size=".5 .3 .3" pos=".2 2 0"/>'


def test_a_camera_close_to_a_geom_or_inside_one():
    """Back faces are culled, so a geom around the camera is unseen; the near plane (0.1 m here)
    cuts geoms open, and what lies behind them shows."""
    rooms = "".join(
        f'<body pos="{5 * i} 0 0"><geom {geom}/>{_FURNITURE}</body>'
        for i, geom in enumerate(_AROUND + _NEAR)
    )
    model = mujoco.MjModel.from_xml_string(f"""
        <mujoco>
          <statistic extent="10"/>
          <worldbody>
            <body mocap="true"><camera name="eye" xyaxes="1 0 0 0 0 1" fovy="70"/></body>
            {rooms}
          </worldbody>
        </mujoco>""")
    places = []
    for i in range(len(_AROUND + _NEAR)):
        data = mujoco.MjData(model)
        data.mocap_pos[0, 0] = 5 * i
        mujoco.mj_forward(model, data)
        places.append(data)
    segmentation = _agree(model, places, "eye", (SIZE, SIZE))
    for i, image in enumerate(segmentation):
        assert 2 * i + 1 in image, "the furniture should be seen"
        assert i >= len(_AROUND) or 2 * i not in image


_FLOOR = """
<mujoco>
  <statistic extent=".1"/>
  <worldbody>
    <camera name="eye" {camera}/>
    <geom type="plane" size="0 0 .1" pos="0 0 -.5" zaxis="0 .05 {up}"/>
    <geom type="box" size=".3 .3 .3" pos="0 2 0"/>
    <geom size=".3" pos=".8 2 .2"/>
  </worldbody>
</mujoco>"""


@pytest.mark.parametrize("up", [1, -1])
def test_planes_are_seen_from_both_sides_and_end_at_the_far_plane(up):
    camera = 'xyaxes="1 0 0 0 0 1" fovy="70"'
    model = mujoco.MjModel.from_xml_string(_FLOOR.format(camera=camera, up=up))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    segmentation = _agree(model, [data], "eye", (SIZE, SIZE))
    assert {-1, 0, 1, 2} == set(np.unique(segmentation))


def test_a_wide_image_with_intrinsics():
    """Other focal lengths along x and y, and a principal point off centre."""
    camera = (
        'xyaxes="1 0 0 0 0 1" resolution="96 48" sensorsize="0.096 0.048" focal="0.06 0.05" '
        'principal="0.01 -0.004"'
    )
    model = mujoco.MjModel.from_xml_string(_FLOOR.format(camera=camera, up=1))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    segmentation = _agree(model, [data], "eye", (48, 96))
    assert {-1, 0, 1, 2} == set(np.unique(segmentation))


def _agree(model, postures, camera, shape) -> np.ndarray:
    """Asserts agreement with the oracle in every image; returns our segmentation [N,H,W]."""
    oracle = Oracle(model, *shape)
    mjx_model = mjx.put_model(model)
    draw = jax.jit(jax.vmap(lambda d: render_all(mjx_model, d, camera, *shape)))
    _, depths, segmentations = (np.asarray(v) for v in draw(stack(model, postures)))
    for data, depth, segmentation in zip(postures, depths, segmentations, strict=True):
        want, want_depth = oracle.draw(data, camera)
        same, inside = segmentation == want, interior(want)
        assert same.mean() >= 0.98
        assert same[inside].mean() >= 0.995
        assert np.max(np.abs(depth / want_depth - 1)[same]) < 0.01
    return segmentations
