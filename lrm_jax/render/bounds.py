"""Which geoms each tile of the image has to look at: bounding spheres against the tiles' frusta.

With hundreds of geoms most of them miss a tile of 16 x 16 pixels. Each tile gets a list of those
that may be in it, and a loop over its list takes the place of code for every geom: the program no
longer grows with the scene. Under `jax.vmap` a loop runs as long as the longest list.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lrm_jax.render.apart import apart
from lrm_jax.render.camera import View
from lrm_jax.render.scene import Kind, Scene
from lrm_jax.run.quiet_mjx import mjx

TILE = 16  # pixels, height and width
PAYS_FROM = 64  # solids; measured with `lrm_jax.benchmarks.render`

Lists = dict[str, tuple[jax.Array, jax.Array]]  # kind: indices into its geoms, and how many count


def pays(scene: Scene) -> bool:
    """Whether a scene has so many solids that lists are faster than code for each."""
    return sum(len(k.geoms) for k in scene.kinds if k.name != "plane") >= PAYS_FROM


def fold(kind: Kind, listed: Lists | None, tree: Any, step: Callable[..., Any], carry: Any) -> Any:
    """`carry = step(carry, row, surfaces)` for each geom of a kind, or each listed one: row is its
    part of `tree`, whose leaves have a leading axis of the kind's geoms."""
    if listed is None or kind.name not in listed:
        for k, surfaces in enumerate(kind.surfaces):
            carry = step(carry, jax.tree.map(lambda v, k=k: v[k], tree), surfaces)
        return carry
    order, count = listed[kind.name]
    numbers = jnp.array(kind.surfaces, jnp.int32)
    # Looked up once for each tile, and not by every pixel's arithmetic.
    look_up = apart(lambda i, order, tree: jax.tree.map(lambda v: v[order[i]], tree))

    def one(i, carry):
        row, surfaces = look_up(i, order, (tree, numbers))
        return apart(step)(carry, row, surfaces)

    return jax.lax.fori_loop(0, count, one, carry)


def radius(kind: Kind, size: jax.Array) -> jax.Array:
    """Radii [K] of spheres around geoms with sizes [K,3]."""
    if kind.name == "sphere":
        return size[:, 0]
    if kind.name == "ellipsoid":
        return jnp.max(size, 1)
    if kind.name == "capsule":
        return size[:, 0] + size[:, 1]
    return jnp.linalg.norm(size[:, :2] if kind.name == "cylinder" else size, axis=1)


def tiles(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x [1,W], y [H,1] to x [T,1,TILE], y [T,TILE,1], row by row; edges are repeated."""
    columns, rows = -(-x.shape[1] // TILE), -(-y.shape[0] // TILE)
    x = jnp.pad(x[0], (0, columns * TILE - x.shape[1]), mode="edge").reshape(columns, 1, TILE)
    y = jnp.pad(y[:, 0], (0, rows * TILE - y.shape[0]), mode="edge").reshape(rows, TILE, 1)
    return jnp.tile(x, (rows, 1, 1)), jnp.repeat(y, columns, 0)


def untile(image: jax.Array, height: int, width: int) -> jax.Array:
    """[T,TILE,TILE] to [height,width]."""
    columns, rows = -(-width // TILE), -(-height // TILE)
    image = image.reshape(rows, columns, TILE, TILE).swapaxes(1, 2)
    return image.reshape(rows * TILE, columns * TILE)[:height, :width]


def lists(model: mjx.Model, data: mjx.Data, scene: Scene, view: View, alpha: jax.Array) -> Lists:
    """For each kind but planes: geoms in the order of their ids [T,K], those that may be seen in
    the tile first, and their number [T]. alpha [ngeom]: 0 hides."""
    x, y = tiles(view.x, view.y)
    # A pixel's rays stay within its centre's; the spheres are enlarged against rounding.
    found = {}
    for kind in scene.kinds:
        if kind.name == "plane":
            continue
        ids = jnp.array(kind.geoms)
        r = 1.001 * radius(kind, jnp.asarray(model.geom_size, jnp.float32)[ids])
        offset = jnp.asarray(data.geom_xpos[ids], jnp.float32) - view.position
        centre = offset @ view.rotation
        depth = -centre[:, 2]
        near = (depth + r > 0) & (alpha[ids] > 0)
        inside = [near[None]]
        for axis, values in ((0, x[:, 0, :]), (1, y[:, :, 0])):
            for bound, sign in ((jnp.min(values, 1), 1.0), (jnp.max(values, 1), -1.0)):
                # distance from the plane through the camera and the tile's edge, times the norm
                gap = sign * (centre[None, :, axis] - bound[:, None] * depth[None])
                inside.append(gap >= -r[None] * jnp.sqrt(1 + bound * bound)[:, None])
        seen = jnp.all(jnp.stack(jnp.broadcast_arrays(*inside)), 0)
        order = jnp.argsort(~seen, axis=1, stable=True).astype(jnp.int32)
        found[kind.name] = (order, jnp.sum(seen, 1, dtype=jnp.int32))
    return found
