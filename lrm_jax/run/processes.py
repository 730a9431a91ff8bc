"""The processes of one run: which this is, and what they wait for and agree on.

A run of one process never starts JAX here.
"""

from __future__ import annotations

import itertools
import sys

# A process that dies is noticed by JAX's heartbeat; one that computes alone may take its time.
LONGEST_WAIT_MS = 24 * 3600 * 1000
_meetings = itertools.count(1)  # the same in every process: all of them meet in the same order


def count() -> int:
    """How many processes the run has."""
    jax = _joined()
    return 1 if jax is None else jax.process_count()


def is_first() -> bool:
    """Whether this process writes what all share."""
    jax = _joined()
    return jax is None or jax.process_index() == 0


def meet() -> None:
    """Returns once every process has called this as often as this one.

    Collectives are no place to wait at: on the CPU, a first one between some devices fails where
    one process comes there 30 s after another, and a reduce-scatter does so always.
    """
    if count() > 1:
        from orbax.checkpoint import multihost

        key = f"lrm_jax meeting {next(_meetings)}"
        multihost.get_barrier_sync_fn()(key=key, timeout_ms=LONGEST_WAIT_MS)


def wait_for_all(where: str) -> None:
    """Returns once every process has come here; `where` says which place, the same for all."""
    if count() > 1:
        from jax.experimental import multihost_utils

        meet()
        multihost_utils.sync_global_devices(f"lrm_jax {where}")


def as_first(value: bool) -> bool:
    """`value` as the first process has it."""
    if count() == 1:
        return value
    import numpy as np
    from jax.experimental import multihost_utils

    meet()
    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


def _joined():
    jax = sys.modules.get("jax")
    return jax if jax is not None and jax.distributed.is_initialized() else None
