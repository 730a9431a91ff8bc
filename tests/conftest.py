"""What all tests share: the platform's settings come first, plots and physics need no screen."""

import os
import sys

if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("MPLBACKEND", "Agg")

import lrm_jax  # noqa: F401 - before jax: it sets XLA's flags

# isort: split
from hypothesis import settings

# Examples are the same in every run, and compilation in the first one must not count as slowness.
settings.register_profile("lrm_jax", deadline=None, derandomize=True)
settings.load_profile("lrm_jax")
