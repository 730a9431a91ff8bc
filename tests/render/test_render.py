"""What users rely on: orientation, colours, cameras, batches, errors."""

import chex
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from mujoco import mjx
from render_oracle import Oracle, interior, one

from lrm_jax.benchmarks.scenes import stack
from lrm_jax.render import camera as cameras
from lrm_jax.render import cast, render, render_all
from lrm_jax.render import draw as draw_module
from lrm_jax.run.errors import UserError

RED, GREEN, BLUE, FLOOR, HIDDEN, CLEAR, MOVING = range(7)  # the world's geoms first
MJCF = """
<mujoco>
  <statistic extent="2"/>
  <asset>
    <texture name="check" type="2d" builtin="checker" rgb1="0 0 0" rgb2="1 1 1" width="64"
             height="64"/>
    <texture type="skybox" builtin="gradient" rgb1="0 0 1" rgb2="1 1 1" width="32" height="192"/>
    <material name="check" texture="check"/>
    <material name="plain" rgba=".2 .9 .9 1"/>
  </asset>
  <default><geom contype="0" conaffinity="0"/></default>
  <worldbody>
    <light directional="true" dir="0 0 -1" diffuse=".3 .3 .3"/>
    <camera name="front" pos="0 -3 0" xyaxes="1 0 0 0 0 1" fovy="45"/>
    <camera pos="0 -3 1" xyaxes="1 0 0 0 0 1" fovy="20"/>
    <geom name="top" size=".2" pos="0 0 .8" rgba="1 0 0 1"/>
    <geom name="left" type="box" size=".2 .2 .2" pos="-.8 0 0" rgba="0 1 0 1"/>
    <geom name="right" type="cylinder" size=".2 .2" pos=".8 0 0" rgba="0 0 1 1"/>
    <geom name="floor" type="plane" size="0 0 .1" pos="0 0 -1" material="check" rgba="1 1 1 1"/>
    <body mocap="true" pos="0 0 -.3">
      <geom type="ellipsoid" size=".3 .2 .1" material="plain"/>
      <camera name="riding" pos="0 -1 0" xyaxes="1 0 0 0 0 1"/>
    </body>
    <geom name="hidden" size=".5" pos="0 -1 0" group="3"/>
    <geom name="clear" size=".5" pos="0 -1 0" rgba="1 1 1 0"/>
  </worldbody>
</mujoco>"""
SHAPE = (48, 64)


@pytest.fixture(scope="module")
def scene():
    model = mujoco.MjModel.from_xml_string(MJCF)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data, mjx.put_model(model), one(model, data)


@pytest.fixture(scope="module")
def draw(scene):
    """jitted (geom_rgba, data) -> (rgb, depth, segmentation) of the camera `front`."""
    return jax.jit(lambda c, d: render_all(scene[2].replace(geom_rgba=c), d, "front", *SHAPE))


def _centre(mask) -> tuple[float, float]:
    rows, columns = np.nonzero(np.asarray(mask))
    return rows.mean(), columns.mean()


def test_up_is_up_left_is_left_and_hidden_geoms_are_not_drawn(scene, draw):
    rgb, depth, segmentation = draw(scene[2].geom_rgba, scene[3])
    chex.assert_shape([rgb, depth, segmentation], [(*SHAPE, 3), SHAPE, SHAPE])
    chex.assert_type([rgb, depth, segmentation], [jnp.uint8, jnp.float32, jnp.int32])
    assert set(np.unique(segmentation)) == {-1, RED, GREEN, BLUE, FLOOR, MOVING}
    middle = (np.array(SHAPE) - 1) / 2
    assert _centre(segmentation == RED)[0] < middle[0] < _centre(segmentation == FLOOR)[0]
    assert _centre(segmentation == GREEN)[1] < middle[1] < _centre(segmentation == BLUE)[1]
    for geom, channel in ((RED, 0), (GREEN, 1), (BLUE, 2)):
        seen = np.asarray(rgb)[np.asarray(segmentation) == geom]
        assert np.all(seen.argmax(1) == channel) and np.all(np.delete(seen, channel, 1) == 0)
    depth, segmentation = np.asarray(depth), np.asarray(segmentation)
    # The depth is along the optical axis: the sphere's nearest point is at 3 - 0.2 m.
    assert np.min(depth[segmentation == RED]) == pytest.approx(2.8, rel=1e-3)
    assert np.all(depth[segmentation == -1] == pytest.approx(100.0))


