"""MuJoCo's own renderer as the oracle of the ray caster's geometry."""

import os

import jax
import mujoco
import numpy as np
import pytest
from mujoco import mjx

from lrm_jax.benchmarks.scenes import stack

SLICES, STACKS = 128, 64


class Oracle:
    """Segmentation and depth of one model as `mujoco.Renderer` draws them.

    MuJoCo draws tessellated solids. The chords of n slices lie up to r (1 - cos(pi/n)) inside of a
    circle, and a ray that grazes it then goes up to r sin(pi/n) further: with 128 slices 2.5 % of
    the radius, which is below 1 % of the depth where depths are at least 2.5 radii.
    """

    def __init__(self, model: mujoco.MjModel, height: int, width: int):
        model.vis.quality.numslices, model.vis.quality.numstacks = SLICES, STACKS
        self.model = model
        try:
            self.renderer = mujoco.Renderer(model, height, width)
        except Exception as error:
            pytest.fail(
                "the oracle, mujoco.Renderer, does not start: these tests need OpenGL without a "
                f"screen (MUJOCO_GL={os.environ.get('MUJOCO_GL')!r}; Debian: apt install libegl1 "
                f"libgl1-mesa-dri): {type(error).__name__}: {error}"
            )

    def draw(self, data: mujoco.MjData, camera) -> tuple[np.ndarray, np.ndarray]:
        """Geom ids int [H,W] (-1: none) and depths float [H,W]."""
        self.renderer.update_scene(data, camera)
        self.renderer.enable_segmentation_rendering()
        ids, kinds = np.moveaxis(self.renderer.render(), -1, 0)
        self.renderer.disable_segmentation_rendering()
        self.renderer.enable_depth_rendering()
        depth = self.renderer.render().copy()
        self.renderer.disable_depth_rendering()
        assert set(np.unique(kinds)) <= {-1, int(mujoco.mjtObj.mjOBJ_GEOM)}
        return np.where(kinds == mujoco.mjtObj.mjOBJ_GEOM, ids, -1), depth

    def colours(self, data: mujoco.MjData, camera, shadows: bool = False) -> np.ndarray:
        """uint8 [H,W,3] without reflections."""
        self.renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        self.renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self.renderer.update_scene(data, camera)
        return self.renderer.render().copy()


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
