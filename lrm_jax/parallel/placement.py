"""Host values on the devices of a mesh, of all processes."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding


def put(tree: Any, shardings: Any) -> Any:
    """`tree` as global arrays; every process holds the same values and gives its devices' shards.

    Args:
      tree: arrays that this process can read, or global ones.
      shardings: one for all leaves, or a tree of them.
    """
    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def one(value, sharding):
        local = not isinstance(value, jax.Array) or value.is_fully_addressable
        if not local or (jax.process_count() == 1 and isinstance(value, jax.Array)):
            return jax.device_put(value, sharding)
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(one, tree, shardings)


def whole(tree: Any, mesh: Mesh) -> Any:
    """`tree` copied to every device, so that each process can read all of it."""
    home = NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda x: x, out_shardings=home)(tree)


def gathered(tree: Any) -> Any:
    """`tree` as numpy arrays, also where other processes hold parts of it; all call it together."""

    def one(value):
        if isinstance(value, jax.Array) and not value.is_fully_addressable:
            value = whole(value, value.sharding.mesh)
        return np.asarray(value)

    return jax.tree.map(one, tree)
