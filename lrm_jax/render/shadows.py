"""Which points lie in the shadow of a geom: rays from them towards a light.

Only whether such a ray meets a geom matters, not where. Points are o + t d in the geom's frame (see
`cast.Frames`), the ray goes on along l, the unit vector towards the light. Planes cast no shadow.
A geom does not shade its own lit side: `_BIAS` keeps rounding from doing so.
"""

import jax
import jax.numpy as jnp

from lrm_jax.render.cast import Frames
from lrm_jax.render.intersect import affine

CASTING = ("ellipsoid", "sphere", "capsule", "cylinder", "box")
_BIAS = 1e-3  # metres along the ray that do not count
_TINY = 1e-8


def prepare(name: str, f: Frames, towards: jax.Array) -> dict[str, jax.Array]:
    """Coefficients for `blocks` of K geoms of a kind and one light, `towards` [3] in the world."""
    l = jnp.einsum("kji,j->ki", f.mat, towards)
    if name in ("sphere", "ellipsoid"):
        size = f.size if name == "ellipsoid" else jnp.broadcast_to(f.size[:, :1], f.size.shape)
        l = l / size
        l = l / jnp.linalg.norm(l, axis=1, keepdims=True)
        return {"o": f.o / size, "a": f.a / size[:, :, None], "l": l}
    if name == "capsule":
        # Seen from the light a capsule is a stadium: its axis lies along e1, of half-length h s.
        z = jnp.array([0.0, 0.0, 1.0])
        across = z - l[:, 2:] * l
        s = jnp.linalg.norm(across, axis=1)
        e1 = jnp.where(s[:, None] > 1e-4, across / jnp.maximum(s, _TINY)[:, None], _any_normal(l))
        frame = jnp.stack([e1, jnp.cross(l, e1), l], 1)
        return {
            "o": jnp.einsum("kij,kj->ki", frame, f.o),
            "a": jnp.einsum("kij,kjl->kil", frame, f.a),
            "half": f.size[:, 1] * s,
            "slope": l[:, 2] / jnp.maximum(s, 1e-4),
            "r2": f.size[:, 0] ** 2,
        }
    k = 1 / jnp.where(jnp.abs(l) < _TINY, _TINY, l)
    slab = {"o": -f.o * k, "a": -f.a * k[:, :, None], "half": f.size * jnp.abs(k)}
    if name == "box":
        return slab
    slope = jnp.maximum(jnp.sum(l[:, :2] ** 2, 1), _TINY)
    return {
        "z_o": slab["o"][:, 2],
        "z_a": slab["a"][:, 2],
        "z_half": f.size[:, 1] * jnp.abs(k[:, 2]),
        "b_o": -jnp.sum(l[:, :2] * f.o[:, :2], 1) / slope,
        "b_a": -jnp.einsum("ki,kij->kj", l[:, :2], f.a[:, :2]) / slope[:, None],
        "o": f.o[:, :2],
        "a": f.a[:, :2],
        "r2": f.size[:, 0] ** 2,
        "inverse": 1 / slope,
    }


def prepare_placed(name: str, f: Frames, at: jax.Array) -> dict[str, jax.Array]:
    """As `prepare` for a light at `at` [3], relative to the camera, world axes."""
    return {"o": f.o, "a": f.a, "at": jnp.einsum("kji,j->ki", f.mat, at) + f.o, "size": f.size}


def _within(a, b, c) -> tuple[jax.Array, jax.Array]:
    """Where a s^2 + 2 b s + c < 0: between the two; empty where it never is."""
    d = b * b - a * c
    root = jnp.sqrt(jnp.maximum(d, 0.0))
    inverse = 1 / jnp.maximum(a, _TINY)
    nowhere = jnp.where(d > 0, 0.0, 4.0)
    return (-b - root) * inverse + nowhere, (-b + root) * inverse - nowhere


def _slab(q, l, h) -> tuple[jax.Array, jax.Array]:
    """Where |q + s l| < h: between the two."""
    k = 1 / jnp.where(jnp.abs(l) < _TINY, _TINY, l)
    half = h * jnp.abs(k)
    return -q * k - half, -q * k + half


