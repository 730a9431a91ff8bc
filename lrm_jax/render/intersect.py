"""Where rays from one point meet primitive geoms: everything in inverse depth.

All rays start in the camera, so whatever depends on the geom and the start alone is computed once
per geom, and only what depends on the pixel (x, y) is left. Write w for 1/depth of a hit on the ray
with direction d = (x, y, -1). Then

* on a plane  w is *affine* in (x, y);
* on a quadric the depths solve a t^2 + 2 b t + c = 0 with c constant, b affine and a quadratic in
  (x, y), so w = B +- sqrt(D) with B = -b/c affine and D = (b^2 - a c)/c^2 quadratic.

No division is left per pixel, and the nearest hit is the largest w. Convex solids are
intersections: a ray enters at the smallest w of the entries, leaves at the largest w of the exits,
and meets the solid if the former exceeds the latter. As MuJoCo culls back faces, a solid around the
camera is not seen.

`prepare_*` take K geoms: the camera's position o [K,3] in their frames, a [K,3,3] so that there
d = a (x, y, 1), and their sizes [K,3]; they return coefficients with leading axis K. `hit_*`
evaluate one geom and return packed hits int32 [H,W], 0 for a miss: nothing nearer than 1/limit
counts, `ids` are the numbers of the geom's surfaces (the curved one first), `bits` how many bits
those take.
"""

import jax
import jax.numpy as jnp

_AT_ONCE = 1e6  # inverse depth [1/m] of what lies within a micrometre: the near plane cuts it
_TINY = 1e-12


