"""One process of several: joins the others, takes the loss of the tiny network, prints it.

    python tests/parallel/one_process.py COORDINATOR COUNT NUMBER

There are four devices in all; with COUNT 1 this process has them all.
"""

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={4 // int(sys.argv[2])}"

from pathlib import Path

import lrm_jax  # noqa: F401 - before jax

# isort: split
import jax
import numpy as np

from lrm_jax.parallel import rules
from lrm_jax.parallel.mesh import batch_sharding, make_mesh, replicated, start_processes
from lrm_jax.qwen3_vl import sharding

sys.path.insert(0, str(Path(__file__).parent))
import tiny

coordinator, count, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if count > 1:
    start_processes(coordinator, count, number)
mesh = make_mesh("data=2,fsdp=2")
assert jax.process_count() == count and mesh.size == 4


def put(tree, homes):
    """Global arrays; each process gives the shards of its own devices."""

    def one(value, home):
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, home, lambda index: value[index])

    return jax.tree.map(one, tree, homes)


def everywhere(tree, home):
    return put(tree, jax.tree.map(lambda _: home, tree))


adapters, base = tiny.adapters(), tiny.base()
arguments = (
    put(adapters, rules.plan(adapters, sharding.LORA, mesh).shardings),
    put(base, rules.plan(base, sharding.PARAMS, mesh).shardings),
    everywhere(tiny.tables(), replicated(mesh)),
    everywhere(tiny.rows(), batch_sharding(mesh)),
)
quick = {"xla_backend_optimization_level": 0}
with jax.default_matmul_precision("highest"), jax.set_mesh(mesh):
    step = jax.jit(tiny.loss, out_shardings=replicated(mesh), compiler_options=quick)
    print(f"loss {float(step(*arguments))!r}", flush=True)
