"""The light model: where light comes from, and Lambert's law on each kind of geom.

All lights are directional: a headlight along the optical axis with MuJoCo's default colours, and
the model's own active lights. Spot lights shine everywhere along their direction, point lights from
their position towards `stat.center`; none fades, and lights on moving bodies stay where they are in
the reference posture. There is no specular part and no emission.
"""

import dataclasses

import jax
import jax.numpy as jnp
import mujoco

from lrm_jax.render.camera import View
from lrm_jax.render.cast import Frames
from lrm_jax.render.intersect import affine
from lrm_jax.run.quiet_mjx import mjx

HEADLIGHT_AMBIENT, HEADLIGHT_DIFFUSE = 0.1, 0.4  # defaults of MJCF's visual/headlight


@dataclasses.dataclass(frozen=True)
class Lights:
    """L directional lights, of which the first is the headlight.

    Attributes:
      towards: float32 [L,3], unit vectors towards them, world frame.
      diffuse: float32 [L,3], their colours; black where inactive.
      ambient: float32 [3], the sum of their ambient colours.
      shadow: bool [L], which of them cast shadows.
    """

    towards: jax.Array
    diffuse: jax.Array
    ambient: jax.Array
    shadow: jax.Array


def lights_of(model: mjx.Model, view: View) -> Lights:
    """The headlight, then the model's lights."""
    towards = [view.rotation[:, 2][None]]
    diffuse = [jnp.full((1, 3), HEADLIGHT_DIFFUSE)]
    ambient = jnp.full(3, HEADLIGHT_AMBIENT)
    shadow = jnp.zeros(1, bool)

    def field(name: str) -> jax.Array:
        return jnp.asarray(getattr(model, name), jnp.float32)

    if model.nlight:
        on = jnp.asarray(model.light_active).astype(jnp.float32)[:, None]
        point = jnp.asarray(model.light_type) == int(mujoco.mjtLightType.mjLIGHT_POINT)
        away = field("light_pos0") - jnp.asarray(model.stat.center, jnp.float32)
        direction = jnp.where(point[:, None], away, -field("light_dir0"))
        length = jnp.linalg.norm(direction, axis=1, keepdims=True)
        towards.append(direction / jnp.maximum(length, 1e-9))
        diffuse.append(on * field("light_diffuse"))
        ambient = ambient + jnp.sum(on * field("light_ambient"), 0)
        shadow = jnp.concatenate([shadow, jnp.asarray(model.light_castshadow).astype(bool)])
    return Lights(jnp.concatenate(towards), jnp.concatenate(diffuse), ambient, shadow)


def flat(name: str, f: Frames, lights: Lights) -> jax.Array:
    """n.l on the visible flat surfaces of K geoms of a kind, [K,F,L].

    F is 3 for boxes, one for each axis, 1 for planes and for cylinders (the cap).
    """
    axes = [0, 1, 2] if name == "box" else [2]
    towards = jnp.einsum("kji,lj->kil", f.mat, lights.towards)  # in the geoms' frames
    return jnp.where(f.o < 0, -1.0, 1.0)[:, axes, None] * towards[:, axes]


def prepare_curved(name: str, f: Frames, lights: Lights) -> dict[str, jax.Array]:
    """Coefficients for `curved`, leading axis K.

    The outward normal at p = o + t d is s * (p - clamp(p_z) e_z) for capsules, s * p otherwise,
    with s = 1/r (0 along a cylinder's axis), so n.l = e + t * affine - m clamp(p_z). Ellipsoids
    have s = 1/size^2 and need normalising.
    """
    towards = jnp.einsum("kji,lj->kli", f.mat, lights.towards)
    if name == "ellipsoid":
        return {"towards": towards, "o": f.o, "a": f.a, "size": f.size}
    s = jnp.broadcast_to(1 / f.size[:, :1], f.size.shape)
    if name == "cylinder":
        s = s.at[:, 2].set(0.0)
    scaled = towards * s[:, None]
    out = {
        "e": jnp.einsum("kli,ki->kl", scaled, f.o),
        "uvc": jnp.einsum("kli,kij->klj", scaled, f.a),
    }
    if name == "capsule":
        out |= {"m": scaled[:, :, 2], "z": f.o[:, 2], "dz": f.a[:, 2], "h": f.size[:, 1]}
    return out


def curved(name: str, p: dict, t: jax.Array, x: jax.Array, y: jax.Array) -> list[jax.Array]:
    """n.l for each light, [H,W], on the curved surface of one geom at depths t."""
    if name == "ellipsoid":
        n = [(p["o"][i] + t * affine(p["a"][i], x, y)) / p["size"][i] ** 2 for i in range(3)]
        scale = jax.lax.rsqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2])
        return [scale * (n[0] * m[0] + n[1] * m[1] + n[2] * m[2]) for m in p["towards"]]
    cosines = [e + t * affine(uvc, x, y) for e, uvc in zip(p["e"], p["uvc"], strict=True)]
    if name == "capsule":
        z = jnp.clip(p["z"] + t * affine(p["dz"], x, y), -p["h"], p["h"])
        cosines = [c - m * z for c, m in zip(cosines, p["m"], strict=True)]
    return cosines
