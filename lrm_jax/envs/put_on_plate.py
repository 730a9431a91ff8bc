"""PutOnPlate: two cubes, two plates, and a sentence that says which cube goes on which plate."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.envs import colours, expert
from lrm_jax.envs.base import State
from lrm_jax.envs.colours import COLOURS, PALETTE
from lrm_jax.envs.mjcf import BETWEEN, GRIPPED, HIDDEN, ON_TABLE, PADS, block, world
from lrm_jax.envs.placement import free_pose, scatter
from lrm_jax.envs.tabletop import FLAT, SOLID, Layout, Tabletop
from lrm_jax.envs.wordings import Wordings

# (cube, plate) colour pairs that reward training never sees, not even as distractors.
HELD_OUT_PAIRS = (("red", "blue"), ("red", "yellow"), ("green", "blue"), ("green", "yellow"))
CUBE_HALF = 0.022  # [m]
PLATE_RADIUS = 0.065  # [m]
PLATE_HALF_HEIGHT = 0.002  # [m]
WORKSPACE = ((0.40, 0.60), (-0.20, 0.20))  # x and y of cubes and plates [m]
MIN_GAP = 0.125  # centre distance between any two of the four at reset [m]

__all__ = ["COLOURS", "PALETTE", "PutOnPlate"]  # the first two also from here


def scenes(combos: str) -> np.ndarray:
    """Colour quadruples (cube 0, cube 1, plate 0, plate 1) as indices into COLOURS, int32 [K,4].

    ``"train"`` holds every scene without a held-out (cube, plate) pair; ``"held_out"`` the scenes
    whose four pairs are all held out; ``"all"`` every scene.
    """
    return colours.scenes(PutOnPlate.groups, PutOnPlate.mentions, HELD_OUT_PAIRS, combos)


def mjcf(timestep: float) -> str:
    """The scene: table, arm, two cubes on free joints, two plates as mocap bodies, one camera."""
    cubes = "".join(block(f"cube{i}", (CUBE_HALF,) * 3, 0.1 * i) for i in range(2))
    # Plates are flat mats: drawn, but without contacts (2 mm is below the contact softness).
    plates = "".join(
        f"""
    <body name="plate{i}" mocap="true" pos="0.5 {-0.1 * i} 0">
      <geom name="plate{i}" type="cylinder" size="{PLATE_RADIUS} {PLATE_HALF_HEIGHT}" {HIDDEN}/>
    </body>"""
        for i in range(2)
    )
    boxes = ("cube0", "cube1")
    contacts = [("table", b, ON_TABLE) for b in boxes]
    contacts += [(p, b, GRIPPED) for p in PADS for b in boxes]
    contacts += [("cube0", "cube1", BETWEEN)]
    return world("put_on_plate", timestep, cubes + plates, contacts)


class PutOnPlate(Tabletop):
    """Pick the named cube, put it on the named plate, let go. Fixed horizon, 7-number actions."""

    groups = (2, 2)
    alternatives = tuple(itertools.product(range(2), range(2)))  # (cube, plate)
    mentions = tuple((c, 2 + p) for c, p in alternatives)
    painted = (("cube0", 0, SOLID), ("cube1", 1, SOLID), ("plate0", 2, FLAT), ("plate1", 3, FLAT))
    held_out = HELD_OUT_PAIRS
    stretched = ("cube0", "cube1")
    words = Wordings(
        "put the {0} cube on the {1} plate",
        train=("place the {0} cube onto the {1} plate", "move the {0} cube to the {1} plate"),
        held_out=("set the {0} block down on the {1} dish", "the {0} cube goes on the {1} plate"),
    )

    def _index(self) -> None:
        super()._index()
        self._cube_bodies = np.array([self.body(f"cube{i}") for i in range(2)])

    def mjcf(self, timestep: float) -> str:
        """See `mjcf` of this module."""
        return mjcf(timestep)

    def draw_named(self, key: jax.Array) -> jax.Array:
        """Which cube and which plate, int32 [2]."""
        return jax.random.randint(key, (2,), 0, 2)

    def layout(self, k_place: jax.Array, k_yaw: jax.Array) -> Layout:
        """Cubes and plates in the workspace, pairwise at least MIN_GAP apart."""
        # One draw in twenty keeps the gap: 512 fail once in 10^11 resets, then the best serves.
        places = scatter(k_place, WORKSPACE, 4, MIN_GAP)
        yaw = jax.random.uniform(k_yaw, (2,), minval=-1, maxval=1) * self.config.cube_yaw
        joints = {f"cube{i}": free_pose(places[i], CUBE_HALF, yaw[i]) for i in range(2)}
        plates = jnp.concatenate([places[2:], jnp.full((2, 1), PLATE_HALF_HEIGHT)], 1)
        return Layout(joints, plates, places)

    def facts(self, state: State, named: jax.Array | None = None) -> dict[str, jax.Array]:
        """Privileged simulator facts for experts, labels and evaluation (never for a policy).

        Args:
          named: int32 [2], the cube and plate to judge by; the sentence's own if None. Other values
            tell how far the same state is along a sentence that was not said.
        Returns:
          success, grasped bool []; progress float32 [] in [0, 1], staged: reach (to 0.30), carry
          (0.40 to 0.85), on the plate but held (0.88), done (1); cube, plate, tcp float32 [3],
          cubes, plates float32 [2,3], in metres.
        """
        data, info = state.data, state.info
        named = info["named"] if named is None else named
        cubes, plates = data.xpos[self._cube_bodies], data.mocap_pos[:2]
        cube, plate = cubes[named[0]], plates[named[1]]
        tcp = self.tool(state)
        start = info["start_places"]
        reach = jnp.linalg.norm(cube - tcp)
        place = jnp.linalg.norm(cube[:2] - plate[:2])
        place_start = jnp.linalg.norm(start[named[0]] - start[2 + named[1]])
        grasped = self.holds(state, reach, CUBE_HALF)
        resting = jnp.abs(cube[2] - CUBE_HALF) < 0.006
        on_plate = resting & (place < PLATE_RADIUS - 0.005)
        success = on_plate & self.commanded_open(state)
        carried = jnp.clip(1.0 - place / place_start, 0.0, 1.0)
        lifted = jnp.clip((cube[2] - CUBE_HALF) / 0.08, 0.0, 1.0)
        p_reach = 0.30 * jnp.exp(-5.0 * reach)
        p_carry = 0.40 + 0.10 * jnp.maximum(lifted, carried) + 0.35 * carried
        progress = jnp.where(grasped, p_carry, p_reach)
        progress = jnp.where(on_plate & ~success, jnp.maximum(progress, 0.88), progress)
        progress = jnp.where(success, 1.0, progress)
        return {
            "success": success, "progress": progress, "grasped": grasped,
            "cube": cube, "plate": plate, "cubes": cubes, "plates": plates, "tcp": tcp,
        }  # fmt: skip

    def program(
        self, state: State, plan: expert.Plan, config: expert.DemonstratorConfig
    ) -> expert.Program:
        """Pick the cube that the mode is after, put it on the plate that the mode is after."""
        facts, named = self.facts(state), state.info["named"]
        cube = jnp.where(plan.mode == expert.WRONG_CUBE, 1 - named[0], named[0])
        plate = jnp.where(plan.mode == expert.WRONG_PLATE, 1 - named[1], named[1])
        return expert.pick_and_place(
            state.info["target"].position, facts["tcp"], plan,
            grasp_at=facts["cubes"][cube][:2] + plan.aim,
            place_at=state.data.mocap_pos[plate][:2] + plan.place,
            grasped=facts["grasped"], grasp=config.grasp, release=config.release,
            hover=config.hover,
        )  # fmt: skip
