"""The light model: where light comes from, and Lambert's law on each kind of geom.

There is a headlight along the optical axis with MuJoCo's default colours, and the model's own
active lights: directional, point and spot, with attenuation, cutoff and exponent as in OpenGL.
Lights on moving bodies stay where they are in the reference posture. There is no specular part and
no emission.

Types of lights have to be known when the program is traced, as they are where the model is not an
argument of a jitted function. Those that are not are taken as directional: spot lights then shine
everywhere along their direction, point lights from their position towards `stat.center`.

A light with a position needs n.(L - p), which is n.L minus n.p. The latter is constant on faces,
caps, spheres and cylinders, so that such a light costs little more than a directional one.
"""

import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

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
      at: float32 [L,3], where lights with a position are, relative to the camera, world axes.
      placed: numbers of the lights that have a position; their `towards` are not used.
    """

    towards: jax.Array
    diffuse: jax.Array
    ambient: jax.Array
    shadow: jax.Array
    at: jax.Array
    placed: tuple[int, ...]


def with_position(model: mjx.Model) -> tuple[int, ...]:
    """Ids of the model's point and spot lights as far as they are known."""
    types = model.light_type
    if not model.nlight or isinstance(types, jax.core.Tracer):
        return ()
    around = (int(mujoco.mjtLightType.mjLIGHT_POINT), int(mujoco.mjtLightType.mjLIGHT_SPOT))
    return tuple(i for i, t in enumerate(np.asarray(types)) if int(t) in around)


def lights_of(model: mjx.Model, view: View, placed: tuple[int, ...] = ()) -> Lights:
    """The headlight, then the model's lights; `placed`: see `with_position`."""
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
        everywhere = np.array([i not in placed for i in range(model.nlight)])
        ambient = ambient + jnp.sum((on * field("light_ambient"))[everywhere], 0)
        shadow = jnp.concatenate([shadow, jnp.asarray(model.light_castshadow).astype(bool)])
        at = jnp.concatenate([jnp.zeros((1, 3)), field("light_pos0") - view.position])
    else:
        at = jnp.zeros((1, 3))
    return Lights(
        jnp.concatenate(towards), jnp.concatenate(diffuse), ambient, shadow, at,
        tuple(1 + i for i in placed),
    )  # fmt: skip


def _mask(lights: Lights) -> jax.Array:
    """float32 [L]: 1 for lights with a position."""
    return jnp.array([float(j in lights.placed) for j in range(lights.towards.shape[0])])


def towards_in(f: Frames, lights: Lights) -> jax.Array:
    """[K,L,3]: in the geoms' frames, the direction of each light, or its place if it has one."""
    if not lights.placed:
        return jnp.einsum("kji,lj->kli", f.mat, lights.towards)
    mask = _mask(lights)[:, None]
    found = jnp.where(mask > 0, lights.at, lights.towards)
    return jnp.einsum("kji,lj->kli", f.mat, found) + mask * f.o[:, None]


def prepare_placed(model: mjx.Model, view: View, lights: Lights) -> list[dict[str, jax.Array]]:
    """What `falloff` needs of each light with a position."""
    axes = view.rotation * jnp.array([1.0, 1.0, -1.0])  # right, up, forward
    found = []
    for j in lights.placed:
        i = j - 1
        spot = jnp.asarray(model.light_type)[i] == int(mujoco.mjtLightType.mjLIGHT_SPOT)
        on = jnp.asarray(model.light_active)[i].astype(jnp.float32)
        direction = jnp.asarray(model.light_dir0, jnp.float32)[i]
        cutoff = jnp.asarray(model.light_cutoff, jnp.float32)[i] * (np.pi / 180)
        found.append(
            {
                "at": lights.at[j] @ axes,
                "direction": direction / jnp.maximum(jnp.linalg.norm(direction), 1e-9) @ axes,
                "fade": jnp.asarray(model.light_attenuation, jnp.float32)[i],
                "cutoff": jnp.where(spot, jnp.cos(cutoff), -2.0),
                "exponent": jnp.where(spot, jnp.asarray(model.light_exponent, jnp.float32)[i], 0.0),
                "ambient": on * jnp.asarray(model.light_ambient, jnp.float32)[i],
            }
        )
    return found


