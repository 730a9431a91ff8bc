"""Point and spot lights and their shadows against MuJoCo's renderer; lists of geoms for tiles."""

import jax
import mujoco
import numpy as np
import pytest
from mujoco import mjx
from render_oracle import Oracle, interior, one

from lrm_jax.benchmarks import scenes
from lrm_jax.render import render, render_all

SHAPE = (48, 64)
SOLIDS = (
    'type="sphere" size=".2"',
    'type="capsule" size=".1 .2" euler="0 70 20"',
    'type="ellipsoid" size=".3 .15 .1" euler="20 0 0"',
    'type="cylinder" size=".15 .2" euler="40 0 0"',
    'type="cylinder" size=".2 .05"',
    'type="box" size=".2 .15 .1" euler="0 30 0"',
)
LIGHTS = {
    "point": '<light type="point" pos=".3 -.6 2.2" attenuation=".7 .1 .05" ',
    "spot": '<light type="spot" pos=".9 -.5 3" dir="-.3 .2 -1" cutoff="28" exponent="6" ',
}


def room(lights: str) -> mujoco.MjModel:
    geoms = "".join(
        f'<geom {s} pos="{0.6 * (i % 3) - 0.6} {0.7 * (i // 3) - 0.3} .6"/>'
        for i, s in enumerate(SOLIDS)
    )
    # MuJoCo lights the corners of polygons: many of them are needed where a light is near.
    return mujoco.MjModel.from_xml_string(f"""
        <mujoco>
          <statistic extent="2"/>
          <visual>
            <headlight specular="0 0 0"/><map shadowclip="2" shadowscale="1"/>
            <quality numquads="64" shadowsize="4096"/>
          </visual>
          <worldbody>
            {lights}
            <camera name="eye" pos="-.2 -1 2.4" xyaxes="1 0 0 0 .93 .37" fovy="42"/>
            <geom type="plane" size="2 2 .02" rgba=".7 .7 .7 1"/>
            {geoms}
          </worldbody>
        </mujoco>""")


def drawn(model, data, shadows=False, **options) -> np.ndarray:
    mjx_model = mjx.put_model(model)
    image = jax.jit(lambda d: render(mjx_model, d, "eye", *SHAPE, shadows=shadows, **options))
    return np.asarray(image(one(model, data))).astype(int)


@pytest.mark.parametrize("kind", LIGHTS)
def test_placed_lights_are_those_of_mujoco(kind):
    """MuJoCo's renderer draws no point lights: for it the point becomes a spot of a half-space,
    which is the same where all that is seen lies below. Light in a shadow: MuJoCo takes a light's
    ambient part away as well, so there is none here."""
    rest = 'diffuse=".8 .7 .6" specular="0 0 0"/>'
    model = room(LIGHTS[kind] + rest)
    as_spot = LIGHTS[kind].replace('"point"', '"spot" dir="0 0 -1" cutoff="89.9" exponent="0"')
    reference = room(as_spot + rest)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    oracle = Oracle(reference, *SHAPE)
    ids, _ = oracle.draw(data, "eye")
    lit, dark = (drawn(model, data, shadows=s) for s in (False, True))
    difference = np.max(np.abs(lit - oracle.colours(data, "eye").astype(int)), -1)
    # Colours between the corners of a polygon are interpolated.
    assert np.quantile(difference[interior(ids)], 0.95) <= 6
    assert np.ptp(lit - drawn(room(""), data)) > 60
    shaded = np.any(dark != lit, -1)
    floor = interior(ids) & (ids == 0)
    assert 0.05 < (shaded & floor).sum() / floor.sum() < 0.6
    assert np.all(dark <= lit + 1)
    if kind == "spot":  # a shadow map of a half-space has no resolution
        want = oracle.colours(data, "eye", shadows=True).astype(int)
        difference = np.max(np.abs(dark - want), -1)[floor & interior(shaded)]
        assert np.mean(difference <= 8) > 0.97
    oracle.close()


@pytest.mark.slow
def test_lists_of_geoms_change_no_pixel():
    """With and without them, on an image that tiles do not divide, with all kinds of lights."""
    lights = "".join(v + 'diffuse=".4 .4 .4"/>' for v in LIGHTS.values())
    sun = '<light directional="true" dir="-.2 -.3 -1" diffuse=".3 .3 .3"/>'
    model = mujoco.MjModel.from_xml_string(scenes.scattered_mjcf(20, lights + sun))
    rng = np.random.default_rng(0)
    data = scenes.stack(model, [scenes.scatter(model, rng) for _ in range(3)])
    mjx_model = mjx.put_model(model)

    def draw(bounds, shadows):
        function = jax.vmap(
            lambda d: render_all(
                mjx_model, d, "front", 40, 56, bounds=bounds, shadows=shadows, clip=(0.3, 2.0)
            )
        )
        return [np.asarray(v) for v in jax.jit(function)(data)]

    for shadows in (False, True):
        (rgb, depth, ids), (want_rgb, want_depth, want_ids) = (
            draw(True, shadows),
            draw(False, shadows),
        )
        assert len(np.unique(want_ids)) > 15
        np.testing.assert_array_equal(ids, want_ids)
        np.testing.assert_allclose(depth, want_depth, rtol=1e-5)
        apart = np.abs(rgb.astype(int) - want_rgb)
        # Sums round differently in the two programs, and a shadow's rim is where it is.
        assert np.mean(apart <= 1) > 0.999
