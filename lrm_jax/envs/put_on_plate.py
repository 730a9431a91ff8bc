"""PutOnPlate: two cubes, two plates, and a sentence that says which cube goes on which plate."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from lrm_jax.envs import panda
from lrm_jax.envs.base import State
from lrm_jax.envs.controller import DeltaPoseController, Target
from lrm_jax.run.errors import UserError
from lrm_jax.run.quiet_mjx import mjx

PALETTE = {
    "red": (0.86, 0.12, 0.12),
    "green": (0.10, 0.62, 0.20),
    "blue": (0.10, 0.28, 0.88),
    "yellow": (0.95, 0.83, 0.10),
    "purple": (0.55, 0.15, 0.70),
    "orange": (0.98, 0.50, 0.06),
}
COLOURS = tuple(PALETTE)
# (cube, plate) colour pairs that reward training never sees, not even as distractors.
HELD_OUT_PAIRS = (("red", "blue"), ("red", "yellow"), ("green", "blue"), ("green", "yellow"))
CUBE_HALF = 0.022  # [m]
PLATE_RADIUS = 0.065  # [m]
PLATE_HALF_HEIGHT = 0.002  # [m]
WORKSPACE = ((0.40, 0.60), (-0.20, 0.20))  # x and y of cubes and plates [m]
MIN_GAP = 0.125  # centre distance between any two of the four at reset [m]


def scenes(combos: str) -> np.ndarray:
    """Colour quadruples (cube 0, cube 1, plate 0, plate 1) as indices into COLOURS, int32 [K,4].

    ``"train"`` holds every scene without a held-out (cube, plate) pair; ``"held_out"`` the scenes
    whose four pairs are all held out; ``"all"`` every scene.
    """
    index = {c: i for i, c in enumerate(COLOURS)}
    held = {(index[a], index[b]) for a, b in HELD_OUT_PAIRS}
    rows = []
    pairs = list(itertools.combinations(range(len(COLOURS)), 2))
    for cubes, plates in itertools.product(pairs, pairs):
        inside = [pair in held for pair in itertools.product(cubes, plates)]
        if combos == "all" or (combos == "train" and not any(inside)):
            rows.append((*cubes, *plates))
        elif combos == "held_out" and all(inside):
            rows.append((*cubes, *plates))
    if not rows:
        raise UserError(f"combos={combos!r} is unknown: choose train, held_out or all")
    return np.array(rows, np.int32)


def instruction(cube: int, plate: int) -> str:
    """The task sentence for colour indices into COLOURS."""
    return f"put the {COLOURS[cube]} cube on the {COLOURS[plate]} plate"


def mjcf(timestep: float) -> str:
    """The scene: table, arm, two cubes on free joints, two plates as mocap bodies, one camera."""
    cubes = "".join(
        f"""
    <body name="cube{i}" pos="0.5 {0.1 * i} {CUBE_HALF}">
      <freejoint name="cube{i}"/>
      <geom name="cube{i}" type="box" size="{CUBE_HALF} {CUBE_HALF} {CUBE_HALF}" mass="0.1"
            contype="0" conaffinity="0" group="1"/>
    </body>"""
        for i in range(2)
    )
    # Plates are flat mats: drawn, but without contacts (2 mm is below the contact softness).
    plates = "".join(
        f"""
    <body name="plate{i}" mocap="true" pos="0.5 {-0.1 * i} 0">
      <geom name="plate{i}" type="cylinder" size="{PLATE_RADIUS} {PLATE_HALF_HEIGHT}"
            contype="0" conaffinity="0" group="1"/>
    </body>"""
        for i in range(2)
    )
    pads, boxes = ("left_pad", "right_pad"), ("cube0", "cube1")
    contacts = [("table", b, "1 1 0.005 0.0001 0.0001") for b in boxes]
    contacts += [(p, b, "1 1 0.01 0.0001 0.0001") for p in pads for b in boxes]
    contacts += [("cube0", "cube1", "0.6 0.6 0.005 0.0001 0.0001")]
    pairs = "\n".join(
        f'<pair geom1="{a}" geom2="{b}" condim="3" friction="{f}" solref="0.02 1" '
        'solimp="0.9 0.95 0.001"/>'
        for a, b, f in contacts
    )
    return f"""
<mujoco model="put_on_plate">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{timestep}" integrator="implicitfast" solver="Newton" cone="pyramidal"
          iterations="5" ls_iterations="6" impratio="1">
    <flag eulerdamp="disable"/>
  </option>
  <visual><global offwidth="640" offheight="640"/></visual>
  <default>{panda.defaults_mjcf()}</default>
  <worldbody>
    <light directional="true" pos="0.6 0.4 1.5" dir="-0.2 -0.3 -1" diffuse="0.6 0.6 0.6"/>
    <camera name="front" pos="1.02 0 0.62" xyaxes="0 1 0 -0.72 0 0.694" fovy="39"/>
    <geom name="table" type="plane" size="0.8 0.8 0.05" pos="0.4 0 0" rgba="0.55 0.52 0.48 1"
          contype="0" conaffinity="0" group="1"/>
    {panda.arm_mjcf()}{cubes}{plates}
  </worldbody>
  <contact>{pairs}</contact>
  <actuator>{panda.actuators_mjcf()}</actuator>
