"""The device mesh (data, fsdp, tensor) and the start of several processes.

data: batch rows, parameters copied. fsdp: batch rows, parameters cut. tensor: heads and inner
widths cut, rows shared. The order is that of the devices: tensor neighbours are nearest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lrm_jax.parallel import rows
from lrm_jax.parallel.meeting import connect
from lrm_jax.run.errors import UserError, did_you_mean
from lrm_jax.run.platform import backend_started, widen_thread_pool

AXES = ("data", "fsdp", "tensor")
ROW_AXES = ("data", "fsdp")  # what the rows of a batch are cut over


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices along each axis; -1, at most once, takes all that are left."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1

    def __post_init__(self):
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            if size < 1 and size != -1:
                raise UserError(f"mesh: {name}={size} must be positive, or -1 for the rest")
        if list(sizes.values()).count(-1) > 1:
            raise UserError("mesh: only one axis may be -1 (the rest of the devices)")

    @classmethod
    def parse(cls, text: str) -> MeshConfig:
        """Reads "data=2,fsdp=-1"; an axis that is not named is 1, fsdp the rest if none is -1.

        Raises:
          UserError: an unknown axis, one named twice, no number, more than one -1.
        """
        sizes: dict[str, int] = {}
        for part in filter(None, (p.strip() for p in text.split(","))):
            name, _, number = (p.strip() for p in part.partition("="))
            if name not in AXES:
                raise UserError(f"mesh: unknown axis {name!r}; {did_you_mean(name, AXES)}")
            if name in sizes:
                raise UserError(f"mesh: {name} is given twice in {text!r}")
            try:
                sizes[name] = int(number)
            except ValueError:
                raise UserError(f"mesh: {part!r} is not AXIS=NUMBER, as in fsdp=4") from None
        rest = 1 if -1 in sizes.values() else -1
        return cls(**{"data": 1, "fsdp": rest, "tensor": 1, **sizes})

    @property
    def known(self) -> int:
        """The product of the sizes that are given: the fewest devices that will do."""
        return math.prod(s for s in (self.data, self.fsdp, self.tensor) if s != -1)

    def shape(self, devices: int) -> tuple[int, int, int]:
        """The three sizes for that many devices; UserError if they do not use each device once."""
        sizes, known = [self.data, self.fsdp, self.tensor], self.known
        if -1 in sizes and devices % known == 0:
            sizes[sizes.index(-1)] = devices // known
        if math.prod(sizes) != devices:
            raise UserError(
                f"mesh: {self} needs a multiple of {known} devices, there are {devices}"
                if -1 in sizes
                else f"mesh: {self} has {known} places, there are {devices} devices; "
                "make one axis -1 to take what is left"
            )
        return tuple(sizes)

    def __str__(self) -> str:
        return ",".join(f"{k}={v}" for k, v in dataclasses.asdict(self).items())


def make_mesh(
    config: MeshConfig | str = MeshConfig(),
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """A mesh with axes `AXES` over all devices of all processes, or over `devices` (those of a TPU
    topology, say).

    The axes are of the automatic kind: `jax.make_mesh` would make explicit ones, under which each
    product and reshape has to name its sharding.

    A machine whose only device is its CPU becomes as many devices as the sizes ask for, if JAX has
    not started its backends yet. Programs whose parts never meet then use as many cores: physics
    alone would stay on one (`lrm_jax.benchmarks.refine --mesh=data=2`).

    Over all devices of several processes: each of them has to call this, and waits for the others.

    Raises:
      UserError: the sizes do not fit the devices.
    """
    config = MeshConfig.parse(config) if isinstance(config, str) else config
    if devices is None:
        ask_for_cores(config)
        devices = jax.devices()
        mesh = _placed(config.shape(len(devices)), devices)
        if jax.process_count() > 1 and devices[0].platform == "cpu":
            connect(mesh)
        return mesh
    return _placed(config.shape(len(devices)), devices)


def _placed(shape: tuple[int, ...], devices: Sequence[Any]) -> Mesh:
    kinds = (AxisType.Auto,) * len(AXES)
    try:
        return jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices)
    except NotImplementedError:  # no axis of the mesh fits whole axes of the slice: split those
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(placed, AXES, axis_types=kinds)


def ask_for_cores(config: MeshConfig | str) -> None:
    """Makes the CPU as many devices as the sizes that are given ask for, where nothing has decided
    their number; call it before JAX starts its backends. UserError where that is no mesh."""
    count = (MeshConfig.parse(config) if isinstance(config, str) else config).known
    decided = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if count > 1 and not decided and not backend_started() and not jax.distributed.is_initialized():
        jax.config.update("jax_num_cpu_devices", count)
        widen_thread_pool(count)


def under(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """`jax.set_mesh(mesh)`, or nothing without one."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Rows along `axis` cut over data and fsdp; all other axes whole."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, ROW_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on each device."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """`x` with its leading dimensions cut over these mesh axes and the others whole, while a mesh
    is set (`with jax.set_mesh(mesh):`); otherwise `x`.

    Networks call it where the compiler would have to guess: between layers it pins activations to
    the batch, so that parameters are gathered and activations stay where they are. Axes that the
    mesh lacks are left out.
    """
    if not rows.axes_present(AXES):
        return x

    def known(axis):
        return rows.axes_present((axis,) if isinstance(axis, str) else axis or ()) or None

    return jax.lax.with_sharding_constraint(x, PartitionSpec(*map(known, axes)))


def start_processes(
    coordinator: str | None = None, count: int | None = None, number: int | None = None
) -> None:
    """Joins this process to the others of a run; call it before anything asks JAX for devices.

    On Cloud TPU all arguments are found in the environment. Elsewhere, on one machine say, give all
    three, the same `coordinator` to each process.

    Args:
      coordinator: "HOST:PORT" of process 0, "127.0.0.1:12345" on one machine.
      count: how many processes. number: which one this is, from 0.
    Raises:
      UserError: arguments that do not fit together, or the others do not answer.
    """
    given = (coordinator, count, number)
    if any(v is None for v in given) and any(v is not None for v in given):
        raise UserError("processes: give coordinator, count and number, or none of them")
    if count is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise UserError(f"processes: coordinator {coordinator!r} is not HOST:PORT")
        if not 0 <= number < count:
            raise UserError(f"processes: number {number} must lie in 0 ... {count - 1}")
    try:
        jax.distributed.initialize(coordinator, count, number)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"processes: cannot join the others ({error})") from error
