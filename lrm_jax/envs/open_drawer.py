"""OpenDrawer: a cabinet with two drawers, and a sentence that says which to open."""

import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.envs import expert
from lrm_jax.envs.base import State
from lrm_jax.envs.expert import Stage
from lrm_jax.envs.mjcf import FIRM, GRIPPED, HIDDEN, PADS, world
from lrm_jax.envs.tabletop import SOLID, Layout, Tabletop
from lrm_jax.envs.wordings import Wordings

TRAVEL, OPENED = 0.14, 0.07  # how far a drawer slides, and from where it counts as open [m]
KNOB = (0.035, 0.0, 0.0)  # centre of the knob from the centre of the drawer's front [m]
KNOB_HALF = (0.018, 0.014, 0.016)
FRONT = 0.066  # x of a closed drawer's front from the cabinet's centre [m]
CENTRE, SPREAD = (0.45, 0.0), (0.02, 0.02)  # where the cabinet stands [m]
_HEIGHT, _ASIDE = 0.045, 0.095  # of the drawers' fronts, and their distance from the middle [m]
_WOOD = 'rgba="0.62 0.46 0.30 1"'


def drawer(name: str, y: float, height: float, half_width: float, depth: float) -> str:
    """MJCF of a drawer that slides along x out of the cabinet that it stands in; joint ``name``,
    geoms ``name_front`` and ``name_knob``; the tray behind is drawn only."""
    x, _, z = KNOB
    low, half = -height + 0.008, depth / 2
    return f"""
    <body name="{name}" pos="{FRONT} {y} {height}">
      <joint name="{name}" type="slide" axis="1 0 0" range="0 {TRAVEL}" damping="8"
             armature="0.05"/>
      <inertial mass="0.3" pos="0 0 0" diaginertia="0.001 0.001 0.001"/>
      <geom name="{name}_front" type="box" size="0.006 {half_width} {height - 0.005}" {HIDDEN}/>
      <geom type="capsule" fromto="0.006 0 {z} {x} 0 {z}" size="0.005" rgba="0.3 0.3 0.32 1"
            {HIDDEN}/>
      <geom name="{name}_knob" type="box" pos="{x} 0 {z}"
            size="{" ".join(str(v) for v in KNOB_HALF)}" {HIDDEN}/>
      <geom type="box" pos="{-half} 0 {low}" size="{half} {half_width - 0.01} 0.003"
            rgba="0.75 0.62 0.45 1" {HIDDEN}/>
      <geom type="box" pos="{-half} {half_width - 0.01} {low + 0.015}" size="{half} 0.004 0.015"
            rgba="0.75 0.62 0.45 1" {HIDDEN}/>
      <geom type="box" pos="{-half} {0.01 - half_width} {low + 0.015}" size="{half} 0.004 0.015"
            rgba="0.75 0.62 0.45 1" {HIDDEN}/>
    </body>"""


