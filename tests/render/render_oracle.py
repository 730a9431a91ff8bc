"""MuJoCo's own renderer as the oracle of the ray caster's geometry.

It draws in a process of its own: Mesa's software OpenGL and TensorFlow each bring an LLVM, and in a
process that has loaded TensorFlow, Mesa crashes.
"""

import functools
import itertools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import gl_worker
import jax
import mujoco
import numpy as np
import pytest
from mujoco import mjx

from lrm_jax.benchmarks.scenes import stack

SLICES, STACKS = 128, 64


@functools.cache
def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def _ask(function, *arguments):
    return _process().submit(function, *arguments).result()


class Oracle:
    """Segmentation and depth of one model as `mujoco.Renderer` draws them.

    MuJoCo draws tessellated solids. The chords of n slices lie up to r (1 - cos(pi/n)) inside of a
    circle, and a ray that grazes it then goes up to r sin(pi/n) further: with 128 slices 2.5 % of
    the radius, which is below 1 % of the depth where depths are at least 2.5 radii.
    """

    _numbers = itertools.count()

    def __init__(self, model: mujoco.MjModel, height: int, width: int):
        model.vis.quality.numslices, model.vis.quality.numstacks = SLICES, STACKS
        self._number, self._model = next(self._numbers), model
        try:
            _ask(gl_worker.start, self._number, model, height, width)
        except Exception as error:
            pytest.fail(
                "the oracle, mujoco.Renderer, does not start: these tests need OpenGL without a "
                f"screen (MUJOCO_GL={os.environ.get('MUJOCO_GL')!r}; Debian: apt install libegl1 "
                f"libgl1-mesa-dri): {type(error).__name__}: {error}"
            )

    def draw(self, data: mujoco.MjData, camera) -> tuple[np.ndarray, np.ndarray]:
        """Geom ids int [H,W] (-1: none) and depths float [H,W], of the model as it is now."""
        _ask(gl_worker.look, self._number, self._model.geom_size, self._model.geom_rgba)
        segmentation, depth = _ask(gl_worker.draw, self._number, data, camera)
        ids, kinds = np.moveaxis(segmentation, -1, 0)
        assert set(np.unique(kinds)) <= {-1, int(mujoco.mjtObj.mjOBJ_GEOM)}
        return np.where(kinds == mujoco.mjtObj.mjOBJ_GEOM, ids, -1), depth

    def colours(self, data: mujoco.MjData, camera, shadows: bool = False) -> np.ndarray:
        """uint8 [H,W,3] without reflections."""
        return _ask(gl_worker.colours, self._number, data, camera, shadows)

    def close(self) -> None:
        """Gives the renderer's memory back."""
        _ask(gl_worker.close, self._number)


def one(model: mujoco.MjModel, data: mujoco.MjData) -> mjx.Data:
    """An `mjx.Data` with the frames of `data`."""
    return jax.tree.map(lambda v: v[0], stack(model, [data]))


def interior(segmentation: np.ndarray) -> np.ndarray:
    """Pixels whose 3x3 neighbourhood in the image holds a single id, bool [...,H,W].

    Where ids meet, the two renderers may round a silhouette to different pixels.
    """
    padded = np.pad(segmentation, [(0, 0)] * (segmentation.ndim - 2) + [(1, 1)] * 2, mode="edge")
    h, w = segmentation.shape[-2:]
    shifted = [padded[..., i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return np.all(np.stack(shifted) == segmentation, axis=0)
