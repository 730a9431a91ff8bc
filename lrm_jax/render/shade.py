"""Colours of the surfaces that the rays met: albedo times light (see `lights` and `materials`).

A pixel's surface is found by comparing its number with each of the scene's, and its colour by
selecting: gathers from a table by pixel would cost several times more on CPUs, since they are not
vectorised. Flat surfaces have one colour each, which is computed beforehand; curved ones select
the albedo and the cosines to the lights.
"""

import jax
import jax.numpy as jnp

from lrm_jax.render import bounds, intersect, lights, materials, shadows
from lrm_jax.render.camera import View
from lrm_jax.render.cast import Frames
from lrm_jax.render.scene import Scene
from lrm_jax.run.quiet_mjx import mjx

_LEVELS = 1023.0  # a colour is three 10-bit numbers in one int32: one select instead of three


def _pack(rgb: jax.Array) -> jax.Array:
    """int32 [...] from float [...,3] in 0..1."""
    level = (jnp.clip(rgb, 0.0, 1.0) * _LEVELS + 0.5).astype(jnp.int32)
    return level[..., 0] | (level[..., 1] << 10) | (level[..., 2] << 20)


def _unpack(word: jax.Array) -> list[jax.Array]:
    return [((word >> shift) & 1023).astype(jnp.float32) * (1 / _LEVELS) for shift in (0, 10, 20)]


def prepare(
    model: mjx.Model,
    scene: Scene,
    frames: dict[str, Frames],
    colours: jax.Array,
    view: View,
    with_shadows: bool,
    placed: tuple[int, ...] = (),
) -> dict:
    """All that `shade` needs of the scene; `colours` is `materials.albedo` [ngeom,4], `placed`
    the ids of lights with a position."""
    light = lights.lights_of(model, view, placed)
    textures = materials.textures_of(model)
    out: dict = {name: {} for name in ("curved", "flat", "word", "checker", "sky", "shadows")}
    out |= {"diffuse": light.diffuse, "ambient": light.ambient}
    out["placed"] = lights.prepare_placed(model, view, light)
    for kind in scene.kinds:
        f = frames[kind.name]
        rgb = colours[jnp.array(kind.geoms), None, :3]
        parts = []
        if kind.surfaces[0][0] <= scene.curved:
            out["curved"][kind.name] = lights.prepare_curved(kind.name, f, light)
            parts.append(rgb)
        if kind.surfaces[0][-1] > scene.curved:
            cosines = lights.flat(kind.name, f, light)
            if with_shadows or placed:
                out["flat"][kind.name] = cosines
                parts.append(jnp.broadcast_to(rgb, (*cosines.shape[:2], 3)))
            else:
                parts.append(rgb * (light.ambient + jnp.maximum(cosines, 0.0) @ light.diffuse))
        out["word"][kind.name] = _pack(jnp.concatenate(parts, 1))
        if kind.name == "plane" and len(textures.pairs) and model.nmat:
            out["checker"] = materials.prepare_checker(model, kind.geoms, textures, f, view.pixel)
        if with_shadows and kind.name in shadows.CASTING:
            out["shadows"][kind.name] = [
                shadows.prepare_placed(kind.name, f, light.at[j])
                if j in light.placed
                else shadows.prepare(kind.name, f, light.towards[j])
                for j in range(1, len(light.towards))
            ]
    if with_shadows:
        visible = {k.name: colours[jnp.array(k.geoms), 3] > 0 for k in scene.kinds}
        out["casts"] = {name: v[:, None] & light.shadow[1:] for name, v in visible.items()}
    if textures.sky is not None:
        out["sky"] = {"colours": jnp.asarray(textures.sky, jnp.float32), "up": view.rotation[2]}
    return out


