"""Several adapters as one: stacked on a leading axis, for batches whose rows pick their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from lrm_jax.lora.sites import get, put
from lrm_jax.lora.transform import factors_of

Tree = dict[str, Any]


def stack(adapters: Sequence[Tree]) -> Tree:
    """The "lora" collection of n adapters; row i of a batch uses number `adapter_ids[i]`, -1 none.

    Behind the layer axis of a scanned stack, where there is one, come the adapters:
      a float32 [.., n, in, r], b float32 [.., n, r, out], scale float32 [.., n].
    r is the largest rank at the place; smaller ones are padded with zeros, and an adapter without
    factors there has zeros. Dropout is left out: stacked adapters are for inference.

    Only factors are stacked. Replacements (adapter["params"]) stay with the caller.
    """
    if not adapters:
        raise ValueError("there are no adapters to stack")
    out: Tree = {}
    paths = {path for adapter in adapters for path, _ in factors_of(adapter["lora"])}
    for path in sorted(paths):
        pairs = [get(adapter["lora"], path) for adapter in adapters]
        rank = max(pair["a"].shape[-1] for pair in pairs if pair)
        some = next(pair for pair in pairs if pair)
        *lead, fan_in, _ = some["a"].shape
        zero = {
            "a": jnp.zeros((*lead, fan_in, 0)),
            "b": jnp.zeros((*lead, 0, some["b"].shape[-1])),
            "scale": jnp.zeros(lead),
        }

        def padded(pair, leaf, axis, rank=rank):
            widths = [(0, 0)] * pair[leaf].ndim
            widths[axis] = (0, rank - pair[leaf].shape[axis])
            return jnp.pad(pair[leaf], widths)

        pairs = [pair or zero for pair in pairs]
        put(out, (*path, "a"), jnp.stack([padded(p, "a", -1) for p in pairs], -3))
        put(out, (*path, "b"), jnp.stack([padded(p, "b", -2) for p in pairs], -3))
        scales = [jnp.broadcast_to(jnp.float32(p.get("scale", 1.0)), lead) for p in pairs]
        put(out, (*path, "scale"), jnp.stack(scales, -1))
    return out
