"""What all tests share: the platform's settings come first, plots and physics need no screen."""

import os
import sys

if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("MPLBACKEND", "Agg")

import lrm_jax  # noqa: F401 - before jax: it sets XLA's flags

# isort: split
import pytest
from hypothesis import settings

# Examples are the same in every run, and compilation in the first one must not count as slowness.
settings.register_profile("lrm_jax", deadline=None, derandomize=True)
settings.load_profile("lrm_jax")


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: where two processes share the files (`-n 2`), none is left
    working alone at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests stay in one process, for their fixtures' sake; files in the order above."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)
