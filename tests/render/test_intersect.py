"""Each kind of geom alone: depths along random rays against `mujoco.mju_rayGeom`."""

import functools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrm_jax.render import intersect

RAYS = 256
BITS = 6
KINDS = {
    "plane": mujoco.mjtGeom.mjGEOM_PLANE,
    "sphere": mujoco.mjtGeom.mjGEOM_SPHERE,
    "capsule": mujoco.mjtGeom.mjGEOM_CAPSULE,
    "ellipsoid": mujoco.mjtGeom.mjGEOM_ELLIPSOID,
    "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
    "box": mujoco.mjtGeom.mjGEOM_BOX,
}
NEAR = 1e-3


@functools.cache
def _depths(name: str):
    """jitted (o [3], a [3,3], size [3], x [R], y [R]) -> depths [R], infinite for misses."""

    def depths(o, a, size, x, y):
        p = {k: v[0] for k, v in intersect.PREPARE[name](o[None], a[None], size[None]).items()}
        key = intersect.HIT[name](p, 1 / NEAR, x[None], y[None], (1, 2, 3), BITS)[0]
        w = intersect.as_float(jnp.maximum(key, 0))
        return jnp.where(w > 0, 1 / w, jnp.inf)

    return jax.jit(depths)


def _oracle(kind, mat, pos, size, start, directions) -> np.ndarray:
    """Depths [R] by MuJoCo; infinite where it misses or, for solids, where the start is inside."""

    def shoot(direction, flip=False):
        turned = mat @ np.diag([1.0, -1, -1]) if flip else mat
        return mujoco.mju_rayGeom(pos, turned.ravel(), size, start, direction, kind, None)

    out = np.array([shoot(d) for d in directions])
    if kind == KINDS["plane"]:  # MuJoCo's rays meet the front only, its renderer shows both sides
        back = np.array([shoot(d, flip=True) for d in directions])
        out = np.maximum(out, back)
    else:
        # From inside of a convex solid every ray leaves it, so one and its opposite both hit.
        if shoot(directions[0]) >= 0 and shoot(-directions[0]) >= 0:
            out[:] = -1
    return np.where(out < 0, np.inf, out)


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), distance=st.floats(0.05, 3.0))
def test_depths_along_random_rays(name, seed, distance):
    rng = np.random.default_rng(seed)
    kind = KINDS[name]
    mat, camera = (np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(2))
    mat, camera = (m * np.sign(np.linalg.det(m)) for m in (mat, camera))
    size = np.exp(rng.uniform(np.log(0.02), np.log(0.5), 3))
    pos = rng.normal(size=3)
    # Aim at the geom: its centre is on the optical axis, rays pass within about twice its size.
    start = pos + distance * camera[:, 2]
    x, y = rng.normal(size=(2, RAYS)) * np.max(size) / distance
    directions = np.stack([x, y, -np.ones(RAYS)], 1) @ camera.T

    o = mat.T @ (start - pos)
    a = mat.T @ camera @ np.diag([1.0, 1, -1])
    args = (np.asarray(v, np.float32) for v in (o, a, size, x, y))
    got = np.asarray(_depths(name)(*args))

    want = _oracle(kind, mat, pos, size, start, directions)
    # Left out: rays that graze the geom, that is, hit it at 1 + 1e-3 times its size but not at
    # 1 - 1e-3, and starts that close to its surface.
    larger, smaller = (
        _oracle(kind, mat, pos, size * s, start, directions) for s in (1 + 1e-3, 1 - 1e-3)
    )
    clear = (np.isfinite(larger) == np.isfinite(smaller)) & ~(want < 2 * NEAR)
    np.testing.assert_array_equal(np.isfinite(got[clear]), np.isfinite(want[clear]))
    # Clear rays have sqrt(D) >= sqrt(2e-3) r/o w, D carries a few roundings of B^2 ~ w^2: with
    # o/r <= 150 the error of w is below 4 * 6e-8 / (2 * 0.045 / 150) = 4e-4; packing adds 2^-17.
    hit = clear & np.isfinite(want)
    np.testing.assert_allclose(got[hit], want[hit], rtol=5e-4)


def test_packed_hits_order_by_nearness_and_carry_the_surface():
    w = jnp.array([1e-3, 0.5, 0.5001, 2.0, 900.0])
    key = intersect.pack(w, 37, BITS)
    assert np.all(np.diff(np.asarray(key)) > 0)
    assert np.all(np.asarray(key) & (2**BITS - 1) == 37)
    np.testing.assert_allclose(intersect.as_float(key), w, rtol=2.0 ** (BITS - 23))
    assert np.all(np.asarray(intersect.pack(-w, 37, BITS)) < 0)