</mujoco>"""


@dataclasses.dataclass(frozen=True)
class PutOnPlateConfig:
    """Settings of the task: scenes to draw from, horizon, time steps."""

    combos: str = "held_out"
    episode_length: int = 80
    timestep: float = 0.01
    substeps: int = 5
    cube_yaw: float = 0.25


class PutOnPlate:
    """Pick the named cube, put it on the named plate, let go. Fixed horizon, 7-number actions."""

    camera = "front"
    action_size = 7
    proprio_size = 9

    def __init__(self, **settings):
        """Build the MuJoCo and MJX models; ``settings`` are fields of PutOnPlateConfig."""
        known = {f.name for f in dataclasses.fields(PutOnPlateConfig)}
        if unknown := sorted(set(settings) - known):
            raise UserError(f"PutOnPlate has no setting {unknown[0]!r}: known are {sorted(known)}")
        self.config = PutOnPlateConfig(**settings)
        self.episode_length = self.config.episode_length
        self.control_hz = 1.0 / (self.config.timestep * self.config.substeps)
        self.controller = DeltaPoseController()
        self.scenes = scenes(self.config.combos)
        n = len(COLOURS)
        self.instructions = tuple(instruction(c, p) for c in range(n) for p in range(n))
        self.mj_model = mujoco.MjModel.from_xml_string(mjcf(self.config.timestep))
        self.model = mjx.put_model(self.mj_model)
        self._index()

    def _index(self) -> None:
        """Addresses of the named things and the settled start posture."""
        m = self.mj_model
        self._tcp = m.site("tcp").id
        self._cube_bodies = np.array([m.body(f"cube{i}").id for i in range(2)])
        self._cube_qpos = [m.joint(f"cube{i}").qposadr[0] for i in range(2)]
        self._colour_geoms = np.array(
            [m.geom(f"{k}{i}").id for k in ("cube", "plate") for i in range(2)]
        )
        self._fingers = np.array([m.joint(f"{s}_finger").qposadr[0] for s in ("left", "right")])
        rgb = np.array([PALETTE[c] for c in COLOURS], np.float32)
        self._palette = np.concatenate([rgb, np.ones((len(rgb), 1), np.float32)], 1)
        self._plate_palette = np.concatenate(
            [0.75 * rgb + 0.12, np.ones((len(rgb), 1), np.float32)], 1
        )
        rotation = jnp.array([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]])  # gripper points down
        target = Target(
            jnp.array([0.46, 0.0, 0.20]), rotation, jnp.asarray(panda.READY, jnp.float32),
            jnp.asarray(panda.FINGER_MAX, jnp.float32),
        )  # fmt: skip
        solve = jax.jit(self.controller.solve)
        for _ in range(60):
            target = target.replace(joints=solve(target, jnp.asarray(panda.READY, jnp.float32)))
        self._start = jax.tree.map(np.asarray, target)
        self._template = mjx.make_data(self.model)

    # -- reset ---------------------------------------------------------------------------------

    def _place(self, rng: jax.Array) -> jax.Array:
        """Positions [4,2] of cubes and plates in the workspace, pairwise at least MIN_GAP apart."""
        (x0, x1), (y0, y1) = WORKSPACE
        low, high = jnp.array([x0, y0]), jnp.array([x1, y1])
        draws = jax.random.uniform(rng, (512, 4, 2), minval=low, maxval=high)
        gaps = jnp.linalg.norm(draws[:, :, None] - draws[:, None], axis=-1)
        gaps = jnp.min(gaps + 10.0 * jnp.eye(4), axis=(1, 2))
        # One draw in twenty keeps the gap: 512 fail once in 10^11 resets, then the best serves.
        best = jnp.where(jnp.any(gaps > MIN_GAP), jnp.argmax(gaps > MIN_GAP), jnp.argmax(gaps))
        return draws[best]

    def reset(self, rng: jax.Array) -> State:
        """New colours, places, named cube and plate from a PRNG key."""
        k_scene, k_place, k_yaw, k_named = jax.random.split(rng, 4)
        scene = jnp.asarray(self.scenes)[jax.random.randint(k_scene, (), 0, len(self.scenes))]
        k_cubes, k_plates = jax.random.split(jax.random.fold_in(k_scene, 1))
        colours = jnp.concatenate(
            [
                jax.random.permutation(k_cubes, scene[:2]),
                jax.random.permutation(k_plates, scene[2:]),
            ]
        )
        named = jax.random.randint(k_named, (2,), 0, 2)  # which cube, which plate
        places = self._place(k_place)
        yaw = jax.random.uniform(k_yaw, (2,), minval=-1, maxval=1) * self.config.cube_yaw
        qpos = jnp.zeros(self.mj_model.nq)
        qpos = qpos.at[:7].set(self._start.joints).at[self._fingers].set(panda.FINGER_MAX)
        for i, address in enumerate(self._cube_qpos):
            pose = [
                places[i, 0],
                places[i, 1],
                CUBE_HALF,
                jnp.cos(yaw[i] / 2),
                0,
                0,
                jnp.sin(yaw[i] / 2),
            ]
            qpos = qpos.at[address : address + 7].set(
                jnp.stack([jnp.asarray(v, jnp.float32) for v in pose])
            )
        plates = jnp.concatenate([places[2:], jnp.full((2, 1), PLATE_HALF_HEIGHT)], 1)
        target = jax.tree.map(jnp.asarray, self._start)
        data = self._template.replace(
            qpos=qpos, mocap_pos=plates, ctrl=self.controller.control(target)
        )
        data = mjx.forward(self.model, data)
        zero = jnp.zeros((), jnp.float32)
        info = {
            "task_id": colours[named[0]] * len(COLOURS) + colours[2 + named[1]],
            "named": named,
            "colours": colours,
            "target": target,
            "start_places": places,
            "step": jnp.zeros((), jnp.int32),
        }
        state = State(data, {}, zero, zero, {}, info)
        return self._observe(state, zero)

    # -- step ----------------------------------------------------------------------------------

    def step(self, state: State, action: jax.Array) -> State:
        """One control step: move the target, solve the arm, advance the physics, read the facts."""
        target = self.controller.apply(state.info["target"], action, self._start.joints)
        data = state.data.replace(ctrl=self.controller.control(target))
        data = jax.lax.fori_loop(
            0, self.config.substeps, lambda _, d: mjx.step(self.model, d), data
        )
        # mjx.step leaves frames of the state before its last integration: refresh them for
        # cameras and facts (kinematics alone; contacts are not read).
        data = mjx.kinematics(self.model, data)
        info = dict(state.info, target=target, step=state.info["step"] + 1)
        moved = state.replace(data=data, info=info)
        return self._observe(moved, state.metrics["progress"])

    def _observe(self, state: State, before: jax.Array) -> State:
        """Fill obs, metrics, reward and done from the physics state."""
        data, info = state.data, state.info
        tcp, rotation = data.site_xpos[self._tcp], data.site_xmat[self._tcp]
        fingers = data.qpos[self._fingers]
        facts = self.facts(state)
        # Neither the clock nor the last command: a clone would copy them instead of looking.
        proprio = jnp.concatenate(
            [tcp, rotation[:, 0], rotation[:2, 1], jnp.sum(fingers)[None] * 10.0]
        )
        metrics = {k: facts[k].astype(jnp.float32) for k in ("success", "progress", "grasped")}
        return state.replace(
            obs={"proprio": proprio},
            metrics=metrics,
            reward=metrics["progress"] - before,
            done=(info["step"] >= self.episode_length).astype(jnp.float32),
        )

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
        cubes, plates = data.xpos[self._cube_bodies], data.mocap_pos
        cube, plate = cubes[named[0]], plates[named[1]]
        tcp = data.site_xpos[self._tcp]
        width = jnp.sum(data.qpos[self._fingers])
        start = info["start_places"]
        reach = jnp.linalg.norm(cube - tcp)
        place = jnp.linalg.norm(cube[:2] - plate[:2])
        place_start = jnp.linalg.norm(start[named[0]] - start[2 + named[1]])
        open_ = info["target"].finger > 0.5 * panda.FINGER_MAX
        closed = (width > 1.5 * CUBE_HALF) & (width < 2.6 * CUBE_HALF)
        grasped = (reach < 0.03) & closed & ~open_
        resting = jnp.abs(cube[2] - CUBE_HALF) < 0.006
        on_plate = resting & (place < PLATE_RADIUS - 0.005)
        success = on_plate & open_
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

    def sentence(self, cube: int, plate: int) -> str:
        """The instruction for colour indices into COLOURS."""
        return instruction(int(cube), int(plate))

    def sentences_in_use(self) -> tuple[str, ...]:
        """The instructions that can occur under this environment's ``combos``, sorted."""
        pairs = {(c, p) for row in self.scenes for c in row[:2] for p in row[2:]}
        return tuple(sorted(self.sentence(c, p) for c, p in pairs))

    def scene(self, state: State) -> tuple[mjx.Model, mjx.Data]:
        """The model with this episode's colours, and the data: what a renderer takes."""
        colours = state.info["colours"]
        rgba = jnp.concatenate(
            [jnp.asarray(self._palette)[colours[:2]], jnp.asarray(self._plate_palette)[colours[2:]]]
        )
        model_rgba = jnp.asarray(self.model.geom_rgba).at[self._colour_geoms].set(rgba)
        return self.model.replace(geom_rgba=model_rgba), state.data