def shade(
    scene: Scene,
    prepared: dict,
    key: jax.Array,
    far: jax.Array,
    x: jax.Array,
    y: jax.Array,
    listed: bounds.Lists | None = None,
    placed: tuple[int, ...] = (),
) -> jax.Array:
    """Pixels int32 [H,W], red in the lowest byte, then green and blue, from packed hits [H,W].

    listed: as for `cast.cast`; placed: as for `prepare`.
    """
    surface = key & ((1 << scene.id_bits) - 1)
    t = 1 / jnp.maximum(intersect.as_float(key), 1 / far)
    word = jnp.zeros_like(key)
    cosines = [jnp.zeros_like(t)] * prepared["diffuse"].shape[0]
    for kind in scene.kinds:

        def look(carry, row, ids, kind=kind):
            word, *cosines = carry
            words, curved, flat = row
            for i in range(len(kind.surfaces[0])):
                here = surface == ids[i]
                word = jnp.where(here, words[i], word)
                if kind.surfaces[0][i] <= scene.curved:
                    new = lights.curved(kind.name, curved, t, x, y)
                elif flat is not None:
                    new = list(flat[i - len(kind.surfaces[0])])
                else:
                    continue
                cosines = [jnp.where(here, n, c) for n, c in zip(new, cosines, strict=True)]
            return word, *cosines

        rows = [prepared[name].get(kind.name) for name in ("word", "curved", "flat")]
        word, *cosines = bounds.fold(kind, listed, rows, look, (word, *cosines))
    cosines = [jnp.maximum(c, 0.0) for c in cosines]
    ambient = list(prepared["ambient"])
    for i, p in zip(placed, prepared["placed"], strict=True):
        left, by_distance = lights.falloff(p, t, x, y)
        cosines[1 + i] = cosines[1 + i] * by_distance
        ambient = [a + left * own for a, own in zip(ambient, p["ambient"], strict=True)]
    for name, by_light in prepared["shadows"].items():
        for j, p in enumerate(by_light):

            def darken(k, lit, name=name, j=j, p=p):
                dark = shadows.blocks(name, _row(p, k), t, x, y)
                return jnp.where(prepared["casts"][name][k, j] & dark, 0.0, lit)

            count = prepared["casts"][name].shape[0]
            if listed is not None and name in listed:
                cosines[1 + j] = jax.lax.fori_loop(0, count, darken, cosines[1 + j])
            else:
                for k in range(count):
                    cosines[1 + j] = darken(k, cosines[1 + j])
    rgb = _unpack(word)
    for c, albedo in enumerate(rgb):
        light = ambient[c]
        for j, cosine in enumerate(cosines):
            light = light + prepared["diffuse"][j, c] * cosine
        if prepared["flat"]:
            rgb[c] = albedo * light
        else:  # the words of flat surfaces are lit already
            rgb[c] = jnp.where(surface <= scene.curved, albedo * light, albedo)
    if prepared["checker"]:
        planes = next(kind for kind in scene.kinds if kind.name == "plane")
        for k, (number,) in enumerate(planes.surfaces):
            factors = materials.checker(_row(prepared["checker"], k), t, x, y)
            here = surface == number
            rgb = [jnp.where(here, v * f, v) for v, f in zip(rgb, factors, strict=True)]
    if prepared["sky"]:
        up, sky = prepared["sky"]["up"], prepared["sky"]["colours"]
        mix = 0.5 + 0.5 * (up[0] * x + up[1] * y - up[2]) * jax.lax.rsqrt(x * x + y * y + 1)
        behind = [sky[0, c] + (sky[1, c] - sky[0, c]) * mix for c in range(3)]
        rgb = [jnp.where(surface == 0, b, v) for b, v in zip(behind, rgb, strict=True)]
    red, green, blue = ((jnp.minimum(v, 1.0) * 255.0 + 0.5).astype(jnp.int32) for v in rgb)
    return red | (green << 8) | (blue << 16)


def _row(tree: dict[str, jax.Array], k: int) -> dict[str, jax.Array]:
    return {name: value[k] for name, value in tree.items()}
