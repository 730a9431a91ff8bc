"""Image augmentation for cloning, on device, per frame of a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def random_shift(rng: jax.Array, frames: jax.Array, pixels: int) -> jax.Array:
    """Pads by repeating the edge and crops at a random place (DrQ, Kostrikov et al. 2021).

    frames uint8 [B,H,W,C]; each frame moves by up to `pixels` in x and in y.
    """
    if pixels == 0:
        return frames
    b, h, w, _ = frames.shape
    moves = jax.random.randint(rng, (2, b, 1), -pixels, pixels + 1)
    rows = jnp.clip(jnp.arange(h) + moves[0], 0, h - 1)
    columns = jnp.clip(jnp.arange(w) + moves[1], 0, w - 1)
    # Two gathers of whole rows, then of pixels: edge padding is the clipped index.
    frames = jnp.take_along_axis(frames, rows[:, :, None, None], axis=1)
    return jnp.take_along_axis(frames, columns[:, None, :, None], axis=2)


def colour_jitter(rng: jax.Array, frames: jax.Array, strength: float) -> jax.Array:
    """Brightness, contrast and a gain per colour channel, each uniform in +-strength.

    Small by intention: a sentence names colours, so hues must stay apart. frames uint8 -> uint8.
    """
    if strength == 0:
        return frames
    b = frames.shape[0]
    keys = jax.random.split(rng, 3)

    def draw(key, shape):
        return jax.random.uniform(key, shape, minval=-strength, maxval=strength)

    brightness = 127.5 * draw(keys[0], (b, 1, 1, 1))
    contrast = 1.0 + draw(keys[1], (b, 1, 1, 1))
    gain = 1.0 + draw(keys[2], (b, 1, 1, frames.shape[-1]))
    x = (frames.astype(jnp.float32) - 127.5) * contrast + 127.5 + brightness
    return jnp.clip(jnp.round(x * gain), 0, 255).astype(jnp.uint8)
