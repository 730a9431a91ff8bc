"""Cameras of a model: from a name to the rays through the centres of the pixels.

Everything is in units in which a ray's direction in the camera frame (x right, y up, looking along
-z) is `(x, y, -1)`. The parameter of a point on such a ray is then its depth along the optical axis
in metres, and its inverse is affine in (x, y) on any plane.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.run.errors import UserError
from lrm_jax.run.quiet_mjx import mjx


@dataclasses.dataclass(frozen=True)
class View:
    """A pinhole camera at an instant.

    Attributes:
      position: float32 [3], metres, world frame.
      rotation: float32 [3,3], columns are the camera's right, up and backward axes.
      x: float32 [1,W], horizontal tangents of the pixel centres, left to right.
      y: float32 [H,1], vertical tangents, top to bottom.
      pixel: height of a pixel at depth 1.
      near, far: depths in metres outside of which nothing is drawn.
    """

    position: jax.Array
    rotation: jax.Array
    x: jax.Array
    y: jax.Array
    pixel: jax.Array
    near: jax.Array
    far: jax.Array


def names(model: mjx.Model) -> list[str]:
    """Names of the model's cameras by id; a camera without a name is ''."""
    text = bytes(model.names)
    starts = np.asarray(model.name_camadr)[: model.ncam]
    return [text[a : text.index(b"\0", a)].decode() for a in starts]


def resolve(model: mjx.Model, camera: str | int) -> int:
    """The id of a camera given by name or id.

    Raises:
      UserError: there is no such camera; the message lists those there are.
    """
    known = names(model)
    if isinstance(camera, str) and camera and camera in known:
        return known.index(camera)
    is_id = isinstance(camera, (int, np.integer)) and not isinstance(camera, bool)
    if is_id and 0 <= camera < len(known):
        return int(camera)
    listed = ", ".join(f"{name!r} ({i})" if name else str(i) for i, name in enumerate(known))
    raise UserError(f"no camera {camera!r} in the model: it has {listed or 'none'}")


def view(
    model: mjx.Model,
    data: mjx.Data,
    camera: int,
    height: int,
    width: int,
    clip: tuple[float, float],
) -> View:
    """Pose and pixel rays of a camera (an id), with MuJoCo's conventions.

    Vertical field of view `cam_fovy` and square pixels, or the intrinsics where the camera has a
    `sensorsize` (then, as in MuJoCo, the image is stretched to height x width).

    Args:
      clip: near and far plane in units of `model.stat.extent`.
    """
    if height < 1 or width < 1:
        raise UserError(f"an image of {height}x{width} pixels is empty: give positive sizes")
    # Pixel centres as fractions of the image, from the left and from the top.
    u = (np.arange(width, dtype=np.float32) + 0.5) / width
    v = (np.arange(height, dtype=np.float32) + 0.5) / height
    sensor = np.asarray(model.cam_sensorsize[camera])
    if sensor[1] > 0:
        fx, fy, cx, cy = jnp.asarray(model.cam_intrinsic, jnp.float32)[camera]
        left, right = -(sensor[0] / 2 - cx) / fx, (sensor[0] / 2 + cx) / fx
        top, bottom = (sensor[1] / 2 - cy) / fy, -(sensor[1] / 2 + cy) / fy
    else:
        top = jnp.tan(jnp.asarray(model.cam_fovy, jnp.float32)[camera] * (np.pi / 360))
        bottom, right = -top, top * (width / height)
        left = -right
    extent = jnp.asarray(model.stat.extent, jnp.float32)
    return View(
        position=jnp.asarray(data.cam_xpos[camera], jnp.float32),
        rotation=jnp.asarray(data.cam_xmat[camera], jnp.float32).reshape(3, 3),
        x=(left + (right - left) * u)[None, :],
        y=(top + (bottom - top) * v)[:, None],
        pixel=(top - bottom) / height,
        near=clip[0] * extent,
        far=clip[1] * extent,
    )
