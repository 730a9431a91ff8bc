"""An on-device renderer: casts one ray per pixel at the primitive geoms of an MJX scene."""

from lrm_jax.render.draw import render, render_all

__all__ = ["render", "render_all"]
