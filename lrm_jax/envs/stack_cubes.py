"""StackCubes: two cubes, and a sentence that says which goes on top of the other."""

import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.envs import expert
from lrm_jax.envs.base import State
from lrm_jax.envs.mjcf import BETWEEN, FIRM, GRIPPED, ON_TABLE, PADS, block, world
from lrm_jax.envs.placement import free_pose, scatter
from lrm_jax.envs.tabletop import SOLID, Layout, Tabletop
from lrm_jax.envs.wordings import Wordings

CUBE_HALF = 0.022  # [m]
WORKSPACE = ((0.42, 0.60), (-0.18, 0.18))
MIN_GAP = 0.125
_PAIRS = (("red", "blue"), ("green", "yellow"), ("purple", "orange"))


class StackCubes(Tabletop):
    """Put the first named cube on the second and let go; the tower has to stand."""

    horizon = 90
    groups = (2,)
    alternatives = ((0, 1), (1, 0))  # (upper, lower)
    mentions = alternatives
    painted = (("cube0", 0, SOLID), ("cube1", 1, SOLID))
    held_out = (*_PAIRS, *((b, a) for a, b in _PAIRS))
    stretched = ("cube0", "cube1")
    modes = ("success", "wrong_cube", "drop", "miss", "stall", "near_miss", "retry")
    words = Wordings(
        "stack the {0} cube on the {1} cube",
        train=("put the {0} cube on top of the {1} cube", "place the {0} cube on the {1} one"),
        held_out=("build a tower with {0} above {1}", "the {0} block goes on the {1} block"),
    )

    def _index(self) -> None:
        super()._index()
        self._cubes = np.array([self.body(f"cube{i}") for i in range(2)])

    def mjcf(self, timestep: float) -> str:
        """Two cubes on free joints."""
        names = ("cube0", "cube1")
        contacts = [("table", b, ON_TABLE) for b in names]
        contacts += [(p, b, GRIPPED) for p in PADS for b in names]
        contacts += [("cube0", "cube1", BETWEEN)]
        bodies = "".join(block(name, (CUBE_HALF,) * 3, 0.1 * i) for i, name in enumerate(names))
        return world("stack_cubes", timestep, bodies, contacts, FIRM)

    def layout(self, k_place: jax.Array, k_yaw: jax.Array) -> Layout:
        """Two cubes in the workspace, at least MIN_GAP apart."""
        places = scatter(k_place, WORKSPACE, 2, MIN_GAP)
        yaw = jax.random.uniform(k_yaw, (2,), minval=-1, maxval=1) * self.config.cube_yaw
        joints = {f"cube{i}": free_pose(places[i], CUBE_HALF, yaw[i]) for i in range(2)}
        return Layout(joints, jnp.zeros((0, 3)), places)

    def facts(self, state: State, named: jax.Array | None = None) -> dict[str, jax.Array]:
        """See `Tabletop.facts`; named is (upper, lower). Progress: reach (to 0.30), carry (0.40 to
        0.85), on top but held (0.88), done (1). cubes float32 [2,3] in metres."""
        named = state.info["named"] if named is None else named
        cubes, tcp = state.data.xpos[self._cubes], self.tool(state)
        upper, lower = cubes[named[0]], cubes[named[1]]
        start = state.info["start_places"]
        reach = jnp.linalg.norm(upper - tcp)
        grasped = self.holds(state, reach, CUBE_HALF)
        away = jnp.linalg.norm(upper[:2] - lower[:2])
        rise = upper[2] - lower[2]
        on_top = (
            (jnp.abs(rise - 2 * CUBE_HALF) < 0.006)
            & (away < 0.9 * CUBE_HALF)
            & (jnp.abs(lower[2] - CUBE_HALF) < 0.006)
        )
        success = on_top & self.commanded_open(state)
        carried = jnp.clip(1.0 - away / jnp.linalg.norm(start[0] - start[1]), 0.0, 1.0)
        lifted = jnp.clip((upper[2] - CUBE_HALF) / 0.08, 0.0, 1.0)
        held = 0.40 + 0.10 * jnp.maximum(lifted, carried) + 0.35 * carried
        progress = jnp.where(grasped, held, 0.30 * jnp.exp(-5.0 * reach))
        progress = jnp.where(on_top, jnp.where(success, 1.0, 0.88), progress)
        return {
            "success": success, "progress": progress, "grasped": grasped, "tcp": tcp,
            "cubes": cubes,
        }  # fmt: skip

    def program(
        self, state: State, plan: expert.Plan, config: expert.DemonstratorConfig
    ) -> expert.Program:
        """Pick one cube, let go of it over the other, a little above contact."""
        facts, named = self.facts(state), state.info["named"]
        upper = jnp.where(plan.mode == expert.WRONG_CUBE, named[1], named[0])
        # A quarter of the usual spread: half a cube's width is all that a tower forgives.
        near = plan.mode == expert.NEAR_MISS
        place = plan.place * jnp.where(near, 0.6, 0.25)
        # The cube, and not the tool, is brought over the other: it may be held off its centre.
        held_off = jnp.where(facts["grasped"], facts["tcp"] - facts["cubes"][upper], 0.0)
        over = facts["cubes"][1 - upper][:2] + place + held_off[:2]
        release = 3 * CUBE_HALF + 0.001 + held_off[2]
        # A cube held off its centre tilts in the hand and falls off the tower.
        missing = (plan.mode == expert.MISS) | (plan.mode == expert.RETRY)
        aim = plan.aim * jnp.where(missing, 1.0, 0.3)
        grasp_at = facts["cubes"][upper][:2] + aim
        program = expert.pick_and_place(
            state.info["target"].position, facts["tcp"], plan,
            grasp_at=grasp_at, place_at=over,
            grasped=facts["grasped"], grasp=config.grasp, release=release,
            hover=config.hover + 0.02,
        )  # fmt: skip
        off = facts["tcp"] - jnp.append(over, release)
        settled = (jnp.linalg.norm(off[:2]) < 0.008) & (jnp.abs(off[2]) < 0.006)
        above = jnp.linalg.norm(facts["tcp"][:2] - grasp_at) < 0.006
        reached = program.reached.at[expert.LOWER].set(settled)
        reached = reached.at[expert.DESCEND].set(reached[expert.DESCEND] & above)
        return program._replace(reached=reached)