def affine(c: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """c0 x + c1 y + c2; what depends on the row only is grouped, so that compilers hoist it."""
    return c[0] * x + (c[1] * y + c[2])


def quadratic(q: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """q0 x^2 + q1 y^2 + q2 + q3 x y + q4 x + q5 y in Horner form along x."""
    return (q[0] * x + (q[3] * y + q[4])) * x + ((q[1] * y + q[5]) * y + q[2])


def _quadratic_of(m: jax.Array) -> jax.Array:
    """Coefficients [K,6] of v^T M v, v = (x, y, 1), for symmetric M [K,3,3]."""
    return jnp.stack(
        [m[:, 0, 0], m[:, 1, 1], m[:, 2, 2], 2 * m[:, 0, 1], 2 * m[:, 0, 2], 2 * m[:, 1, 2]], -1
    )


def _constant(value: float | jax.Array, like: jax.Array) -> jax.Array:
    """Coefficients [K,3] of the affine function that equals `value` everywhere."""
    value = jnp.broadcast_to(jnp.asarray(value, like.dtype), like.shape[:1])
    return jnp.stack([jnp.zeros_like(value), jnp.zeros_like(value), value], -1)


def _where(condition: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(condition[:, None], a, b)


def _roots(o: jax.Array, a: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """B [K,3], D [K,6] and c [K] of |o + t d|^2 = 1, where d = a (x, y, 1), o [K,n], a [K,n,3]."""
    c = jnp.sum(o * o, -1) - 1
    b = jnp.einsum("ki,kij->kj", o, a)
    gram = jnp.einsum("kij,kil->kjl", a, a)
    safe = jnp.where(jnp.abs(c) < _TINY, _TINY, c)
    d = b[:, :, None] * b[:, None, :] - c[:, None, None] * gram
    return -b / safe[:, None], _quadratic_of(d) / (safe**2)[:, None], c


def _slab(o: jax.Array, a: jax.Array, h: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Entry and two exits (affine [K,3] each) of |o + t d| <= h with d = a v: o, h [K], a [K,3]."""
    side = jnp.where(o < 0, -1.0, 1.0)
    outside = jnp.abs(o) > h
    gap = jnp.abs(o) - h  # distance to the near face, negative inside
    near = -side[:, None] * a / jnp.where(jnp.abs(gap) < _TINY, _TINY, gap)[:, None]
    far = -side[:, None] * a / (jnp.abs(o) + h)[:, None]
    entry = _where(outside, near, _constant(_AT_ONCE, a))
    other = _where(outside, _constant(-_AT_ONCE, a), near)
    return entry, far, other


# -- packing: a hit is one int32 whose order is nearness and whose low bits name the surface -------


def pack(w: jax.Array, surface: int | jax.Array, bits: int) -> jax.Array:
    """int32 from float32 w: its bits, the lowest `bits` of them replaced by the surface number.

    Positive floats order as their bits do, negative ones come before; 2^-(23-bits) of w is lost.
    """
    return (jax.lax.bitcast_convert_type(w, jnp.int32) & -(1 << bits)) | surface


def as_float(key: jax.Array) -> jax.Array:
    """float32 view of a packed hit."""
    return jax.lax.bitcast_convert_type(key, jnp.float32)


def _max(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(a > b, a, b)  # one instruction; jnp.maximum also propagates NaN


# -- planes ----------------------------------------------------------------------------------------


def prepare_plane(o: jax.Array, a: jax.Array, size: jax.Array) -> dict[str, jax.Array]:
    """Both sides are drawn, as in MuJoCo; half-sizes <= 0 are infinite."""
    height = jnp.where(jnp.abs(o[:, 2]) < _TINY, _TINY, o[:, 2])
    w = -a[:, 2] / height[:, None]
    edges = []
    for i in (0, 1):
        bound = size[:, i, None]
        for sign in (-1, 1):  # size*w -+ (o*w + d) >= 0
            edge = (bound + sign * o[:, i, None]) * w + sign * a[:, i]
            edges.append(_where(size[:, i] > 0, edge, _constant(1.0, edge)))
    return {"w": w, "edges": jnp.stack(edges, 1)}


def hit_plane(p, limit, x, y, ids, bits):
    w = affine(p["w"], x, y)
    inside = w <= limit
    for edge in p["edges"]:
        inside &= affine(edge, x, y) >= 0
    return jnp.where(inside, pack(w, ids[0], bits), 0)


# -- spheres and ellipsoids ------------------------------------------------------------------------


def prepare_ellipsoid(o: jax.Array, a: jax.Array, size: jax.Array) -> dict[str, jax.Array]:
    b, d, c = _roots(o / size, a / size[:, :, None])
    return {"b": _where(c > 0, b, _constant(_AT_ONCE, b)), "d": d}


def prepare_sphere(o: jax.Array, a: jax.Array, size: jax.Array) -> dict[str, jax.Array]:
    return prepare_ellipsoid(o, a, jnp.broadcast_to(size[:, :1], size.shape))


def hit_ellipsoid(p, limit, x, y, ids, bits):
    d = quadratic(p["d"], x, y)
    w = affine(p["b"], x, y) + jnp.sqrt(_max(d, 0.0))
    return jnp.where((d > 0) & (w <= limit), pack(w, ids[0], bits), 0)


hit_sphere = hit_ellipsoid


# -- capsules --------------------------------------------------------------------------------------


def prepare_capsule(o: jax.Array, a: jax.Array, size: jax.Array) -> dict[str, jax.Array]:
    r, h = size[:, 0], size[:, 1]
    z, dz = o[:, 2], a[:, 2]
    o, a = o / r[:, None], a / r[:, None, None]
    b, d, c = _roots(o[:, :2], a[:, :2])
    # Inside the infinite cylinder the ray starts at w = infinity, at the start's own height.
    out = {
        "b": _where(c > 0, b, _constant(_AT_ONCE, b)),
        "d": _where(c > 0, d, jnp.zeros_like(d).at[:, 2].set(1.0)),
    }
    for name, sign in (("top", 1.0), ("bottom", -1.0)):
        b, d, c = _roots(o.at[:, 2].add(-sign * h / r), a)
        out["b_" + name] = _where(c > 0, b, _constant(_AT_ONCE, b))
        out["d_" + name] = d
    return out | {"z": z, "h": h, "dz": dz}


def hit_capsule(p, limit, x, y, ids, bits):
    # Where the ray enters the infinite cylinder decides which piece it can meet first: a ray that
    # enters above the upper rim must pass through the upper dome's sphere to reach anything else.
    d = quadratic(p["d"], x, y)
    side = affine(p["b"], x, y) + jnp.sqrt(_max(d, 0.0))
    z = p["z"] * side + affine(p["dz"], x, y)  # height over the middle, times w
    h = p["h"] * side
    top = z > h
    dome = top | (z < -h)
    d_dome = jnp.where(top, quadratic(p["d_top"], x, y), quadratic(p["d_bottom"], x, y))
    b_dome = jnp.where(top, affine(p["b_top"], x, y), affine(p["b_bottom"], x, y))
    w = jnp.where(dome, b_dome + jnp.sqrt(_max(d_dome, 0.0)), side)
    hit = (d > 0) & (w <= limit) & (~dome | (d_dome > 0))
    return jnp.where(hit, pack(w, ids[0], bits), 0)


# -- cylinders -------------------------------------------------------------------------------------


def prepare_cylinder(o: jax.Array, a: jax.Array, size: jax.Array) -> dict[str, jax.Array]:
    r, h = size[:, 0], size[:, 1]
    b, d, c = _roots(o[:, :2] / r[:, None], a[:, :2] / r[:, None, None])
    entry, far, other = _slab(o[:, 2], a[:, 2], h)
    outside = c > 0
    return {
        "b": b,
        "d": d,
        # Inside the infinite cylinder there is no entry, and the exit is the one positive root.
        "d_min": jnp.where(outside, 0.0, -1.0),
        "floor": jnp.where(outside, -_AT_ONCE, _AT_ONCE),
        "exit_sign": jnp.where(outside, -1.0, 1.0),
        "entry": entry,
        "far": far,
        "other": other,
    }


def hit_cylinder(p, limit, x, y, ids, bits):
    d = quadratic(p["d"], x, y)
    b = affine(p["b"], x, y)
    root = jnp.sqrt(_max(d, 0.0))
    side = pack(_max(b + root, p["floor"]), ids[0], bits)
    cap = pack(affine(p["entry"], x, y), ids[1], bits)
    entry = jnp.minimum(side, cap)
    w = as_float(entry)
    leave = _max(b + p["exit_sign"] * root, _max(affine(p["far"], x, y), affine(p["other"], x, y)))
    return jnp.where((d > p["d_min"]) & (w > leave) & (w <= limit), entry, 0)


# -- boxes -----------------------------------------------------------------------------------------


def prepare_box(o: jax.Array, a: jax.Array, size: jax.Array) -> dict[str, jax.Array]:
    slabs = [_slab(o[:, i], a[:, i], size[:, i]) for i in range(3)]
    entry, far, other = (jnp.stack(c, 1) for c in zip(*slabs, strict=True))
    return {"entry": entry, "far": far, "other": other}


def hit_box(p, limit, x, y, ids, bits):
    entry = pack(affine(p["entry"][0], x, y), ids[0], bits)
    for i in (1, 2):
        entry = jnp.minimum(entry, pack(affine(p["entry"][i], x, y), ids[i], bits))
    leave = affine(p["far"][0], x, y)
    for c in (p["far"][1], p["far"][2], *p["other"]):
        leave = _max(leave, affine(c, x, y))
    w = as_float(entry)
    return jnp.where((w > leave) & (w <= limit), entry, 0)


PREPARE = {
    "plane": prepare_plane,
    "sphere": prepare_sphere,
    "ellipsoid": prepare_ellipsoid,
    "capsule": prepare_capsule,
    "cylinder": prepare_cylinder,
    "box": prepare_box,
}
HIT = {
    "plane": hit_plane,
    "sphere": hit_sphere,
    "ellipsoid": hit_ellipsoid,
    "capsule": hit_capsule,
    "cylinder": hit_cylinder,
    "box": hit_box,
}
