"""The processes of one run: which this is, and what they wait for and agree on.

A run of one process never starts JAX here.
"""

from __future__ import annotations

import itertools
import sys

from lrm_jax.run import preemption
from lrm_jax.run.errors import UserError

LOOK_MS = 2000  # how often one that waits looks for others that have left
_LEFT = "lrm_jax left/"
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
    """Returns once every process has called this as often as this one; one that computes alone may
    take its time. One that dies ends all, by JAX's heartbeat.

    Collectives are no place to wait at: on the CPU, a first one between some devices fails where
    one process comes there 30 s after another, and a reduce-scatter does so always.

    Raises:
      UserError: another process said that it left (`leave`); `preemption.Terminated` if SIGTERM
        ended it.
    """
    if count() == 1:
        return
    client, meeting = _client(), f"lrm_jax meeting {next(_meetings)}"
    client.key_value_set(f"{meeting}/{_joined().process_index()}", "here")
    for number in range(count()):
        while not _there(client, f"{meeting}/{number}"):
            for key, status in client.key_value_dir_get(_LEFT):
                if int(status) == preemption.STATUS:  # the machine goes: end as the other did
                    raise preemption.Terminated
                left = key.rpartition("/")[2]
                raise UserError(f"process {left} ended with status {status}: see its output")


def leave(status: int) -> None:
    """Tells the others, which may wait for this process, that it ends before its work is done."""
    if count() > 1:
        _client().key_value_set(f"{_LEFT}{_joined().process_index()}", str(status))


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


def _there(client, key: str) -> bool:
    """Whether the key is set, or becomes so before it is time to look around."""
    try:
        client.blocking_key_value_get(key, LOOK_MS)
    except Exception as error:  # jaxlib's, which stands for every kind of status
        if "DEADLINE_EXCEEDED" in str(error):
            return False
        raise
    return True


def _client():
    """JAX's line between processes; there is no public way to it."""
    from jax._src import distributed

    return distributed.global_state.client


def _joined():
    jax = sys.modules.get("jax")
    return jax if jax is not None and jax.distributed.is_initialized() else None
