"""Connections between the processes of a mesh, made while all of them are there."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from lrm_jax.run import processes


def connect(mesh: Mesh) -> None:
    """One sum over each set of the mesh's axes, after every process has come here.

    On the CPU a first collective between some devices connects their processes, and fails where one
    comes 30 s after another: a machine that compiles slowly, or a process that has more to read.
    Later ones, reduce-scatter excepted, wait half an hour. All processes have to call this.
    """
    processes.meet()
    wide = [name for name, size in mesh.shape.items() if size > 1]
    for count in range(1, len(wide) + 1):
        for axes in itertools.combinations(wide, count):
            jax.block_until_ready(_sum_over(mesh, axes))


def _sum_over(mesh: Mesh, axes: tuple[str, ...]) -> jax.Array:
    everywhere = PartitionSpec(mesh.axis_names)

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=(), out_specs=everywhere, check_vma=False)
    def summed():
        return jax.lax.psum(jnp.ones(1), axes)

    return summed()
