"""Work on independent rows, the shards of a mesh side by side.

Two ways to say that rows never meet. `apart` hands each device its own rows and nothing else:
physics, whose loops would otherwise ask all devices each turn whether any row goes on.
`side_by_side` keeps the compiler's automatic partition of everything but the rows: a network whose
parameters are cut, run by index arithmetic (micro-batches, features that rows share) that stays
within a shard.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

# Mesh axes that an outer `side_by_side` has already spent on the shards.
_spent: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("spent", default=())


def axes_present(axes: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `axes` that the mesh that is set has (`with jax.set_mesh(mesh):`) and that are not
    spent."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ()
    return tuple(a for a in axes if a in mesh.axis_names and a not in _spent.get())


def shards(axes: tuple[str, ...]) -> int:
    """Into how many shards the mesh that is set cuts rows along `axes`; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[a] for a in axes_present(axes))


def apart(function: Callable[..., Any], axes: tuple[str, ...]) -> Callable[..., Any]:
    """`function` of arrays whose first axis is rows, run by each device on its own rows.

    All arguments and results are trees of arrays [N, ...] with N a multiple of `shards(axes)`; row
    i of the results may depend on row i of the arguments alone. Without a mesh it is `function`.
    """

    def run(*arguments):
        names = axes_present(axes)
        if not names:
            return function(*arguments)
        rows = PartitionSpec(names)
        # The other axes of the mesh hold copies of the rows, which the check cannot know.
        return jax.shard_map(function, in_specs=rows, out_specs=rows, check_vma=False)(*arguments)

    return run


def side_by_side(function: Callable[..., Any], axes: tuple[str, ...], axis: int = 0):
    """`function` of arrays whose axis `axis` is rows, each shard's rows in a call of its own.

    All arguments and results are trees of arrays with N rows, N a multiple of `shards(axes)`.
    `function` sees N / shards(axes) rows and may mix them. Without a mesh it is `function`.
    """

    def run(*arguments):
        names = axes_present(axes)
        if not names:
            return function(*arguments)
        parts = shards(axes)

        def cut(x):
            return x.reshape(*x.shape[:axis], parts, -1, *x.shape[axis + 1 :])

        def join(x):
            return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

        mapped = jax.vmap(function, in_axes=axis, out_axes=axis, spmd_axis_name=names)
        with _spending(names):
            return jax.tree.map(join, mapped(*jax.tree.map(cut, arguments)))

    return run


@contextlib.contextmanager
def _spending(names: tuple[str, ...]):
    token = _spent.set((*_spent.get(), *names))
    try:
        yield
    finally:
        _spent.reset(token)