def blocks_placed(name: str, p: dict, t: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Whether one geom is between the points at depths t [H,W] and a light with a position."""
    q = [p["o"][i] + t * affine(p["a"][i], x, y) for i in range(3)]
    l = [p["at"][i] - q[i] for i in range(3)]  # the light is at s = 1
    size = p["size"]
    first = _BIAS * jax.lax.rsqrt(jnp.maximum(l[0] ** 2 + l[1] ** 2 + l[2] ** 2, _TINY))

    def meets(enter, leave):
        return jnp.minimum(leave, 1.0) > jnp.maximum(enter, first)

    def ball(scale, centre=0.0):
        u = [v * s for v, s in zip((q[0], q[1], q[2] - centre), scale, strict=True)]
        m = [v * s for v, s in zip(l, scale, strict=True)]
        a, b, c = (sum(v * w for v, w in zip(*uv, strict=True)) for uv in ((m, m), (u, m), (u, u)))
        # The point itself lies on the lit side where b >= 0.
        return meets(*_within(a, b, c - 1)) & ((b < 0) | (c > 1))

    if name in ("sphere", "ellipsoid"):
        return ball([1 / size[0]] * 3 if name == "sphere" else [1 / size[i] for i in range(3)])
    if name == "box":
        spans = [_slab(q[i], l[i], size[i]) for i in range(3)]
    else:
        flat = (l[0] ** 2 + l[1] ** 2, q[0] * l[0] + q[1] * l[1])
        spans = [_within(*flat, q[0] ** 2 + q[1] ** 2 - size[0] ** 2), _slab(q[2], l[2], size[1])]
    enter, leave = spans[0]
    for low, high in spans[1:]:
        enter, leave = jnp.maximum(enter, low), jnp.minimum(leave, high)
    found = meets(enter, leave)
    if name == "capsule":
        for end in (-size[1], size[1]):
            found |= ball([1 / size[0]] * 3, end)
    return found


def _any_normal(l: jax.Array) -> jax.Array:
    """Unit vectors [K,3] perpendicular to l [K,3], which is close to +-z."""
    e = jnp.cross(jnp.broadcast_to(jnp.array([1.0, 0.0, 0.0]), l.shape), l)
    return e / jnp.maximum(jnp.linalg.norm(e, axis=1, keepdims=True), _TINY)


def blocks(name: str, p: dict, t: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Whether one geom is between the points at depths t [H,W] and the light, bool [H,W]."""
    if "at" in p:
        return blocks_placed(name, p, t, x, y)
    if name == "cylinder":
        middle = p["z_o"] + t * affine(p["z_a"], x, y)
        b = p["b_o"] + t * affine(p["b_a"], x, y)
        q = [p["o"][i] + t * affine(p["a"][i], x, y) for i in (0, 1)]
        d = b * b - (q[0] * q[0] + q[1] * q[1] - p["r2"]) * p["inverse"]
        root = jnp.sqrt(jnp.maximum(d, 0.0))
        enter = jnp.maximum(middle - p["z_half"], b - root)
        leave = jnp.minimum(middle + p["z_half"], b + root)
        return (d > 0) & (leave > jnp.maximum(enter, _BIAS))
    q = [p["o"][i] + t * affine(p["a"][i], x, y) for i in range(3)]
    if name == "box":
        enter, leave = q[0] - p["half"][0], q[0] + p["half"][0]
        for i in (1, 2):
            enter = jnp.maximum(enter, q[i] - p["half"][i])
            leave = jnp.minimum(leave, q[i] + p["half"][i])
        return leave > jnp.maximum(enter, _BIAS)
    if name == "capsule":
        along = jnp.clip(q[0], -p["half"], p["half"])
        off = q[0] - along
        return (off * off + q[1] * q[1] < p["r2"]) & (along * p["slope"] > q[2])
    b = q[0] * p["l"][0] + q[1] * p["l"][1] + q[2] * p["l"][2]
    return (b < 0) & (b * b > q[0] * q[0] + q[1] * q[1] + q[2] * q[2] - 1)
