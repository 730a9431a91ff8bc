"""Attention kernels that JAX brings: splash attention for TPUs (Pallas), cuDNN's for NVIDIA GPUs.

Both never write the scores [B, H, S, S] to memory. Splash also skips blocks that its mask, if it is
known when the program is compiled, leaves empty.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec

from lrm_jax.parallel.mesh import AXES
from lrm_jax.parallel.rows import axes_present

LANES = 128  # a TPU register's: sequences and head sizes come in multiples of it
LARGEST_BLOCK = 512


def splash(query, key, value, mask, *, rows: tuple[str, ...], interpret: bool = False) -> jax.Array:
    """`attention.dot_product_attention` with JAX's splash kernel; S = T.

    Lengths and head sizes are padded to multiples of 128 (so 320 tokens cost what 384 do, and heads
    of 72 numbers what 128 do); padding is a segment of its own, which nobody else looks at. Under a
    mesh every device attends for its own rows, cut over the axes `rows`, and for its own heads, cut
    over the axes that are left.

    Args:
      interpret: run the kernel step by step on any device, for tests.
    Raises:
      ValueError: a mask that is an array, or keys of another length than the queries.
    """
    if mask is not None and not hasattr(mask, "causal"):
        raise ValueError("splash attention needs a Mask: it cannot read an array of every row")
    if query.shape[1] != key.shape[1]:
        raise ValueError(f"{query.shape[1]} queries cannot splash over {key.shape[1]} keys")
    batch, length, _, dim = query.shape
    query = (query.astype(jnp.float32) * dim**-0.5).astype(query.dtype)
    valid = None if mask is None or mask.valid is None else jnp.asarray(mask.valid)
    missing = -length % LANES
    if valid is None and missing:
        valid = jnp.ones((1, length), bool)
    if valid is not None:
        valid = jnp.broadcast_to(valid, (batch, length))
        valid = jnp.pad(valid, ((0, 0), (0, missing))).astype(jnp.int32)
    pattern = None if mask is None else mask.pattern
    if pattern is not None:
        math = np if isinstance(pattern, np.ndarray) else jnp
        pattern = math.pad(pattern, ((0, missing),) * 2) | math.eye(length + missing, dtype=bool)
    known = pattern if isinstance(pattern, np.ndarray) else None
    causal = mask is not None and mask.causal

    def pad(x):
        x = jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, -dim % LANES)))
        return jnp.swapaxes(x, 1, 2)

    def attend(query, key, value, valid, pattern):
        kernel = _kernel(query.shape, causal, known if pattern is None else pattern, interpret)

        def row(query, key, value, valid):
            segments = None if valid is None else splash_attention.SegmentIds(valid, valid)
            if pattern is None:
                return kernel(query, key, value, segment_ids=segments)

            # A mask that comes with the arguments would be copied for every head: the kernel is
            # that of one head, mapped over those of a group, and over groups.
            def head(query, key, value):
                return kernel(query[None], key[None], value[None], segment_ids=segments)[0]

            groups = query.reshape(len(key), -1, *query.shape[1:])
            group = jax.vmap(head, in_axes=(0, None, None))
            return jax.vmap(group)(groups, key, value).reshape(query.shape)

        return jax.vmap(row)(query, key, value, valid)

    over_rows = axes_present(rows)
    over_heads = axes_present(tuple(a for a in AXES if a not in rows))
    if over_rows or over_heads:
        own = PartitionSpec(over_rows or None, over_heads or None)
        attend = jax.shard_map(
            attend, in_specs=(own, own, own, PartitionSpec(over_rows or None), PartitionSpec()),
            out_specs=own, check_vma=False,
        )  # fmt: skip
    out = attend(*map(pad, (query, key, value)), valid, None if known is not None else pattern)
    return jnp.swapaxes(out, 1, 2)[:, :length, :, :dim]


def _kernel(shape: tuple[int, ...], causal: bool, pattern: Any, interpret: bool) -> Any:
    """The kernel for queries [B, H, S, D], or for one head of them if `pattern` is a JAX array; it
    may be numpy (then its empty blocks are skipped) or None."""
    _, heads, length, _ = shape
    block = max(b for b in range(LANES, LARGEST_BLOCK + 1, LANES) if length % b == 0)
    sizes = splash_attention.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block,
        block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    if pattern is not None and causal:
        pattern = pattern & np.tril(np.ones((length, length), bool))
    if pattern is None:
        kind = splash_attention.CausalMask if causal else splash_attention.FullMask
        one: Any = kind((length, length))
    elif isinstance(pattern, np.ndarray):
        one = splash_attention.NumpyMask(pattern)
    else:
        kernel = splash_attention.make_splash_mha(
            pattern[None], block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
        )
        # JAX 0.10.2 turns this flag into an array and then asks Python whether it is true.
        for name in ("fwd_mask_info", "dq_mask_info", "dkv_mask_info"):
            setattr(kernel, name, getattr(kernel, name)._replace(is_dynamic_mask=True))
        return kernel
    return splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([one] * heads), block_sizes=sizes, head_shards=1,
        q_seq_shards=1, interpret=interpret,
    )  # fmt: skip


def fused(query, key, value, mask: jax.Array | None, backend: str) -> jax.Array:
    """`attention.dot_product_attention` with `jax.nn.dot_product_attention`.

    Args:
      mask: bool, broadcastable to [B, S, T].
      backend: "cudnn", for bfloat16 and float16; or "xla".
    """
    if mask is not None:
        mask = jnp.broadcast_to(mask, (query.shape[0], query.shape[1], key.shape[1]))[:, None]
    return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation=backend)
