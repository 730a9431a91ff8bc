"""PutInDrawerAndClose: an open drawer, two cubes, and which of them to put away."""

import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.envs import expert
from lrm_jax.envs.base import State
from lrm_jax.envs.expert import Stage
from lrm_jax.envs.mjcf import BETWEEN, GRIPPED, HIDDEN, ON_TABLE, PADS, block, world
from lrm_jax.envs.placement import free_pose, scatter
from lrm_jax.envs.put_on_plate import CUBE_HALF, HELD_OUT_PAIRS
from lrm_jax.envs.tabletop import SOLID, Layout, Tabletop
from lrm_jax.envs.wordings import Wordings

TRAVEL, CLOSED = 0.13, 0.02  # how far the drawer slides, and up to where it counts as shut [m]
HALF_WIDTH, DEPTH = 0.07, 0.12  # of the drawer's inside: half along y, whole along x [m]
KNOB_X = 0.026  # of the knob from the drawer's front [m]
_HEIGHT = 0.04  # half the cabinet's height [m]
_FRONT = 0.076  # x of the shut drawer's front from the cabinet's centre [m]
_CABINET = (0.37, 0.13)  # x, and |y| [m]
WORKSPACE = ((0.42, 0.60), (0.0, 0.20))  # of the cubes, on the other side [m]
MIN_GAP = 0.12
_TRAY = 'rgba="0.75 0.62 0.45 1"'


def _drawer() -> tuple[str, list[str]]:
    """MJCF of the drawer, a frame of four walls whose capsules push what lies within."""
    walls = {
        "wall_front": f"-0.008 {-HALF_WIDTH} 0.02 -0.008 {HALF_WIDTH} 0.02",
        "wall_back": f"{-DEPTH} {-HALF_WIDTH} 0.02 {-DEPTH} {HALF_WIDTH} 0.02",
        "wall_left": f"{-DEPTH} {-HALF_WIDTH} 0.02 -0.008 {-HALF_WIDTH} 0.02",
        "wall_right": f"{-DEPTH} {HALF_WIDTH} 0.02 -0.008 {HALF_WIDTH} 0.02",
    }
    capsules = "".join(
        f'<geom name="{name}" type="capsule" fromto="{ends}" size="0.007" {_TRAY} {HIDDEN}/>'
        for name, ends in walls.items()
    )
    middle = -DEPTH / 2
    return f"""
      <body name="drawer" pos="{_FRONT} 0 0">
        <joint name="drawer" type="slide" axis="1 0 0" range="0 {TRAVEL}" damping="12"
               armature="0.05"/>
        <inertial mass="0.3" pos="0 0 0.02" diaginertia="0.001 0.001 0.001"/>
        <geom name="front" type="box" pos="0 0 0.03" size="0.006 0.085 0.026" {HIDDEN}/>
        <geom name="knob" type="box" pos="{KNOB_X} 0 0.035" size="0.020 0.022 0.012" {HIDDEN}/>
        <geom type="box" pos="{middle} 0 0.001" size="{DEPTH / 2} {HALF_WIDTH} 0.001" {_TRAY}
              {HIDDEN}/>{capsules}
      </body>""", list(walls)


