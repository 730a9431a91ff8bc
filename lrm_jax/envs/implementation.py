"""Which of MJX's implementations computes the physics."""

import importlib.util
from typing import Any

import jax
import mujoco

from lrm_jax.run.errors import UserError
from lrm_jax.run.quiet_mjx import mjx

IMPLEMENTATIONS = ("jax", "warp", "auto")


def choose(impl: str) -> str:
    """``jax`` or ``warp`` from a setting; ``auto`` takes Warp on an NVIDIA GPU that can run it.

    Raises:
      UserError: another word, or Warp without its package or without such a GPU.
    """
    if impl not in IMPLEMENTATIONS:
        raise UserError(f"impl={impl!r} is unknown: choose {', '.join(IMPLEMENTATIONS)}")
    gpu = jax.default_backend() == "gpu"
    installed = importlib.util.find_spec("warp") is not None
    if impl == "auto":
        return "warp" if gpu and installed else "jax"
    if impl == "warp" and not (gpu and installed):
        missing = "an NVIDIA GPU" if installed else "the package warp-lang"
        raise UserError(f"impl='warp' needs {missing}, which is not here: choose jax or auto")
    return impl


def put_model(model: mujoco.MjModel, impl: str) -> tuple[mjx.Model, Any]:
    """The model on the device and empty data for it, by the chosen implementation."""
    impl = choose(impl)
    if impl == "jax":
        placed = mjx.put_model(model)
        return placed, mjx.make_data(placed)
    return mjx.put_model(model, impl=impl), mjx.make_data(model, impl=impl)
