"""LiftPeg: two long pegs, and a sentence that says which to lift and hold level."""

import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.envs import expert
from lrm_jax.envs.base import State
from lrm_jax.envs.expert import Stage
from lrm_jax.envs.mjcf import BETWEEN, FIRM, GRIPPED, ON_TABLE, PADS, block, world
from lrm_jax.envs.placement import free_pose, scatter
from lrm_jax.envs.tabletop import SOLID, Layout, Tabletop
from lrm_jax.envs.wordings import Wordings

HALF = (0.06, 0.012, 0.018)  # of a peg [m]
LIFTED = 0.12  # height from which a peg counts as lifted [m]
LEVEL = 0.6  # largest sine of its axis against the horizontal
WORKSPACE = ((0.43, 0.58), (-0.18, 0.18))
MIN_GAP = 0.14


class LiftPeg(Tabletop):
    """Grasp the named peg near its middle, lift it and hold it level to the end."""

    horizon = 60
    groups = (2,)
    alternatives = ((0,), (1,))
    mentions = alternatives
    painted = (("peg0", 0, SOLID), ("peg1", 1, SOLID))
    held_out = (("green",), ("orange",))
    modes = ("success", "wrong_cube", "drop", "miss", "stall", "near_miss", "retry")
    spans = expert.Spans(lift=3, open=5, drop=(3.3, 3.9), stall=(0.3, 3.4))
    words = Wordings(
        "lift the {0} peg",
        train=("pick up the {0} peg", "raise the {0} peg and hold it level"),
        held_out=("hold the {0} stick up", "take the {0} peg off the table"),
    )

    def _index(self) -> None:
        super()._index()
        self._pegs = np.array([self.body(f"peg{i}") for i in range(2)])

    def mjcf(self, timestep: float) -> str:
        """Two pegs on free joints."""
        names = ("peg0", "peg1")
        contacts = [("table", b, ON_TABLE) for b in names]
        contacts += [(p, b, GRIPPED) for p in PADS for b in names]
        contacts += [("peg0", "peg1", BETWEEN)]
        bodies = "".join(block(name, HALF, 0.1 * i, mass=0.04) for i, name in enumerate(names))
        return world("lift_peg", timestep, bodies, contacts, FIRM)

    def layout(self, k_place: jax.Array, k_yaw: jax.Array) -> Layout:
        """Two pegs across the fingers' line, at least MIN_GAP apart."""
        places = scatter(k_place, WORKSPACE, 2, MIN_GAP)
        yaw = jax.random.uniform(k_yaw, (2,), minval=-1, maxval=1) * self.config.cube_yaw
        joints = {f"peg{i}": free_pose(places[i], HALF[2], yaw[i]) for i in range(2)}
        return Layout(joints, jnp.zeros((0, 3)), places)

    def facts(self, state: State, named: jax.Array | None = None) -> dict[str, jax.Array]:
        """See `Tabletop.facts`; named is (peg,). Progress: reach (to 0.30), held and lifted (0.40
        to 0.95), high, level and held (1). pegs float32 [2,3] in metres."""
        named = state.info["named"] if named is None else named
        pegs, tcp = state.data.xpos[self._pegs], self.tool(state)
        peg = pegs[named[0]]
        axis = state.data.xmat[self._pegs[0]], state.data.xmat[self._pegs[1]]
        slope = jnp.abs(jnp.stack(axis)[named[0], 2, 0])
        reach = jnp.linalg.norm(peg - tcp)
        grasped = self.holds(state, reach, HALF[1], reach=0.045)
        height = jnp.clip((peg[2] - HALF[2]) / (LIFTED - HALF[2]), 0.0, 1.0)
        success = grasped & (peg[2] > LIFTED) & (slope < LEVEL)
        progress = jnp.where(grasped, 0.40 + 0.55 * height, 0.30 * jnp.exp(-5.0 * reach))
        return {
            "success": success, "progress": jnp.where(success, 1.0, progress),
            "grasped": grasped, "tcp": tcp, "pegs": pegs,
        }  # fmt: skip

    def program(
        self, state: State, plan: expert.Plan, config: expert.DemonstratorConfig
    ) -> expert.Program:
        """Over the peg, down, close, up, hold; or let go."""
        facts, named = self.facts(state), state.info["named"]
        number = jnp.where(plan.mode == expert.WRONG_CUBE, 1 - named[0], named[0])
        missing = (plan.mode == expert.MISS) | (plan.mode == expert.RETRY)
        at = facts["pegs"][number][:2] + plan.aim * jnp.where(missing, 1.0, 0.2)
        top = jnp.where(plan.mode == expert.NEAR_MISS, 0.085, 0.175)
        target = state.info["target"].position
        return expert.waypoints(target, facts["tcp"], plan, [
            Stage(jnp.append(at, config.hover), 1, 0.007, 0.04, way=0.15),
            Stage(jnp.append(at, 0.020), 1, 0.006, 0.008),
            Stage(None, -1, hold=6),
            Stage(jnp.append(target[:2], top), -1, 0.03, 0.02, way=0.15),
            Stage(jnp.append(target[:2], top), -1, hold=1000),
            Stage(None, 1),
        ], facts["grasped"])  # fmt: skip
