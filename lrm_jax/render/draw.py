"""The renderer: an MJX model and its data in, pixels out."""

import functools

import jax
import jax.numpy as jnp

from lrm_jax.render import bounds, intersect, lights, materials, shade
from lrm_jax.render import camera as cameras
from lrm_jax.render.apart import apart
from lrm_jax.render.cast import cast, frames_of, prepare
from lrm_jax.render.scene import scene_of
from lrm_jax.run.quiet_mjx import mjx

CLIP = (0.01, 50.0)  # MuJoCo's default visual/map znear and zfar, in units of stat.extent


def render(
    model: mjx.Model,
    data: mjx.Data,
    camera: str | int,
    height: int,
    width: int,
    *,
    clip: tuple[float, float] = CLIP,
    shadows: bool = False,
    bounds: bool | None = None,
) -> jax.Array:
    """The image of one camera, uint8 [H,W,3], top row first.

    Drawn are the geoms that MuJoCo's default visualisation shows: geom groups 0 to 2, alpha > 0;
    all opaque. Planes, spheres, capsules, ellipsoids, cylinders and boxes; planes from both sides,
    solids from outside only (a camera in a geom does not see it). Sites, tendons and the like are
    not drawn. Under `jax.vmap` data and any array of the model may be batched (colours, sizes,
    lights, ...); types and groups of geoms are static. For the lights see `lrm_jax.render.lights`.

    Args:
      model: an `mjx.Model`.
      data: an `mjx.Data` with up-to-date `geom_xpos`, `geom_xmat`, `cam_xpos`, `cam_xmat`.
      camera: name or id of a camera of the model (perspective; MJX does not know other ones).
      height, width: pixels.
      clip: near and far plane in units of `model.stat.extent` (MJX models lack `vis.map`).
      shadows: whether lights with `castshadow` cast them; an image then takes twice as long.
      bounds: whether tiles of the image get lists of the geoms that may be in them (see
        `lrm_jax.render.bounds`); by the number of geoms if None. The pixels are the same.

    Raises:
      UserError: no such camera, no pixels, or a visible geom that is not a primitive.
    """
    options = _options(model, camera, height, width, clip, shadows, bounds)
    return _render(model, data, *options)


def render_all(
    model: mjx.Model,
    data: mjx.Data,
    camera: str | int,
    height: int,
    width: int,
    *,
    clip: tuple[float, float] = CLIP,
    shadows: bool = False,
    bounds: bool | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`render`, and depth and segmentation of the same pixels.

    Returns:
      rgb uint8 [H,W,3]; depth float32 [H,W], metres along the optical axis, the far plane where
      there is nothing (as `mujoco.Renderer` gives it); segmentation int32 [H,W], geom id or -1.
    """
    options = _options(model, camera, height, width, clip, shadows, bounds)
    return _render_all(model, data, *options)


def _options(model, camera, height, width, clip, shadows, bounds):
    """The static arguments of `_render` and `_render_all`."""
    camera, placed = cameras.resolve(model, camera), lights.with_position(model)
    return camera, height, width, tuple(clip), shadows, bounds, placed


def _prepare(model, data, camera, height, width, clip, shadows, bounded, placed):
    """Scene, rays, the coefficients for `cast` and `shade.shade`, and lists for tiles."""
    scene = scene_of(model)
    view = cameras.view(model, data, camera, height, width, clip)
    frames = {kind.name: frames_of(model, data, view, kind.geoms) for kind in scene.kinds}
    colours = materials.albedo(model)
    shapes = prepare(scene, frames, colours[:, 3], view)
    looks = shade.prepare(model, scene, frames, colours, view, shadows, placed)
    rays = {"far": view.far, "x": view.x, "y": view.y}
    lists = None
    if bounds.pays(scene) if bounded is None else bounded:
        lists = bounds.lists(model, data, scene, view, colours[:, 3])
    # Hits are packed as 32 bits, also in programs that compute in double precision.
    return scene, *jax.tree.map(_single, (rays, shapes, looks)), lists


def _pixels(function, rays, lists):
    """`function(x, y, far, listed, ...)` [H,W] over the whole image, or tile by tile."""
    if lists is None:
        return function(rays["x"], rays["y"], None)
    tiled = jax.vmap(function)(*bounds.tiles(rays["x"], rays["y"]), lists)
    height, width = rays["y"].shape[0], rays["x"].shape[1]
    return jax.tree.map(lambda v: bounds.untile(v, height, width), tiled)


def _single(value: jax.Array) -> jax.Array:
    return value.astype(jnp.float32) if jnp.issubdtype(value.dtype, jnp.floating) else value


# jitted, so that calls outside of jit do not compile anew
@functools.partial(jax.jit, static_argnums=range(2, 9))
def _render(model, data, *options):
    scene, rays, shapes, looks, lists = _prepare(model, data, *options)
    placed = options[-1]

    @apart
    def pixels(shapes, looks, rays, lists):
        def colour(x, y, listed):
            key = cast(scene, shapes, rays["far"], x, y, listed)
            return shade.shade(scene, looks, key, rays["far"], x, y, listed, placed)

        return _pixels(colour, rays, lists)

    return _bytes(pixels(shapes, looks, rays, lists))


@functools.partial(jax.jit, static_argnums=range(2, 9))
def _render_all(model, data, *options):
    scene, rays, shapes, looks, lists = _prepare(model, data, *options)
    placed = options[-1]

    @apart
    def hits(shapes, rays, lists):
        return _pixels(lambda *a: cast(scene, shapes, rays["far"], *a), rays, lists)

    @apart
    def both(shapes, looks, rays, lists):
        def colour(x, y, listed):
            key = cast(scene, shapes, rays["far"], x, y, listed)
            return key, shade.shade(scene, looks, key, rays["far"], x, y, listed, placed)

        return _pixels(colour, rays, lists)

    if lists is None:
        key = hits(shapes, rays, None)
        word = apart(
            lambda looks, key, rays: shade.shade(scene, looks, key, **rays, placed=placed)
        )(looks, key, rays)
    else:
        key, word = both(shapes, looks, rays, lists)
    depth = 1 / jnp.maximum(intersect.as_float(key), 1 / rays["far"])
    owners = jnp.array(scene.owners, jnp.int32)
    return _bytes(word), depth, owners[key & ((1 << scene.id_bits) - 1)]


def _bytes(word: jax.Array) -> jax.Array:
    """uint8 [H,W,3] from packed pixels int32 [H,W]."""
    return jax.lax.bitcast_convert_type(word, jnp.uint8)[..., :3]
