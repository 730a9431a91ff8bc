"""A boundary that XLA's fusion does not cross."""

from collections.abc import Callable

import jax
from jax.experimental.xla_metadata import set_xla_metadata


def apart(function: Callable) -> Callable:
    """`function`, compiled as a unit of its own inside of the program that calls it.

    XLA for CPUs drops `optimization_barrier` before it fuses, and then computes a cheap-looking
    producer anew for each element of its consumer: unpacking three bytes from a word would cost
    three images. A call that is not inlined stays a boundary, also under `jax.vmap` and in loops.
    Elsewhere the barrier holds.
    """

    jitted = jax.jit(function)  # traced once for both

    def called(*args):
        return set_xla_metadata(jitted(*args), inlineable="false")

    def barred(*args):
        return jax.lax.optimization_barrier(jitted(*args))

    return lambda *args: jax.lax.platform_dependent(*args, cpu=called, default=barred)
