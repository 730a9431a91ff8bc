"""What may differ from episode to episode besides colours and places; all of it off by default.

Nothing here costs a compilation: what varies are arrays of the model, drawn at reset and kept in
``info["variation"]``, batched by `jax.vmap` like any other part of the state.
"""

import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from lrm_jax.envs.colours import COLOURS, tables
from lrm_jax.run.errors import UserError
from lrm_jax.run.quiet_mjx import mjx

# Beside and behind the workspace, in view: the arm and the things to be handled do not get there.
_SPOTS = ((0.22, -0.14), (0.22, 0.14), (0.20, -0.27), (0.20, 0.27), (0.32, -0.30), (0.32, 0.30))
_SHAPES = (  # type, size, height of the centre [m]
    ("box", "0.02 0.03 0.025", 0.025),
    ("sphere", "0.026", 0.026),
    ("cylinder", "0.024 0.03", 0.03),
    ("capsule", "0.017 0.02", 0.037),
    ("ellipsoid", "0.035 0.022 0.018", 0.018),
    ("box", "0.035 0.012 0.02", 0.02),
)
_ARM = ("base", "link", "hand", "left_finger", "right_finger")


@dataclasses.dataclass(frozen=True)
class VariationConfig:
    """How far each thing varies; 0 switches it off.

    distractors: further things, of other shapes and any colour, beside the workspace (at most 6).
    stretch: boxes to be handled are up to this share longer or shorter across the fingers' line.
    camera_jitter: the camera moves by up to this many metres along each axis, and turns by up to
    as many radians about each. lighting: log range of the light's strength (each colour apart) and
    range of its direction's components. physics: log range of masses and coefficients of friction.
    """

    distractors: int = 0
    stretch: float = 0.0
    camera_jitter: float = 0.0
    lighting: float = 0.0
    physics: float = 0.0

    def validate(self, task: str) -> None:
        """UserError for a value outside its range."""
        if not 0 <= self.distractors <= len(_SPOTS):
            raise UserError(f"{task}: distractors={self.distractors} must be 0 to {len(_SPOTS)}")
        limits = {"stretch": 0.5, "camera_jitter": 0.1, "lighting": 1.0, "physics": 1.0}
        for name, most in limits.items():
            if not 0 <= (value := getattr(self, name)) <= most:
                raise UserError(f"{task}: {name}={value} must be between 0 and {most}")


def with_distractors(xml: str, count: int) -> str:
    """The MJCF with ``count`` distractors as mocap bodies: drawn, without contacts."""
    bodies = "".join(
        f'<body name="distractor{i}" mocap="true" pos="{x} {y} {height}">'
        f'<geom name="distractor{i}" type="{kind}" size="{size}" contype="0" conaffinity="0" '
        'group="1"/></body>'
        for i, ((x, y), (kind, size, height)) in enumerate(
            list(zip(_SPOTS, _SHAPES, strict=True))[:count]
        )
    )
    return xml.replace("</worldbody>", f"{bodies}</worldbody>")


def _turn(vector: jax.Array) -> jax.Array:
    """Rotation matrix [3,3] of small angles about x, y and z, one after the other."""
    (cx, cy, cz), (sx, sy, sz) = jnp.cos(vector), jnp.sin(vector)
    about_x = jnp.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = jnp.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = jnp.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


