"""Colours of geoms and of the background.

A plane whose material has a texture shows a checker of that texture's darkest and brightest colour,
and a skybox texture a vertical gradient behind it all. Other textures are left out.
"""

import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from lrm_jax.render.cast import Frames
from lrm_jax.render.intersect import affine
from lrm_jax.run.quiet_mjx import mjx

CHECKER = 0.2  # edge of a checker's square [m]; MJX models do not carry `texrepeat`


def albedo(model: mjx.Model) -> jax.Array:
    """Colour of each geom, float32 [ngeom,4].

    As in MuJoCo that is geom_rgba, or the material's colour where geom_rgba is the default grey.
    """
    rgba = jnp.asarray(model.geom_rgba, jnp.float32)
    if model.nmat == 0:
        return rgba
    matid = jnp.asarray(model.geom_matid)
    default = jnp.all(rgba == jnp.array([0.5, 0.5, 0.5, 1.0]), -1) & (matid >= 0)
    return jnp.where(default[:, None], jnp.asarray(model.mat_rgba, jnp.float32)[matid], rgba)


@dataclasses.dataclass(frozen=True)
class Textures:
    """Two colours of each texture, float32 [ntex,2,3] in 0..1; of the skybox (down, up) or None."""

    pairs: np.ndarray
    sky: np.ndarray | None


def textures_of(model: mjx.Model) -> Textures:
    """The colours of the model's textures; on the host, they are static in MJX."""
    pairs, sky = [], None
    for i, kind in enumerate(model.tex_type):
        height, width, channels = (
            int(field[i]) for field in (model.tex_height, model.tex_width, model.tex_nchannel)
        )
        start = int(model.tex_adr[i])
        texels = np.asarray(model.tex_data[start : start + height * width * channels])
        texels = texels.reshape(-1, channels)
        texels = (texels[:, :3] if channels >= 3 else np.repeat(texels[:, :1], 3, 1)) / 255.0
        order = np.argsort(texels.sum(1), kind="stable")
        pairs.append(texels[order[[len(order) // 10, -1 - len(order) // 10]]])
        if kind == mujoco.mjtTexture.mjTEXTURE_SKYBOX and sky is None:
            # right, left, up, down, front, back
            faces = texels.reshape(-1, width * width, 3).mean(1)
            sky = faces[[3, 2]] if len(faces) == 6 else faces[[0, 0]]
    return Textures(np.array(pairs, np.float32).reshape(-1, 2, 3), sky)


def prepare_checker(
    model: mjx.Model, geoms: tuple[int, ...], textures: Textures, f: Frames, pixel: jax.Array
) -> dict[str, jax.Array]:
    """Coefficients for `checker` of K planes: no contrast without a texture."""
    matid = jnp.asarray(model.geom_matid)[jnp.array(geoms)]
    role = int(mujoco.mjtTextureRole.mjTEXROLE_RGB)
    texture = jnp.where(matid >= 0, jnp.asarray(model.mat_texid)[matid, role], -1)
    pair = jnp.where((texture >= 0)[:, None, None], jnp.asarray(textures.pairs)[texture], 1.0)
    scale = 1 / CHECKER
    return {
        "mean": pair.mean(1),
        "contrast": 0.5 * (pair[:, 1] - pair[:, 0]),
        "o": f.o[:, :2] * scale,
        "a": f.a[:, :2] * scale,
        # At depth t a pixel covers about t pixel across, and t / height times that lengthwise.
        "blur": pixel * scale / jnp.maximum(jnp.abs(f.o[:, 2]), 1e-6),
    }


def checker(p: dict[str, jax.Array], t: jax.Array, x: jax.Array, y: jax.Array) -> list[jax.Array]:
    """Factors [H,W] on red, green and blue of one plane at depths t.

    The pattern fades to its mean where a pixel covers a square or more.
    """
    cells = [jnp.floor(p["o"][i] + t * affine(p["a"][i], x, y)) for i in (0, 1)]
    half = 0.5 * (cells[0] + cells[1])
    fade = jnp.clip(1.5 - t * t * p["blur"], 0.0, 1.0)
    sign = jnp.where(half == jnp.floor(half), -fade, fade)
    return [p["mean"][c] + sign * p["contrast"][c] for c in range(3)]
