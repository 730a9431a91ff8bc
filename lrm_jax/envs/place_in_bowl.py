"""PlaceInBowl: two cubes and a bowl, and a sentence that says which cube goes into it."""

import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.envs import expert
from lrm_jax.envs.base import State
from lrm_jax.envs.mjcf import BETWEEN, GRIPPED, HIDDEN, ON_TABLE, PADS, block, world
from lrm_jax.envs.placement import free_pose, scatter
from lrm_jax.envs.put_on_plate import CUBE_HALF, HELD_OUT_PAIRS
from lrm_jax.envs.tabletop import FLAT, SOLID, Layout, Tabletop
from lrm_jax.envs.wordings import Wordings

RIM_RADIUS = 0.062  # to the corners of the ring's axis [m]
RIM_HEIGHT, RIM_THICKNESS = 0.019, 0.008  # of the ring's axis, and its own radius [m]
SIDES = 6
WORKSPACE = ((0.42, 0.60), (-0.19, 0.19))
MIN_GAP = 0.135


def bowl() -> tuple[str, list[str]]:
    """MJCF of the bowl, a mocap body: a ring of capsules around a floor; names of the capsules."""
    corners = [2 * np.pi * i / SIDES for i in range(SIDES + 1)]
    parts, names = [], [f"rim{i}" for i in range(SIDES)]
    for name, a, b in zip(names, corners[:-1], corners[1:], strict=True):
        ends = " ".join(
            f"{RIM_RADIUS * np.cos(c):.6f} {RIM_RADIUS * np.sin(c):.6f} {RIM_HEIGHT}"
            for c in (a, b)
        )
        parts.append(
            f'<geom name="{name}" type="capsule" fromto="{ends}" size="{RIM_THICKNESS}" {HIDDEN}/>'
        )
    # The wall below the rim and the floor are drawn: the table carries what lies in the bowl.
    parts.append(
        f'<geom name="wall" type="cylinder" pos="0 0 {RIM_HEIGHT / 4}" '
        f'size="{0.93 * RIM_RADIUS} {RIM_HEIGHT / 4}" {HIDDEN}/>'
    )
    return f'<body name="bowl" mocap="true" pos="0.5 -0.1 0">{"".join(parts)}</body>', names


_RIM = tuple(f"rim{i}" for i in range(SIDES))


class PlaceInBowl(Tabletop):
    """Pick the named cube, let it fall into the bowl."""

    horizon = 90
    groups = (2, 1)
    alternatives = ((0,), (1,))
    mentions = ((0, 2), (1, 2))
    painted = (
        ("cube0", 0, SOLID), ("cube1", 1, SOLID), ("wall", 2, FLAT),
        *((name, 2, SOLID) for name in _RIM),
    )  # fmt: skip
    held_out = HELD_OUT_PAIRS
    modes = ("success", "wrong_cube", "drop", "miss", "stall", "near_miss", "retry")
    words = Wordings(
        "put the {0} cube in the {1} bowl",
        train=("place the {0} cube inside the {1} bowl", "drop the {0} cube into the {1} bowl"),
        held_out=("the {0} block belongs in the {1} bowl", "fill the {1} bowl with the {0} cube"),
    )

    def _index(self) -> None:
        super()._index()
        self._cubes = np.array([self.body(f"cube{i}") for i in range(2)])

    def mjcf(self, timestep: float) -> str:
        """Two cubes on free joints and the bowl."""
        body, rim = bowl()
        names = ("cube0", "cube1")
        contacts = [("table", b, ON_TABLE) for b in names]
        contacts += [(p, b, GRIPPED) for p in PADS for b in names]
        contacts += [("cube0", "cube1", BETWEEN)]
        contacts += [(r, b, BETWEEN) for r in rim for b in names]
        cubes = "".join(block(name, (CUBE_HALF,) * 3, 0.1 * i) for i, name in enumerate(names))
        return world("place_in_bowl", timestep, cubes + body, contacts)

    def layout(self, k_place: jax.Array, k_yaw: jax.Array) -> Layout:
        """Cubes and bowl in the workspace, pairwise at least MIN_GAP apart."""
        places = scatter(k_place, WORKSPACE, 3, MIN_GAP)
        yaw = jax.random.uniform(k_yaw, (2,), minval=-1, maxval=1) * self.config.cube_yaw
        joints = {f"cube{i}": free_pose(places[i], CUBE_HALF, yaw[i]) for i in range(2)}
        return Layout(joints, jnp.append(places[2], 0.0)[None], places)

    def facts(self, state: State, named: jax.Array | None = None) -> dict[str, jax.Array]:
        """See `Tabletop.facts`; named is (cube,). Progress: reach (to 0.30), carry (0.40 to 0.85),
        in the bowl but held (0.88), done (1). cubes float32 [2,3], bowl [3] in metres."""
        named = state.info["named"] if named is None else named
        cubes, tcp = state.data.xpos[self._cubes], self.tool(state)
        cube, bowl_at = cubes[named[0]], state.data.mocap_pos[0]
        start = state.info["start_places"]
        reach = jnp.linalg.norm(cube - tcp)
        grasped = self.holds(state, reach, CUBE_HALF)
        away = jnp.linalg.norm(cube[:2] - bowl_at[:2])
        # Within the ring and down on the floor, upright or on a side; not on the rim.
        inside = (away < 0.04) & (cube[2] < CUBE_HALF + 0.012)
        success = inside & self.commanded_open(state)
        carried = jnp.clip(1.0 - away / jnp.linalg.norm(start[named[0]] - start[2]), 0.0, 1.0)
        lifted = jnp.clip((cube[2] - CUBE_HALF) / 0.08, 0.0, 1.0)
        held = 0.40 + 0.10 * jnp.maximum(lifted, carried) + 0.35 * carried
        progress = jnp.where(grasped, held, 0.30 * jnp.exp(-5.0 * reach))
        progress = jnp.where(inside, jnp.where(success, 1.0, 0.88), progress)
        return {
            "success": success, "progress": progress, "grasped": grasped, "tcp": tcp,
            "cubes": cubes, "bowl": bowl_at,
        }  # fmt: skip

    def program(
        self, state: State, plan: expert.Plan, config: expert.DemonstratorConfig
    ) -> expert.Program:
        """Pick one cube and let go of it with the pads above the rim."""
        facts, named = self.facts(state), state.info["named"]
        cube = jnp.where(plan.mode == expert.WRONG_CUBE, 1 - named[0], named[0])
        place = plan.place * jnp.where(plan.mode == expert.NEAR_MISS, 1.0, 0.5)
        return expert.pick_and_place(
            state.info["target"].position, facts["tcp"], plan,
            grasp_at=facts["cubes"][cube][:2] + plan.aim,
            place_at=facts["bowl"][:2] + place, grasped=facts["grasped"], grasp=config.grasp,
            release=0.042, hover=config.hover + 0.01,
        )  # fmt: skip
