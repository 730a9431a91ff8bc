"""The natural-gradient step: the policy moves where a given KL buys most of the objective.

    d = (F + damping * lambda I)^-1 g        g: gradient of the objective; F: Fisher information
    step = -d sqrt(2 kl / (d^T F d))         so that KL(old || new) is kl to second order

after Kakade (2001), with conjugate gradients as in TRPO (Schulman et al. 2015, appendix C).
lambda = g^T F g / g^T g, the curvature along the gradient, makes `damping` a pure number.

With rewards that a thousand decisions carry to few of them, a batch's gradient is nearly all
noise; what a step then gains for the KL that it spends depends on the metric. Adam gives each
weight of the last layer the same stride, though these move every action the most and the reward the
least; the Fisher metric does not. `benchmarks.directions` measures it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def inner(a: Tree, b: Tree) -> jax.Array:
    """Sum over all leaves of a * b, float32 []."""
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)), jnp.float32(0))


def fisher_product(divergence: Callable[[Tree], jax.Array], params: Tree) -> Callable[[Tree], Tree]:
    """v -> F v, with F the Hessian at `params` of `divergence(params')`, a mean KL(params ||
    params') []."""
    slope = jax.grad(divergence)
    return lambda v: jax.jvp(slope, (params,), (v,))[1]


def natural_step(
    gradient: Tree,
    product: Callable[[Tree], Tree],
    kl: float | jax.Array,
    iterations: int = 10,
    damping: float = 0.1,
) -> Tree:
    """What to add to the parameters, like `gradient`; zeros where the gradient is zero.

    Args:
      gradient: of the loss. product: v -> F v. kl: of the step, in nats for each decision.
      iterations: of conjugate gradients, each one product. damping: as above.
    """
    size = jnp.maximum(inner(gradient, gradient), 1e-30)
    curvature = inner(gradient, product(gradient)) / size

    def damped(v):
        return jax.tree.map(lambda f, x: f + damping * curvature * x, product(v), v)

    # Of unit length: conjugate gradients compare with the norm, and float32 squares of small
    # gradients would vanish.
    unit = jax.tree.map(lambda g: g / jnp.sqrt(size), gradient)
    direction, _ = jax.scipy.sparse.linalg.cg(damped, unit, maxiter=iterations, tol=1e-4)
    spent = inner(direction, product(direction)) / 2.0
    length = jnp.where(spent > 0, jnp.sqrt(kl / jnp.maximum(spent, 1e-30)), 0.0)
    return jax.tree.map(lambda d: -length * d, direction)


def natural_steps(
    params: Tree,
    loss: Callable[[Tree], jax.Array],
    divergence: Callable[[Tree], Callable[[Tree], jax.Array]],
    kl: float | jax.Array,
    steps: int = 1,
    iterations: int = 10,
    damping: float = 0.1,
) -> tuple[Tree, jax.Array]:
    """Steps that together move `params` by about `kl` -> params, norm of the first gradient [].

    Args:
      loss: params -> []. divergence: params -> (params' -> mean KL(params || params') []).
      kl: each step has kl / steps^2: steps of one loss are nearly parallel, and KL is quadratic.
      iterations, damping: see `natural_step`.
    """

    def step(i, carry):
        params, norm = carry
        gradient = jax.grad(loss)(params)
        product = fisher_product(divergence(params), params)
        move = natural_step(gradient, product, kl / steps**2, iterations, damping)
        norm = jnp.where(i == 0, jnp.sqrt(inner(gradient, gradient)), norm)
        return jax.tree.map(jnp.add, params, move), norm

    return jax.lax.fori_loop(0, steps, step, (params, jnp.float32(0.0)))