def test_colours_are_those_of_mujoco(scene, draw):
    """Lambert's law under the same lights; MuJoCo's specular part is switched off."""
    _, data, mjx_model, mjx_data = scene
    plain = mujoco.MjModel.from_xml_string(MJCF)
    plain.vis.headlight.specular[:] = 0
    plain.light_specular[:] = 0
    oracle = Oracle(plain, *SHAPE)
    want = oracle.colours(data, "front").astype(int)
    ids, _ = oracle.draw(data, "front")
    rgb = np.asarray(draw(mjx_model.geom_rgba, mjx_data)[0]).astype(int)
    for geom in (RED, GREEN, BLUE, MOVING):
        inside = interior(ids) & (ids == geom)
        assert inside.sum() >= 5
        # Tessellated normals, colours rounded twice; the median, as MuJoCo smooths a box's edges.
        assert np.max(np.quantile(np.abs(rgb - want)[inside], 0.5, axis=0)) <= 4


def test_shadows_are_those_of_mujoco():
    solids = (
        'type="sphere" size=".2"',
        'type="capsule" size=".1 .2" euler="0 70 20"',
        'type="ellipsoid" size=".3 .15 .1" euler="20 0 0"',
        'type="cylinder" size=".15 .2" euler="40 0 0"',
        'type="cylinder" size=".2 .05"',
        'type="box" size=".2 .15 .1" euler="0 30 0"',
    )
    geoms = "".join(
        f'<geom {s} pos="{0.6 * (i % 3) - 0.6} {0.7 * (i // 3) - 0.3} .6"/>'
        for i, s in enumerate(solids)
    )
    model = mujoco.MjModel.from_xml_string(f"""
        <mujoco>
          <statistic extent="2"/>
          <visual><headlight specular="0 0 0"/><map shadowclip="2"/></visual>
          <worldbody>
            <light directional="true" dir="-.5 -.5 -1" pos="1 1 3" diffuse=".7 .7 .7"
                   specular="0 0 0"/>
            <camera name="eye" pos="-.2 -1 2.4" xyaxes="1 0 0 0 .93 .37" fovy="42"/>
            <geom type="plane" size="2 2 .1" rgba=".7 .7 .7 1"/>
            {geoms}
          </worldbody>
        </mujoco>""")
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    oracle = Oracle(model, *SHAPE)
    want = oracle.colours(data, "eye", shadows=True).astype(int)
    ids, _ = oracle.draw(data, "eye")
    mjx_model = mjx.put_model(model)
    dark, light = (
        np.asarray(render(mjx_model, one(model, data), "eye", *SHAPE, shadows=s)).astype(int)
        for s in (True, False)
    )
    floor = interior(ids) & (ids == 0)
    shaded = floor & np.any(dark != light, -1)
    assert 0.1 < shaded.sum() / floor.sum() < 0.5
    assert np.all(dark <= light + 1)  # colours are rounded at other places
    # Away from the rims, where MuJoCo's shadow map blurs, both agree.
    away = floor & interior(shaded)
    assert np.mean(np.max(np.abs(dark - want), -1)[away] <= 6) > 0.99


def test_the_checker_and_the_sky(scene, draw):
    rgb, depth, segmentation = (np.asarray(v) for v in draw(scene[2].geom_rgba, scene[3]))
    near = rgb[(segmentation == FLOOR) & (depth < 3)]
    assert np.mean(np.all(near < 20, 1)) > 0.25 and np.mean(np.all(near > 80, 1)) > 0.25
    # Where a pixel covers many squares there is their mean, not noise.
    far = rgb[(segmentation == FLOOR) & (depth > 20)]
    assert len(far) and np.ptp(far) <= 1
    sky = segmentation == -1
    assert np.all(rgb[sky][:, 2] >= rgb[sky][:, 0]) and np.all(rgb[sky][:, 2] > 0)


