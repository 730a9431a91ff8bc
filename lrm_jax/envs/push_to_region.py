"""PushToRegion: two blocks too wide to grasp, two regions, and which block to push into which."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.envs import expert
from lrm_jax.envs.base import State
from lrm_jax.envs.expert import Stage
from lrm_jax.envs.mjcf import BETWEEN, HIDDEN, PADS, block, world
from lrm_jax.envs.placement import free_pose
from lrm_jax.envs.put_on_plate import HELD_OUT_PAIRS
from lrm_jax.envs.tabletop import FLAT, SOLID, Layout, Tabletop
from lrm_jax.envs.wordings import Wordings

HALF = (0.045, 0.045, 0.02)  # of a block; the gripper opens 0.08 [m]
REGION = ((0.5, 0.18), (0.15, 0.075))  # |centre| and half sides in x and y [m]
ROWS = (0.425, 0.575)  # x of the two blocks [m]
_PUSH_HEIGHT, _TOOL = 0.024, 0.018  # of the tool's centre; half the closed fingers' width [m]


class PushToRegion(Tabletop):
    """Push the named block sideways into the named region with closed fingers."""

    horizon = 90
    groups = (2, 2)
    alternatives = tuple(itertools.product(range(2), range(2)))  # (block, region)
    mentions = tuple((b, 2 + r) for b, r in alternatives)
    painted = (("block0", 0, SOLID), ("block1", 1, SOLID), ("region0", 2, FLAT),
               ("region1", 3, FLAT))  # fmt: skip
    held_out = HELD_OUT_PAIRS
    modes = ("success", "wrong_cube", "wrong_plate", "drop", "stall", "near_miss")
    spans = expert.Spans(lift=-1, open=3, drop=(2.2, 2.6), stall=(0.3, 2.6))
    words = Wordings(
        "push the {0} block into the {1} region",
        train=("push the {0} block to the {1} area", "slide the {0} block into the {1} region"),
        held_out=("shove the {0} block onto the {1} field", "the {0} block goes into {1}"),
    )

    def _index(self) -> None:
        super()._index()
        self._blocks = np.array([self.body(f"block{i}") for i in range(2)])

    def mjcf(self, timestep: float) -> str:
        """Two blocks on free joints, two flat regions without contacts."""
        names = ("block0", "block1")
        contacts = [("table", b, "1 1 0.005 0.0001 0.0001") for b in names]
        contacts += [(p, b, BETWEEN) for p in PADS for b in names]
        contacts += [("block0", "block1", BETWEEN)]
        half = " ".join(str(v) for v in (*REGION[1], 0.001))
        regions = "".join(
            f'<body name="region{i}" mocap="true"><geom name="region{i}" type="box" '
            f'size="{half}" {HIDDEN}/></body>'
            for i in range(2)
        )
        bodies = "".join(block(name, HALF, 0.1 * i, mass=0.15) for i, name in enumerate(names))
        return world("push_to_region", timestep, bodies + regions, contacts)

    def layout(self, k_place: jax.Array, k_yaw: jax.Array) -> Layout:
        """Blocks near the middle, in two rows; the regions left and right, in either order."""
        k_row, k_side, k_jitter = jax.random.split(k_place, 3)
        rows = jax.random.permutation(k_row, jnp.array(ROWS))
        jitter = jax.random.uniform(k_jitter, (2, 2), minval=-1, maxval=1)
        places = jnp.stack([rows + 0.01 * jitter[:, 0], 0.04 * jitter[:, 1]], 1)
        side = jnp.where(jax.random.bernoulli(k_side), 1.0, -1.0)
        (x, y), _ = REGION
        regions = jnp.array([[x, y, 0.001], [x, -y, 0.001]]) * jnp.stack([1.0, side, 1.0])
        yaw = jax.random.uniform(k_yaw, (2,), minval=-1, maxval=1) * 0.1
        joints = {f"block{i}": free_pose(places[i], HALF[2], yaw[i]) for i in range(2)}
        return Layout(joints, regions, jnp.concatenate([places, regions[:, :2]]))

    def facts(self, state: State, named: jax.Array | None = None) -> dict[str, jax.Array]:
        """See `Tabletop.facts`; named is (block, region). Progress: reach (to 0.30), pushed (0.35
        to 0.95), done (1). grasped: the tool is at the block. blocks, regions float32 [2,3]."""
        named = state.info["named"] if named is None else named
        blocks, regions = state.data.xpos[self._blocks], state.data.mocap_pos[:2]
        at, goal, tcp = blocks[named[0]], regions[named[1]], self.tool(state)
        start = state.info["start_places"][named[0]]
        _, (half_x, half_y) = REGION
        offset = jnp.abs(at - goal)
        # All of the block but a tenth of its half side.
        inside = (offset[0] < half_x - 0.9 * HALF[0]) & (offset[1] < half_y - 0.9 * HALF[1])
        success = inside & (jnp.abs(at[2] - HALF[2]) < 0.006)
        reach = jnp.maximum(jnp.linalg.norm(at - tcp) - HALF[1] - _TOOL, 0.0)
        moved = jnp.clip(1.0 - offset[1] / jnp.abs(start[1] - goal[1]), 0.0, 1.0)
        progress = jnp.where(moved > 0.03, 0.35 + 0.6 * moved, 0.30 * jnp.exp(-5.0 * reach))
        return {
            "success": success, "progress": jnp.where(success, 1.0, progress),
            "grasped": reach < 0.02, "tcp": tcp, "blocks": blocks, "regions": regions,
        }  # fmt: skip

    def program(
        self, state: State, plan: expert.Plan, config: expert.DemonstratorConfig
    ) -> expert.Program:
        """Over the far side of the block, down, push until it is there, up."""
        facts, named = self.facts(state), state.info["named"]
        number = jnp.where(plan.mode == expert.WRONG_CUBE, 1 - named[0], named[0])
        region = jnp.where(plan.mode == expert.WRONG_PLATE, 1 - named[1], named[1])
        at, goal = facts["blocks"][number], facts["regions"][region]
        way = jnp.sign(goal[1])
        contact = HALF[1] + _TOOL
        x = at[0] + 0.3 * plan.aim[0]
        short = jnp.where(plan.mode == expert.NEAR_MISS, 0.06, 0.0)
        end = goal[1] + jnp.where(short > 0, 0.0, 0.5 * plan.place[1]) - way * (contact + short)
        behind = at[1] - way * (contact + 0.025)
        target, hover = state.info["target"].position, 0.09
        return expert.waypoints(target, facts["tcp"], plan, [
            Stage(jnp.stack([x, behind, hover]), -1, 0.012, 0.04, way=0.2),
            Stage(jnp.stack([x, behind, _PUSH_HEIGHT]), -1, 0.02, 0.008),
            Stage(jnp.stack([x, end, _PUSH_HEIGHT]), -1, 0.012, 0.02, way=0.2, step=0.01),
            Stage(jnp.append(target[:2], hover + 0.05), -1),
        ], facts["grasped"])  # fmt: skip
