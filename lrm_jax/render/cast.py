"""The nearest surface in every pixel."""

import dataclasses

import jax
import jax.numpy as jnp

from lrm_jax.render import bounds, intersect
from lrm_jax.render.camera import View
from lrm_jax.render.scene import Scene
from lrm_jax.run.quiet_mjx import mjx


@dataclasses.dataclass(frozen=True)
class Frames:
    """The camera seen from each of the K geoms of one kind.

    Attributes:
      o: float32 [K,3], the camera's position in the geom's frame, metres.
      a: float32 [K,3,3], takes (x, y, 1) of a pixel to the ray's direction in that frame.
      size: float32 [K,3], MuJoCo's geom_size.
      mat: float32 [K,3,3], the geom's rotation.
    """

    o: jax.Array
    a: jax.Array
    size: jax.Array
    mat: jax.Array


def frames_of(model: mjx.Model, data: mjx.Data, view: View, geoms: tuple[int, ...]) -> Frames:
    """The `Frames` of some geoms."""
    ids = jnp.array(geoms)
    mat = jnp.asarray(data.geom_xmat[ids], jnp.float32).reshape(-1, 3, 3)
    pos = jnp.asarray(data.geom_xpos[ids], jnp.float32)
    o = jnp.einsum("kji,kj->ki", mat, view.position - pos)
    a = jnp.einsum("kji,jl->kil", mat, view.rotation * jnp.array([1.0, 1.0, -1.0]))
    return Frames(o, a, jnp.asarray(model.geom_size, jnp.float32)[ids], mat)


def prepare(scene: Scene, frames: dict[str, Frames], alpha: jax.Array, view: View) -> dict:
    """The coefficients of all visible geoms by kind; where alpha [ngeom] is 0, nothing hits."""
    out = {}
    for kind in scene.kinds:
        f = frames[kind.name]
        out[kind.name] = intersect.PREPARE[kind.name](f.o, f.a, f.size)
        visible = alpha[jnp.array(kind.geoms)] > 0
        out[kind.name]["limit"] = jnp.where(visible, 1 / view.near, -1.0)
    return out


def cast(
    scene: Scene,
    prepared: dict,
    far: jax.Array,
    x: jax.Array,
    y: jax.Array,
    listed: bounds.Lists | None = None,
) -> jax.Array:
    """Packed hits int32 [H,W] (see `intersect.pack`) for x [1,W], y [H,1]; 0: nothing there.

    listed: a tile's part of `bounds.lists`; all geoms are tried without.
    """
    best = jnp.zeros((y.shape[0], x.shape[1]), jnp.int32)
    for kind in scene.kinds:

        def nearest(best, p, ids, kind=kind):
            hit = intersect.HIT[kind.name](p, p["limit"], x, y, ids, scene.id_bits)
            return jnp.maximum(best, hit)

        best = bounds.fold(kind, listed, prepared[kind.name], nearest, best)
    return jnp.where(intersect.as_float(best) > 1 / far, best, 0)
