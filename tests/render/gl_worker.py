"""MuJoCo's renderer in a process that holds nothing else; see `render_oracle`."""

import mujoco
import numpy as np

_renderers: dict[int, mujoco.Renderer] = {}


def start(number: int, model: mujoco.MjModel, height: int, width: int) -> None:
    """Renderer `number`, of this model."""
    _renderers[number] = mujoco.Renderer(model, height, width)


def look(number: int, size: np.ndarray, rgba: np.ndarray) -> None:
    """Other sizes and colours of the geoms, [ngeom,3] and [ngeom,4]."""
    model = _renderers[number].model
    model.geom_size[:], model.geom_rgba[:] = size, rgba


def draw(number: int, data: mujoco.MjData, camera) -> tuple[np.ndarray, np.ndarray]:
    """Segmentation int32 [H,W,2] as MuJoCo gives it (object id, kind) and depth float32 [H,W]."""
    renderer = _renderers[number]
    renderer.update_scene(data, camera)
    renderer.enable_segmentation_rendering()
    segmentation = renderer.render().copy()
    renderer.disable_segmentation_rendering()
    renderer.enable_depth_rendering()
    depth = renderer.render().copy()
    renderer.disable_depth_rendering()
    return segmentation, depth


def colours(number: int, data: mujoco.MjData, camera, shadows: bool) -> np.ndarray:
    """uint8 [H,W,3] without reflections."""
    renderer = _renderers[number]
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
    renderer.update_scene(data, camera)
    return renderer.render().copy()


def close(number: int) -> None:
    """Gives the renderer's memory back."""
    _renderers.pop(number).close()
