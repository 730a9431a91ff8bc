"""How a door learns that its run has several processes: the variable LRM_JAX_PROCESSES."""

from __future__ import annotations

import os

from lrm_jax.run.errors import UserError

VARIABLE = "LRM_JAX_PROCESSES"


def join_from_environment() -> None:
    """Joins the other processes of the run if LRM_JAX_PROCESSES says that there are any.

    "auto" leaves everything to JAX, which finds it on Cloud TPU and under Slurm;
    "HOST:PORT,COUNT,NUMBER" names the address of process 0, how many there are, and which this is.
    UserError if it is something else, or the others do not answer. Call it before anything asks JAX
    for devices.
    """
    given = os.environ.get(VARIABLE, "").strip()
    if not given:
        return
    from lrm_jax.parallel.mesh import start_processes

    if given == "auto":
        start_processes()
        return
    parts = given.split(",")
    if len(parts) != 3 or not all(p.strip().isdigit() for p in parts[1:]):
        raise UserError(f"{VARIABLE} is {given!r}: give auto, or HOST:PORT,COUNT,NUMBER")
    start_processes(parts[0].strip(), int(parts[1]), int(parts[2]))
