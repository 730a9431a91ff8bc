"""Meshes from text, for any number of devices."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

from lrm_jax.parallel import mesh
from lrm_jax.parallel.mesh import MeshConfig
from lrm_jax.run.errors import UserError


@pytest.mark.parametrize(
    ("text", "devices", "shape"),
    [
        ("", 8, (1, 8, 1)),
        ("data=-1", 8, (8, 1, 1)),
        ("data=2,tensor=2", 8, (2, 2, 2)),
        ("data=-1,fsdp=4,tensor=2", 16, (2, 4, 2)),
        (" data = 2 , fsdp = 3 ", 6, (2, 3, 1)),
        ("fsdp=-1", 1, (1, 1, 1)),
    ],
)
def test_sizes(text, devices, shape):
    assert MeshConfig.parse(text).shape(devices) == shape


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fsdb=2", "did you mean 'fsdp'"),
        ("data=2,data=4", "given twice"),
        ("data", "not AXIS=NUMBER"),
        ("data=two", "not AXIS=NUMBER"),
        ("data=0", "must be positive"),
        ("data=-2", "must be positive"),
        ("data=-1,fsdp=-1", "only one axis"),
    ],
)
def test_what_is_no_mesh(text, message):
    with pytest.raises(UserError, match=message):
        MeshConfig.parse(text)


@pytest.mark.parametrize(
    ("text", "message"), [("tensor=3", "multiple of 3"), ("data=2,fsdp=2", "4 places")]
)
def test_what_does_not_fit_eight_devices(text, message):
    with pytest.raises(UserError, match=message):
        MeshConfig.parse(text).shape(8)


def test_axes_are_automatic_and_constraints_do_nothing_without_a_mesh():
    here = mesh.make_mesh("", jax.devices()[:1])
    assert here.axis_names == mesh.AXES
    assert here.axis_types == (AxisType.Auto,) * 3
    x = jnp.ones((4, 2))
    assert mesh.constrain(x, mesh.ROW_AXES) is x
    with jax.set_mesh(here):
        held = jax.jit(lambda x: mesh.constrain(x, mesh.ROW_AXES))(x)
    assert (held == x).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("127.0.0.1:1", 2, None), "or none of them"),
        (("127.0.0.1", 2, 0), "HOST:PORT"),
        (("127.0.0.1:1234", 2, 2), "must lie in"),
    ],
)
def test_wrong_processes(arguments, message):
    with pytest.raises(UserError, match=message):
        mesh.start_processes(*arguments)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("", "{'data': 3, 'fsdp': 1, 'tensor': 1}"),
        ("--xla_force_host_platform_device_count=1", "multiple of 3"),
    ],
)
def test_a_cpu_becomes_as_many_devices_as_are_asked_for(flags, says):
    """Unless the user's own flags have decided."""
    program = "from lrm_jax.parallel.mesh import make_mesh; print(dict(make_mesh('data=3').shape))"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120
    )
    assert says in done.stdout + done.stderr


def test_backends_that_run_are_left_alone():
    count = len(jax.devices())
    with pytest.raises(UserError, match=f"there are {count}"):
        mesh.make_mesh(f"data={count + 1}")
