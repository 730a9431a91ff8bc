"""One of two processes, the second of which comes late to the mesh and again to a sum.

    python tests/parallel/late.py SECONDS COORDINATOR COUNT NUMBER
"""

import os
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import lrm_jax  # noqa: F401 - before jax

# isort: split
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lrm_jax.parallel.mesh import make_mesh, start_processes

seconds, coordinator, count, number = float(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
start_processes(coordinator, count, number)
jax.devices()
if number == 1:
    time.sleep(seconds)
mesh = make_mesh("data=2,fsdp=2")
values = np.arange(16.0, dtype=np.float32).reshape(4, 4)
home = NamedSharding(mesh, PartitionSpec("data", "fsdp"))
cut = jax.make_array_from_callback(values.shape, home, lambda index: values[index])
columns = jax.jit(lambda x: x.sum(0), out_shardings=NamedSharding(mesh, PartitionSpec("fsdp")))
columns = columns.lower(cut).compile()
if number == 1:
    time.sleep(seconds)
for shard in columns(cut).addressable_shards:
    np.testing.assert_array_equal(shard.data, values.sum(0)[shard.index])
print("met", flush=True)
