"""The action expert of the flow head: velocities of noisy chunks, and the noise of each step.

    velocity: [what is seen] + [noisy chunk] -> residual blocks, each scaled and shifted by the
              time and what is seen (adaptive LayerNorm, Peebles & Xie 2023) -> velocity
    noise:    [what is seen] + [time] -> tanh -> raw log-std, on top of one number a dimension

The noise network does not see the noisy chunk, and its last layer starts at zero: before
refinement every step has the deviation that cloning measured.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.policies.config import PolicyConfig, raw_std

# Uniform: a program of many truncated normals takes long to compile.
Dense = partial(nn.Dense, kernel_init=nn.initializers.lecun_uniform())


def time_features(times: jax.Array, size: int) -> jax.Array:
    """times float [...] in [0, 1] -> sines and cosines float32 [..., size], periods 2 to 1/16."""
    frequencies = np.float32(2 * np.pi) * np.geomspace(0.5, 16.0, size // 2).astype(np.float32)
    angles = times[..., None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


class Velocity(nn.Module):
    """seen [B,D], chunks [B,K,C,A], times [K] or [B,K] -> velocity [B,K,C,A]."""

    config: PolicyConfig

    @nn.compact
    def __call__(self, seen, chunks, times):
        f = self.config.flow
        # What is seen is the same for all K: its layer runs once.
        x = Dense(f.hidden, name="seen")(seen)[:, None]
        x = x + Dense(f.hidden, use_bias=False, name="chunk")(
            chunks.reshape(*chunks.shape[:2], -1)
        )
        clock = Dense(f.hidden, name="clock")(time_features(times, f.time_size))
        state = nn.silu(clock + Dense(f.hidden, name="context")(seen)[:, None])
        small = nn.initializers.normal(0.02)
        for i in range(f.blocks):
            film = Dense(2 * f.hidden, kernel_init=small, name=f"film_{i}")(state)
            scale, shift = jnp.split(film, 2, -1)
            y = nn.LayerNorm(use_fast_variance=False, name=f"norm_{i}")(x) * (1.0 + scale) + shift
            y = nn.silu(Dense(f.hidden, name=f"in_{i}")(y))
            x = x + Dense(f.hidden, name=f"out_{i}")(y)
        x = nn.silu(nn.LayerNorm(use_fast_variance=False, name="norm")(x))
        size = chunks.shape[-2] * chunks.shape[-1]
        flat = Dense(size, kernel_init=nn.initializers.normal(0.01), name="velocity")(x)
        return flat.reshape(chunks.shape)


class Noise(nn.Module):
    """seen [B,D], times [K] or [B,K] -> correction of the raw log-std [B,K,A], 0 at the start."""

    config: PolicyConfig

    @nn.compact
    def __call__(self, seen, times):
        f = self.config.flow
        clock = Dense(f.noise_hidden, name="clock")(time_features(times, f.time_size))
        x = nn.tanh(clock + Dense(f.noise_hidden, name="seen")(seen)[:, None])
        return nn.Dense(
            self.config.action_size, kernel_init=nn.initializers.zeros, use_bias=False, name="std"
        )(x)


class Expert(nn.Module):
    """Velocities and noise of chunks; see the module docstring."""

    config: PolicyConfig

    def setup(self):
        c = self.config
        self.velocity = Velocity(c)
        self.noise = Noise(c)
        self.raw_std = self.param(
            "raw_std", lambda _: raw_std(jnp.full((c.action_size,), c.init_std), c)
        )

    def __call__(self, seen, chunks, times):
        """-> velocity [B,K,C,A] and raw log-std [B,K,A]."""
        return self.velocity(seen, chunks, times), self.raw_std + self.noise(seen, times)