class PutInDrawerAndClose(Tabletop):
    """Pick the named cube, let it fall into the open drawer, push the drawer shut."""

    horizon = 140
    groups = (2, 1)
    alternatives = ((0,), (1,))
    mentions = ((0, 2), (1, 2))
    painted = (("cube0", 0, SOLID), ("cube1", 1, SOLID), ("front", 2, SOLID), ("knob", 2, SOLID))
    held_out = HELD_OUT_PAIRS
    modes = ("success", "wrong_cube", "drop", "miss", "stall", "near_miss", "retry")
    spans = expert.Spans(lift=3, open=6, drop=(3.6, 4.8), stall=(0.3, 10.5))
    words = Wordings(
        "put the {0} cube in the {1} drawer and close it",
        train=(
            "place the {0} cube inside the {1} drawer, then close it",
            "put the {0} cube into the {1} drawer and shut the drawer",
        ),
        held_out=(
            "tidy the {0} block away in the {1} drawer",
            "close the {1} drawer with the {0} cube in it",
        ),
    )

    def _index(self) -> None:
        super()._index()
        self._cubes = np.array([self.body(f"cube{i}") for i in range(2)])
        self._drawer_body = self.body("drawer")
        self._slide = self.mj_model.joint("drawer").qposadr[0]

    def mjcf(self, timestep: float) -> str:
        """Two cubes on free joints, and the cabinet, a mocap body, with its drawer."""
        inner, walls = _drawer()
        cabinet = f"""
    <body name="cabinet" mocap="true" pos="{_CABINET[0]} {_CABINET[1]} 0">
      <geom name="cabinet" type="box" pos="0 0 {_HEIGHT}" size="0.07 0.09 {_HEIGHT}"
            rgba="0.62 0.46 0.30 1" {HIDDEN}/>{inner}
    </body>"""
        names = ("cube0", "cube1")
        contacts = [("table", b, ON_TABLE) for b in names]
        contacts += [(p, b, GRIPPED) for p in PADS for b in names]
        contacts += [("cube0", "cube1", BETWEEN)]
        contacts += [(w, b, BETWEEN) for w in walls for b in names]
        contacts += [(p, "knob", BETWEEN) for p in PADS]
        cubes = "".join(block(name, (CUBE_HALF,) * 3, 0.1 * i) for i, name in enumerate(names))
        return world("put_in_drawer", timestep, cubes + cabinet, contacts)

    def layout(self, k_place: jax.Array, k_yaw: jax.Array) -> Layout:
        """The cabinet left or right with its drawer open, the cubes on the other side."""
        k_cubes, k_side, k_shift = jax.random.split(k_place, 3)
        side = jnp.where(jax.random.bernoulli(k_side), 1.0, -1.0)
        shift = 0.015 * jax.random.uniform(k_shift, (2,), minval=-1, maxval=1)
        cabinet = jnp.array(_CABINET) * jnp.stack([1.0, side]) + shift
        places = scatter(k_cubes, WORKSPACE, 2, MIN_GAP) * jnp.stack([1.0, -side])
        yaw = jax.random.uniform(k_yaw, (2,), minval=-1, maxval=1) * self.config.cube_yaw
        joints = {f"cube{i}": free_pose(places[i], CUBE_HALF, yaw[i]) for i in range(2)}
        joints["drawer"] = jnp.full((1,), TRAVEL)
        inside = cabinet + jnp.array([_FRONT + TRAVEL - DEPTH / 2, 0.0])
        start = jnp.concatenate([places, inside[None]])
        return Layout(joints, jnp.append(cabinet, 0.0)[None], start)

    def facts(self, state: State, named: jax.Array | None = None) -> dict[str, jax.Array]:
        """See `Tabletop.facts`; named is (cube,). Progress: reach (to 0.20), carry (0.25 to 0.55),
        in the drawer (0.60) and closing (to 0.95), shut (1). cubes float32 [2,3], front [3] of the
        drawer, opened float32 [], in metres."""
        named = state.info["named"] if named is None else named
        data, tcp = state.data, self.tool(state)
        cubes, front = data.xpos[self._cubes], data.xpos[self._drawer_body]
        opened, cube = data.qpos[self._slide], cubes[named[0]]
        reach = jnp.linalg.norm(cube - tcp)
        grasped = self.holds(state, reach, CUBE_HALF)
        behind = front[0] - cube[0]
        inside = (
            (behind > 0) & (behind < DEPTH) & (jnp.abs(cube[1] - front[1]) < HALF_WIDTH)
            & (cube[2] < CUBE_HALF + 0.012)
        )  # fmt: skip
        released = inside & ~grasped
        success = released & (opened < CLOSED)
        start = state.info["start_places"]
        away = jnp.linalg.norm(cube[:2] - front[:2] + jnp.array([DEPTH / 2, 0.0]))
        whole = jnp.linalg.norm(start[named[0]] - start[2])
        carried = jnp.clip(1.0 - away / whole, 0.0, 1.0)
        lifted = jnp.clip((cube[2] - CUBE_HALF) / 0.08, 0.0, 1.0)
        held = 0.25 + 0.05 * jnp.maximum(lifted, carried) + 0.25 * carried
        shut = jnp.clip(1.0 - opened / TRAVEL, 0.0, 1.0)
        progress = jnp.where(grasped, held, 0.20 * jnp.exp(-5.0 * reach))
        progress = jnp.where(inside, 0.57, progress)
        progress = jnp.where(released, 0.60 + 0.35 * shut, progress)
        return {
            "success": success, "progress": jnp.where(success, 1.0, progress),
            "grasped": grasped, "tcp": tcp, "cubes": cubes, "front": front, "opened": opened,
        }  # fmt: skip

    def program(
        self, state: State, plan: expert.Plan, config: expert.DemonstratorConfig
    ) -> expert.Program:
        """Pick and place into the drawer, then close the fingers before the knob and push."""
        facts, named = self.facts(state), state.info["named"]
        cube = jnp.where(plan.mode == expert.WRONG_CUBE, 1 - named[0], named[0])
        at, front = facts["cubes"][cube][:2] + plan.aim, facts["front"]
        target, tcp = state.info["target"].position, facts["tcp"]
        middle = front[:2] - jnp.array([DEPTH / 2 + 0.004, 0.0])
        # A near miss leaves the drawer half open.
        into = middle + plan.place * jnp.where(plan.mode == expert.NEAR_MISS, 0.0, 0.4)
        rest = jnp.where(plan.mode == expert.NEAR_MISS, 0.06, 0.004)
        before = front[0] + KNOB_X + 0.02 + 0.021
        up, low, stay = config.hover + 0.01, 0.036, target[:2]
        push = before - facts["opened"] + rest
        return expert.waypoints(target, tcp, plan, [
            Stage(jnp.append(at, up), 1, 0.012, 0.04, way=0.15),
            Stage(jnp.append(at, config.grasp), 1, 0.02, 0.008),
            Stage(None, -1, hold=4),
            Stage(jnp.append(stay, up), -1, 0.05, 0.025),
            Stage(jnp.append(into, up), -1, 0.015, 0.03, way=0.2),
            Stage(jnp.append(into, 0.048), -1, 0.02, 0.012),
            Stage(None, 1, hold=3),
            Stage(jnp.append(stay, up), 1, 0.05, 0.025),
            Stage(jnp.stack([before + 0.025, front[1], up]), -1, 0.015, 0.04, way=0.15),
            Stage(jnp.stack([before + 0.025, front[1], low]), -1, 0.02, 0.01),
            Stage(jnp.stack([push, front[1], low]), -1, 0.01, 0.02, way=0.15, step=0.012),
            Stage(jnp.append(stay, up + 0.05), -1),
        ], facts["grasped"])  # fmt: skip
