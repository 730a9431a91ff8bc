"""The processes of one run: which this is, and what they wait for and agree on.

A run of one process never starts JAX here.
"""

from __future__ import annotations

import sys


def count() -> int:
    """How many processes the run has."""
    jax = _joined()
    return 1 if jax is None else jax.process_count()


def is_first() -> bool:
    """Whether this process writes what all share."""
    jax = _joined()
    return jax is None or jax.process_index() == 0


def wait_for_all(where: str) -> None:
    """Returns once every process has come here; `where` says which place, the same for all."""
    if count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"lrm_jax {where}")


def as_first(value: bool) -> bool:
    """`value` as the first process has it."""
    if count() == 1:
        return value
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


def _joined():
    jax = sys.modules.get("jax")
    return jax if jax is not None and jax.distributed.is_initialized() else None