def falloff(
    p: dict[str, jax.Array], t: jax.Array, x: jax.Array, y: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What is left of a light at depths t [H,W], and that over the distance from it."""
    d = [a - t * v for a, v in zip(p["at"], (x, y, 1.0), strict=True)]
    squared = jnp.maximum(d[0] * d[0] + d[1] * d[1] + d[2] * d[2], 1e-12)
    inverse = jax.lax.rsqrt(squared)
    fade = p["fade"][0] + p["fade"][1] * squared * inverse + p["fade"][2] * squared
    along = -(d[0] * p["direction"][0] + d[1] * p["direction"][1] + d[2] * p["direction"][2])
    cosine = along * inverse
    cone = jnp.exp(p["exponent"] * jnp.log(jnp.maximum(cosine, 1e-6)))
    left = jnp.where(cosine >= p["cutoff"], cone, 0.0) / jnp.maximum(fade, 1e-6)
    return left, left * inverse


def flat(name: str, f: Frames, lights: Lights) -> jax.Array:
    """n.l on the visible flat surfaces of K geoms of a kind, [K,F,L]; n.(L - p) for lights with a
    position.

    F is 3 for boxes, one for each axis, 1 for planes and for cylinders (the cap).
    """
    axes = [0, 1, 2] if name == "box" else [2]
    towards = jnp.swapaxes(towards_in(f, lights), 1, 2)
    found = jnp.where(f.o < 0, -1.0, 1.0)[:, axes, None] * towards[:, axes]
    if lights.placed and name != "plane":
        offset = f.size if name == "box" else f.size[:, 1:2]
        found = found - offset[:, :, None] * _mask(lights)
    return found


def prepare_curved(name: str, f: Frames, lights: Lights) -> dict[str, jax.Array]:
    """Coefficients for `curved`, leading axis K.

    The outward normal at p = o + t d is s * (p - clamp(p_z) e_z) for capsules, s * p otherwise,
    with s = 1/r (0 along a cylinder's axis), so n.l = e + t * affine - m clamp(p_z). Ellipsoids
    have s = 1/size^2 and need normalising.
    """
    towards = towards_in(f, lights)
    placed = jnp.broadcast_to(_mask(lights), (f.o.shape[0], len(lights.towards)))
    if name == "ellipsoid":
        out = {"towards": towards, "o": f.o, "a": f.a, "size": f.size}
        return out | {"placed": placed} if lights.placed else out
    s = jnp.broadcast_to(1 / f.size[:, :1], f.size.shape)
    if name == "cylinder":
        s = s.at[:, 2].set(0.0)
    scaled = towards * s[:, None]
    out = {
        "e": jnp.einsum("kli,ki->kl", scaled, f.o),
        "uvc": jnp.einsum("kli,kij->klj", scaled, f.a),
    }
    if lights.placed:
        out |= {"placed": placed, "r": f.size[:, 0]}
    if name == "capsule":
        out |= {"m": scaled[:, :, 2], "z": f.o[:, 2], "dz": f.a[:, 2], "h": f.size[:, 1]}
    return out


def curved(name: str, p: dict, t: jax.Array, x: jax.Array, y: jax.Array) -> list[jax.Array]:
    """n.l for each light, [H,W], on the curved surface of one geom at depths t; n.(L - p) for
    lights with a position."""
    if name == "ellipsoid":
        n = [(p["o"][i] + t * affine(p["a"][i], x, y)) / p["size"][i] ** 2 for i in range(3)]
        scale = jax.lax.rsqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2])
        found = [n[0] * m[0] + n[1] * m[1] + n[2] * m[2] for m in p["towards"]]
        if "placed" in p:  # n.p is 1 before n is normalised
            found = [c - m for c, m in zip(found, p["placed"], strict=True)]
        return [scale * c for c in found]
    cosines = [e + t * affine(uvc, x, y) for e, uvc in zip(p["e"], p["uvc"], strict=True)]
    if name == "capsule":
        height = p["z"] + t * affine(p["dz"], x, y)
        z = jnp.clip(height, -p["h"], p["h"])
        cosines = [c - m * z for c, m in zip(cosines, p["m"], strict=True)]
    if "placed" in p:
        reach = p["r"] + (height - z) * z / p["r"] if name == "capsule" else p["r"]
        cosines = [c - m * reach for c, m in zip(cosines, p["placed"], strict=True)]
    return cosines