class Variations:
    """The draws of one task's episodes, and the models and data that follow from them."""

    def __init__(self, config: VariationConfig, model: mujoco.MjModel, stretched: tuple[str, ...]):
        self.config = config
        if config.stretch and not stretched:
            raise UserError("stretch: this task has no boxes that may be longer or shorter")
        names = [model.body(i).name for i in range(model.nbody)]
        self._bodies = np.array(
            [i for i, name in enumerate(names) if i and not name.startswith(_ARM)], int
        )
        self._stretched = np.array([model.geom(name).id for name in stretched], int)
        self._boxes = np.array([model.geom_bodyid[i] for i in self._stretched], int)
        self._distractors = np.array(
            [model.geom(f"distractor{i}").id for i in range(config.distractors)], int
        )

    def draw(self, key: jax.Array, mocap: jax.Array) -> tuple[jax.Array, dict[str, dict]]:
        """Positions of all mocap bodies, the task's [n,3] first, and what ``info`` keeps."""
        c = self.config
        keys = jax.random.split(key, 8)

        def uniform(i, shape, most):
            return jax.random.uniform(keys[i], shape, minval=-most, maxval=most)

        found = {}
        if c.distractors:
            spots = jax.random.permutation(keys[0], jnp.array(_SPOTS))[: c.distractors]
            spots = spots + uniform(1, spots.shape, 0.015)
            heights = jnp.array([h for *_, h in _SHAPES])[: c.distractors, None]
            mocap = jnp.concatenate([mocap, jnp.concatenate([spots, heights], 1)])
            colours = jax.random.randint(keys[2], (c.distractors,), 0, len(COLOURS))
            found["distractor_colours"] = colours
        if c.stretch:
            found["stretch"] = 1.0 + uniform(3, self._stretched.shape, c.stretch)
        if c.camera_jitter:
            found["camera"] = uniform(4, (2, 3), c.camera_jitter)
        if c.lighting:
            found["light"] = uniform(5, (2, 3), c.lighting)
        if c.physics:
            found["mass"] = jnp.exp(uniform(6, self._bodies.shape, c.physics))
            found["friction"] = jnp.exp(uniform(7, (), c.physics))
        return mocap, ({"variation": found} if found else {})

    def physics(self, model: mjx.Model, info: dict) -> mjx.Model:
        """The model with this episode's masses, friction and sizes."""
        drawn = info.get("variation", {})
        if "stretch" in drawn:
            size = jnp.asarray(model.geom_size)
            size = size.at[self._stretched, 0].multiply(drawn["stretch"])
            x, y, z = jnp.moveaxis(size[self._stretched] ** 2, 1, 0)
            mass = jnp.asarray(model.body_mass)[self._boxes] / 3  # of a box with half sides
            inertia = mass[:, None] * jnp.stack([y + z, x + z, x + y], 1)
            whole = jnp.asarray(model.body_inertia).at[self._boxes].set(inertia)
            model = model.replace(geom_size=size, body_inertia=whole)
        if "mass" in drawn:
            mass, inertia = jnp.asarray(model.body_mass), jnp.asarray(model.body_inertia)
            friction = jnp.asarray(model.pair_friction)
            model = model.replace(
                body_mass=mass.at[self._bodies].multiply(drawn["mass"]),
                body_inertia=inertia.at[self._bodies].multiply(drawn["mass"][:, None]),
                pair_friction=friction.at[:, :2].multiply(drawn["friction"]),
            )
        return model

    def looks(
        self, model: mjx.Model, data: mjx.Data, info: dict
    ) -> tuple[mjx.Model, mjx.Data]:
        """Model and data for the renderer with this episode's distractors, sizes, light, camera."""
        drawn = info.get("variation", {})
        if "distractor_colours" in drawn:
            rgba = jnp.asarray(tables()[0])[drawn["distractor_colours"]]
            model = model.replace(
                geom_rgba=jnp.asarray(model.geom_rgba).at[self._distractors].set(rgba)
            )
        if "stretch" in drawn:
            size = jnp.asarray(model.geom_size)
            model = model.replace(
                geom_size=size.at[self._stretched, 0].multiply(drawn["stretch"])
            )
        if "light" in drawn:
            model = model.replace(
                light_diffuse=jnp.asarray(model.light_diffuse) * jnp.exp(drawn["light"][0]),
                light_dir0=jnp.asarray(model.light_dir0) + drawn["light"][1],
            )
        if "camera" in drawn:
            moved, turned = drawn["camera"]
            data = data.replace(
                cam_xpos=data.cam_xpos + moved, cam_xmat=_turn(turned) @ data.cam_xmat
            )
        return model, data