class OpenDrawer(Tabletop):
    """Take the knob of the named drawer, pull it towards the camera, let go."""

    horizon = 80
    groups = (2,)
    alternatives = ((0,), (1,))
    mentions = alternatives
    painted = tuple(
        (f"drawer{i}_{part}", i, SOLID) for i in range(2) for part in ("front", "knob")
    )
    held_out = (("purple",), ("orange",))
    modes = ("success", "wrong_cube", "drop", "miss", "stall", "near_miss", "retry")
    spans = expert.Spans(lift=3, open=4, drop=(3.2, 3.6), stall=(0.3, 3.5))
    words = Wordings(
        "open the {0} drawer",
        train=("pull the {0} drawer open", "slide out the {0} drawer"),
        held_out=("let me see inside the {0} drawer", "the {0} drawer should be open"),
    )

    def _index(self) -> None:
        super()._index()
        self._drawers = np.array([self.mj_model.joint(f"drawer{i}").qposadr[0] for i in range(2)])
        self._bodies = np.array([self.body(f"drawer{i}") for i in range(2)])

    def mjcf(self, timestep: float) -> str:
        """The cabinet, a mocap body, with two drawers side by side."""
        drawers = "".join(
            drawer(f"drawer{i}", y, _HEIGHT, 0.085, 0.11) for i, y in enumerate((-_ASIDE, _ASIDE))
        )
        cabinet = f"""
    <body name="cabinet" mocap="true" pos="{CENTRE[0]} {CENTRE[1]} 0">
      <geom name="cabinet" type="box" pos="0 0 {_HEIGHT}" size="0.06 0.19 {_HEIGHT}" {_WOOD}
            {HIDDEN}/>{drawers}
    </body>"""
        contacts = [(p, f"drawer{i}_knob", GRIPPED) for p in PADS for i in range(2)]
        contacts += [(p, "cabinet", GRIPPED) for p in PADS]
        return world("open_drawer", timestep, cabinet, contacts, FIRM)

    def layout(self, k_place: jax.Array, k_yaw: jax.Array) -> Layout:
        """The cabinet a little off its usual place, both drawers shut."""
        offset = jax.random.uniform(k_place, (2,), minval=-1, maxval=1) * jnp.array(SPREAD)
        place = jnp.array(CENTRE) + offset
        return Layout({}, jnp.append(place, 0.0)[None], place[None])

    def facts(self, state: State, named: jax.Array | None = None) -> dict[str, jax.Array]:
        """See `Tabletop.facts`; named is (drawer,). Progress: reach (to 0.30), held and pulled
        (0.40 to 0.95), open (1). knobs float32 [2,3] in metres; opened float32 [2], m."""
        named = state.info["named"] if named is None else named
        opened = state.data.qpos[self._drawers]
        knobs = state.data.xpos[self._bodies] + jnp.array(KNOB)
        tcp, own = self.tool(state), opened[named[0]]
        reach = jnp.linalg.norm(knobs[named[0]] - tcp)
        grasped = self.holds(state, reach, KNOB_HALF[1])
        success = own > OPENED
        pulled = jnp.clip(own / OPENED, 0.0, 1.0)
        progress = jnp.where(
            grasped | (pulled > 0.1), 0.40 + 0.55 * pulled, 0.30 * jnp.exp(-5.0 * reach)
        )
        return {
            "success": success, "progress": jnp.where(success, 1.0, progress),
            "grasped": grasped, "tcp": tcp, "knobs": knobs, "opened": opened,
        }  # fmt: skip

    def program(
        self, state: State, plan: expert.Plan, config: expert.DemonstratorConfig
    ) -> expert.Program:
        """Over the knob, down, close, pull, open, up."""
        facts, named = self.facts(state), state.info["named"]
        number = jnp.where(plan.mode == expert.WRONG_CUBE, 1 - named[0], named[0])
        knob = facts["knobs"][number]
        # Misses go to the front, where there is nothing to run into.
        missing = (plan.mode == expert.MISS) | (plan.mode == expert.RETRY)
        aim = jnp.where(missing, jnp.abs(plan.aim) * jnp.array([1.0, 0.7]), 0.4 * plan.aim)
        at = knob[:2] + aim
        far = jnp.where(plan.mode == expert.NEAR_MISS, 0.04, TRAVEL - 0.02)
        left = far - facts["opened"][number]
        target = state.info["target"].position
        pull = jnp.stack([facts["tcp"][0] + left, target[1], knob[2]])
        return expert.waypoints(target, facts["tcp"], plan, [
            Stage(jnp.append(at, config.hover + 0.01), 1, 0.008, 0.04, way=0.15),
            Stage(jnp.append(at, knob[2]), 1, 0.008, 0.008),
            Stage(None, -1, hold=6),
            Stage(pull, -1, 0.012, 0.03, way=0.12, step=0.008),
            Stage(None, 1, hold=3),
            Stage(jnp.append(target[:2], 0.16), 1),
        ], facts["grasped"])  # fmt: skip