def test_colours_may_differ_in_a_batch_and_alpha_hides(scene, draw):
    _, _, mjx_model, data = scene
    rgba = jnp.stack([mjx_model.geom_rgba] * 3)
    rgba = rgba.at[1, RED, :3].set(jnp.array([0.0, 0, 1])).at[2, RED, 3].set(0.0)
    batch = jax.tree.map(lambda v: jnp.stack([v] * 3), data)

    def image(c, d):
        return render_all(mjx_model.replace(geom_rgba=c), d, "front", *SHAPE)

    rgb, _, segmentation = jax.jit(jax.vmap(image))(rgba, batch)
    for i in range(3):
        chex.assert_trees_all_close(
            (rgb[i], segmentation[i]), tuple(draw(rgba[i], data)[j] for j in (0, 2))
        )
    red = np.asarray(segmentation[0]) == RED
    assert red.any() and np.all(np.asarray(rgb[1])[red].argmax(1) == 2)
    assert not np.any(np.asarray(segmentation[2]) == RED)
    segmentation = np.asarray(segmentation)
    np.testing.assert_array_equal(segmentation[2][~red], segmentation[0][~red])


def test_sizes_may_differ_in_a_batch_too(scene):
    """Everything but the kinds of geoms may be traced, as domain randomisation needs it."""
    _, _, mjx_model, data = scene
    sizes = jnp.stack([mjx_model.geom_size, 1.2 * mjx_model.geom_size])
    batched = jax.tree.map(lambda v: None, mjx_model).replace(geom_size=0)
    draw = jax.jit(jax.vmap(lambda m: render_all(m, data, "front", *SHAPE)[2], in_axes=(batched,)))
    segmentation = np.asarray(draw(mjx_model.replace(geom_size=sizes)))
    for geom in (RED, GREEN, BLUE, MOVING):
        assert np.sum(segmentation[1] == geom) > np.sum(segmentation[0] == geom) > 0


def test_cameras_by_name_by_id_and_on_a_moving_body(scene):
    model, data, mjx_model, _ = scene
    assert cameras.names(mjx_model) == ["front", "", "riding"]
    ids = [cameras.resolve(mjx_model, c) for c in ("front", 0, 1, "riding", np.int64(2))]
    assert ids == [0, 0, 1, 2, 2]
    moved = mujoco.MjData(model)
    moved.mocap_pos[0] = [0.2, -0.5, -0.4]
    moved.mocap_quat[0] = [np.cos(0.2), 0, 0, np.sin(0.2)]
    mujoco.mj_forward(model, moved)
    draw = jax.jit(jax.vmap(lambda d: render_all(mjx_model, d, "riding", *SHAPE)[2]))
    before, after = np.asarray(draw(stack(model, [data, moved])))
    want, _ = Oracle(model, *SHAPE).draw(moved, "riding")
    inside = interior(want)
    assert np.mean(after[inside] == want[inside]) > 0.995
    assert np.mean(after != before) > 0.05
    # It rides with its body, which therefore stays in place in the image.
    np.testing.assert_allclose(_centre(after == MOVING), _centre(before == MOVING), atol=1.0)


def test_new_data_does_not_recompile(scene):
    _, _, mjx_model, data = scene
    traces = []

    @jax.jit
    def image(c, d):
        traces.append(1)
        return render(mjx_model.replace(geom_rgba=c), d, 1, *SHAPE)

    first = image(mjx_model.geom_rgba, data)
    moved = data.replace(geom_xpos=data.geom_xpos + jnp.array([0.1, 0.0, 0.0]))
    second = image(1 - mjx_model.geom_rgba, moved)
    assert len(traces) == 1 and np.any(np.asarray(first != second))


def test_calls_outside_of_jit_do_not_compile_anew(scene, monkeypatch):
    _, _, mjx_model, data = scene
    traces = []
    monkeypatch.setattr(draw_module, "cast", lambda *a, **k: traces.append(1) or cast.cast(*a, **k))
    for shift in (0.0, 0.1):
        moved = data.replace(geom_xpos=data.geom_xpos + shift)
        render(mjx_model, moved, "front", 8, 9)
        render(mjx_model, moved, 0, 8, 9)
    assert len(traces) == 1


