"""From a checkpoint's tensors straight to the shards of a leaf, without the whole leaf on the host.

A decoder's stacked kernel is gigabytes (3.3 GB in Qwen3-VL-8B); a shard of it is read layer by
layer, and only the rows and columns that the shard holds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.qwen3_vl.names import Leaf

# A stacked shard larger than this is put together on its device, one layer at a time.
STAGING_BYTES = 256 << 20

Index = tuple[slice, ...]
Read = Callable[[str, Index], np.ndarray]


def assemble(
    leaf: Leaf, dtype: np.dtype, sharding: jax.sharding.Sharding | None, read: Read
) -> jax.Array:
    """The leaf as a global array; this process reads the shards of its own devices, each once.

    Args:
      leaf: which tensors, and how they lie in the tree.
      dtype: of the result.
      sharding: of the leaf [*leaf.tree_shape]; None for one shard on the default device, to which
        it is then not tied (an uncommitted array).
      read: (tensor's name, one slice a dimension of the file's tensor) to that part of it.
    Returns:
      `dtype` [*leaf.tree_shape]. On the host there is never more than one shard, or one layer of
      one shard where shards exceed `STAGING_BYTES`, besides what `read` itself needs.
    """
    shape = leaf.tree_shape
    holders: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    if sharding is None:
        holders[tuple((0, n) for n in shape)] = [None]
    else:
        for device, index in sharding.addressable_devices_indices_map(shape).items():
            bounds = tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
            holders.setdefault(bounds, []).append(device)
    shards = []
    for bounds, devices in holders.items():
        size = math.prod(stop - start for start, stop in bounds) * dtype.itemsize
        build = _on_device if leaf.stacked and size > STAGING_BYTES else _on_host
        shards += build(leaf, dtype, bounds, devices, read)
    if sharding is None:
        return shards[0]
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _part(leaf: Leaf, name: str, bounds, read: Read) -> np.ndarray:
    """The part of one tensor that lies within `bounds` of the (unstacked) leaf."""
    index = tuple(slice(*b) for b in bounds)
    if not leaf.is_kernel:
        return read(name, index)
    rows, columns = index  # of [in, out]; the file has [out, in...]
    if len(leaf.shape) == 2:
        return read(name, (columns, rows)).T
    whole = tuple(slice(0, n) for n in leaf.shape[1:])
    part = read(name, (columns, *whole))
    return part.reshape(part.shape[0], -1).T[rows]


def _on_host(leaf: Leaf, dtype, bounds, devices, read: Read) -> list[jax.Array]:
    array = np.empty([stop - start for start, stop in bounds], dtype)
    if leaf.stacked:
        for place, name in enumerate(leaf.names[slice(*bounds[0])]):
            array[place] = _part(leaf, name, bounds[1:], read)
    else:
        array[...] = _part(leaf, leaf.names[0], bounds, read)
    return [jax.device_put(array, device) for device in devices]


def _on_device(leaf: Leaf, dtype, bounds, devices, read: Read) -> list[jax.Array]:
    shape = [stop - start for start, stop in bounds]
    shards = [jnp.zeros(shape, dtype, device=device) for device in devices]
    for place, name in enumerate(leaf.names[slice(*bounds[0])]):
        layer = np.ascontiguousarray(_part(leaf, name, bounds[1:], read), dtype)
        shards = [
            _write(shard, jax.device_put(layer, device), np.int32(place))
            for shard, device in zip(shards, devices, strict=True)
        ]
        jax.block_until_ready(shards)  # or the host would hold every layer that is under way
    return shards


@functools.partial(jax.jit, donate_argnums=0)
def _write(stack: jax.Array, layer: jax.Array, place: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, layer, place, axis=0)
