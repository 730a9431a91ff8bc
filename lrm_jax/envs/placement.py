"""Where things lie at reset: random places with gaps between them."""

import jax
import jax.numpy as jnp

Range = tuple[tuple[float, float], tuple[float, float]]  # (low, high) of x, then of y [m]


def scatter(rng: jax.Array, ranges: Range, count: int, gap: float, tries: int = 512) -> jax.Array:
    """Places float32 [count,2] in a rectangle, pairwise more than ``gap`` apart [m].

    The first of ``tries`` uniform draws that keeps the gap; if none does, the widest.
    """
    (x0, x1), (y0, y1) = ranges
    low, high = jnp.array([x0, y0]), jnp.array([x1, y1])
    draws = jax.random.uniform(rng, (tries, count, 2), minval=low, maxval=high)
    gaps = jnp.linalg.norm(draws[:, :, None] - draws[:, None], axis=-1)
    gaps = jnp.min(gaps + 10.0 * jnp.eye(count), axis=(1, 2))
    best = jnp.where(jnp.any(gaps > gap), jnp.argmax(gaps > gap), jnp.argmax(gaps))
    return draws[best]


def free_pose(place: jax.Array, height: float, yaw: jax.Array) -> jax.Array:
    """A free joint's seven numbers: place [2] and height in metres, turned by yaw [rad] about z."""
    pose = [place[0], place[1], height, jnp.cos(yaw / 2), 0, 0, jnp.sin(yaw / 2)]
    return jnp.stack([jnp.asarray(v, jnp.float32) for v in pose])