def test_it_draws_in_double_precision_programs_too(scene):
    _, _, mjx_model, data = scene
    want = render_all(mjx_model, data, "front", *SHAPE)
    wide = jax.tree.map(lambda v: np.asarray(v, np.float64) if v.dtype == np.float32 else v, data)
    with jax.enable_x64(True):
        got = render_all(mjx_model, jax.tree.map(jnp.asarray, wide), "front", *SHAPE)
    chex.assert_trees_all_equal_dtypes(got, want)
    assert np.mean(np.asarray(got[2]) == np.asarray(want[2])) > 0.999


def test_an_image_is_one_kernel(scene):
    """Fused as intended, an image costs two passes (colours, bytes), not one for each operation."""
    _, _, mjx_model, data = scene
    batch = jax.tree.map(lambda v: jnp.stack([v] * 4), data)
    draw = jax.jit(jax.vmap(lambda d: render(mjx_model, d, "front", *SHAPE)))
    program = draw.lower(batch).compile().as_text()
    if jax.default_backend() == "cpu":
        images = [f"[4,{SHAPE[0]},{SHAPE[1]}]", f"[4,{SHAPE[0]},{SHAPE[1]},3]"]
        passes = [
            line
            for line in program.splitlines()
            if " fusion(" in line and any(i in line.split(" fusion(")[0] for i in images)
        ]
        assert len(passes) == 2, "\n".join(line[:120] for line in passes)


@pytest.mark.parametrize("camera", ["nowhere", "", 3, -1, True])
def test_unknown_cameras_are_the_users_mistake(scene, camera):
    with pytest.raises(UserError, match=r"'front' \(0\), 1, 'riding' \(2\)"):
        render(scene[2], scene[3], camera, *SHAPE)


def test_models_that_cannot_be_drawn_are_the_users_mistake(scene):
    with pytest.raises(UserError, match="empty"):
        render(scene[2], scene[3], "front", 0, 4)
    bare = mujoco.MjModel.from_xml_string("<mujoco/>")
    with pytest.raises(UserError, match="none"):
        render(mjx.put_model(bare), mjx.make_data(bare), "front", 4, 4)
    types = np.array(scene[2].geom_type)
    types[RED] = mujoco.mjtGeom.mjGEOM_MESH
    with pytest.raises(UserError, match=r"geom 0 .*mjGEOM_MESH"):
        render(scene[2].replace(geom_type=types), scene[3], "front", 4, 4)


@pytest.mark.parametrize("shadows", [False, True])
@pytest.mark.parametrize(
    "geom", ['type="box" size=".1 .1 .1"', 'size=".1"', 'type="plane" size="1 1 .1"']
)
def test_a_scene_of_one_geom(geom, shadows):
    """Seen from above, along the light: fully lit in the middle, whatever kinds are missing."""
    model = mujoco.MjModel.from_xml_string(
        f"""<mujoco><worldbody>
          <light directional="true" dir="0 0 -1" diffuse=".3 .3 .3"/>
          <camera name="eye" pos="0 0 1" fovy="5"/><geom {geom} rgba="1 .5 .25 1"/>
        </worldbody></mujoco>"""
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    image = render(mjx.put_model(model), one(model, data), "eye", 1, 1, shadows=shadows)
    # ambient 0.1, headlight 0.4, light 0.3
    np.testing.assert_allclose(image[0, 0], np.array([1, 0.5, 0.25]) * 0.8 * 255, atol=1)


def test_an_empty_scene_is_black():
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><camera name="eye"/></worldbody></mujoco>'
    )
    rgb, depth, segmentation = render_all(mjx.put_model(model), mjx.make_data(model), "eye", 3, 5)
    assert not rgb.any() and np.all(np.asarray(segmentation) == -1) and rgb.shape == (3, 5, 3)
    assert np.ptp(np.asarray(depth)) == 0
