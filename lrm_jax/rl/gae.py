"""Generalised advantage estimation (Schulman et al. 2016) with masks and episode ends."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def gae(
    rewards: jax.Array,
    values: jax.Array,
    *,
    terminated: jax.Array,
    truncated: jax.Array,
    mask: jax.Array,
    discount: float = 0.99,
    decay: float = 0.95,
    bootstrap_truncated: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Advantages and value targets.

        delta_t = r_t + discount * c_t V_{t+1} - V_t
        A_t     = delta_t + discount * decay * k_t A_{t+1},        R_t = A_t + V_t

    c_t = 0 where the episode terminated in step t, and where it was cut off unless
    `bootstrap_truncated`; k_t = 0 at either end, and before a masked step. A masked step has A = 0
    and R = V. (Brax's compute_gae treats a truncated step as our masked one.)

    Args:
      rewards: float [T,N]; non-finite numbers are allowed where the mask is False.
      values: float [T+1,N]; V of the state before each step, and of the last state.
      terminated, truncated, mask: bool [T,N].

    Returns:
      advantages, returns: float [T,N]; no gradient flows through them.
    """
    ended = terminated | truncated
    cut = terminated if bootstrap_truncated else ended
    continues = 1.0 - cut.astype(values.dtype)
    carries = 1.0 - ended.astype(values.dtype)
    delta = rewards + discount * continues * values[1:] - values[:-1]
    delta = jnp.where(mask, delta, 0.0)

    def backward(advantage, step):
        delta, carry, valid = step
        advantage = jnp.where(valid, delta + discount * decay * carry * advantage, 0.0)
        return advantage, advantage

    start = jnp.zeros_like(values[0])
    _, advantages = jax.lax.scan(backward, start, (delta, carries, mask), reverse=True)
    return jax.lax.stop_gradient((advantages, advantages + values[:-1]))


def unexplained(values: jax.Array, returns: jax.Array, mask: jax.Array) -> jax.Array:
    """Var(R - V) / Var(R) over the valid ones, at most 1, float32 []: the share of the returns'
    variance that the critic missed. 1 if R does not vary. Any one shape for all three."""
    count = jnp.maximum(mask.sum(), 1)

    def variance(x):
        mean = jnp.sum(jnp.where(mask, x, 0.0)) / count
        return jnp.sum(jnp.where(mask, jnp.square(x - mean), 0.0)) / count

    missed, total = variance(returns - values), variance(returns)
    return jnp.where(total > missed, missed / jnp.maximum(total, 1e-30), 1.0)
