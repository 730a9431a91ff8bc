"""PressButtons: three buttons, of which the sentence names two in an order."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.envs import expert
from lrm_jax.envs.base import State
from lrm_jax.envs.expert import Stage
from lrm_jax.envs.mjcf import BETWEEN, HIDDEN, PADS, world
from lrm_jax.envs.placement import scatter
from lrm_jax.envs.tabletop import SOLID, Layout, Tabletop
from lrm_jax.envs.wordings import Wordings
from lrm_jax.run.quiet_mjx import mjx

TRAVEL, PRESSED = 0.012, 0.008  # of a cap, and how far down counts as pressed [m]
CAP_TOP = 0.034  # height of a cap's upper face at rest [m]
WORKSPACE = ((0.42, 0.60), (-0.18, 0.18))
MIN_GAP = 0.13
_DARK, _BRIGHT = (0.12, 0.12, 0.12, 1.0), (1.0, 0.98, 0.75, 1.0)
_SEVERAL = ("red", "green", "blue")


class PressButtons(Tabletop):
    """Press the first named button, then the second, and no other. Lamps show what was pressed."""

    horizon = 90
    groups = (3,)
    alternatives = tuple(itertools.permutations(range(3), 2))  # (first, second)
    mentions = alternatives
    painted = tuple((f"cap{i}", i, SOLID) for i in range(3))
    held_out = tuple(itertools.permutations(_SEVERAL, 2))
    modes = ("success", "wrong_cube", "wrong_plate", "drop", "miss", "stall")
    spans = expert.Spans(lift=-1, open=5, drop=(2.3, 3.8), stall=(0.3, 4.4))
    words = Wordings(
        "press the {0} button and then the {1} button",
        train=("push the {0} button first and the {1} one second", "press {0} and after it {1}"),
        held_out=("before the {1} button press the {0} one", "{0} first, then {1}"),
    )

    def _index(self) -> None:
        super()._index()
        self._caps = np.array([self.mj_model.joint(f"cap{i}").qposadr[0] for i in range(3)])
        self._lamps = np.array([self.mj_model.geom(f"lamp{i}").id for i in range(3)])

    def mjcf(self, timestep: float) -> str:
        """Three bases, mocap bodies, each with a cap on a spring and a lamp."""
        bodies = "".join(
            f"""
    <body name="button{i}" mocap="true" pos="0.5 {0.13 * (i - 1)} 0">
      <geom type="box" pos="0 0 0.008" size="0.038 0.034 0.008" rgba="0.75 0.75 0.78 1" {HIDDEN}/>
      <geom name="lamp{i}" type="sphere" pos="0.034 0 0.016" size="0.010" {HIDDEN}/>
      <body name="cap{i}" pos="-0.006 0 {CAP_TOP - 0.008}" gravcomp="1">
        <joint name="cap{i}" type="slide" axis="0 0 1" range="{-TRAVEL} 0" stiffness="80"
               damping="1.5" armature="0.02"/>
        <geom name="cap{i}" type="box" size="0.022 0.022 0.008" mass="0.05" {HIDDEN}/>
      </body>
    </body>"""
            for i in range(3)
        )
        contacts = [(p, f"cap{i}", BETWEEN) for p in PADS for i in range(3)]
        return world("press_buttons", timestep, bodies, contacts)

    def layout(self, k_place: jax.Array, k_yaw: jax.Array) -> Layout:
        """Three buttons in the workspace, at least MIN_GAP apart."""
        places = scatter(k_place, WORKSPACE, 3, MIN_GAP)
        return Layout({}, jnp.concatenate([places, jnp.zeros((3, 1))], 1), places)

    def memory(self) -> dict[str, jax.Array]:
        """pressed_at int32 [3]: the control step in which each was first pressed, 0 for never."""
        return {"pressed_at": jnp.zeros(3, jnp.int32)}

    def remember(self, info: dict, data: mjx.Data) -> dict:
        """Notes what is down and was not before."""
        down = data.qpos[self._caps] < -PRESSED
        before = info["pressed_at"]
        return dict(info, pressed_at=jnp.where(down & (before == 0), info["step"], before))

    def facts(self, state: State, named: jax.Array | None = None) -> dict[str, jax.Array]:
        """See `Tabletop.facts`; named is (first, second). Progress: reach the first (to 0.45), the
        second (0.50 to 0.95), done (1); a button out of turn spoils the episode (0.05).

        grasped: the tool is on a cap. caps float32 [3,3]: centres of the upper faces, in metres.
        """
        named = state.info["named"] if named is None else named
        at = state.info["pressed_at"]
        first, second = at[named[0]], at[named[1]]
        other = at[3 - named[0] - named[1]]
        # Every press has to be in turn: nothing before the first, nothing else at all.
        spoiled = (other > 0) | ((second > 0) & ((first == 0) | (second <= first)))
        success = (first > 0) & (second > 0) & ~spoiled
        caps = jnp.append(state.data.mocap_pos[:3, :2], jnp.full((3, 1), CAP_TOP), 1)
        caps = caps + jnp.array([-0.006, 0.0, 0.0])
        tcp = self.tool(state)
        gaps = jnp.linalg.norm(caps - tcp, axis=-1)
        progress = jnp.where(
            first > 0, 0.50 + 0.45 * jnp.exp(-5.0 * gaps[named[1]]),
            0.45 * jnp.exp(-5.0 * gaps[named[0]]),
        )  # fmt: skip
        progress = jnp.where(spoiled, 0.05, jnp.where(success, 1.0, progress))
        return {
            "success": success, "progress": progress, "grasped": jnp.min(gaps) < 0.02,
            "tcp": tcp, "caps": caps,
        }  # fmt: skip

    def lit(self, state: State, rgba: jax.Array) -> jax.Array:
        """A pressed button's lamp is bright from then on."""
        on = (state.info["pressed_at"] > 0)[:, None]
        return rgba.at[self._lamps].set(jnp.where(on, jnp.array(_BRIGHT), jnp.array(_DARK)))

    def program(
        self, state: State, plan: expert.Plan, config: expert.DemonstratorConfig
    ) -> expert.Program:
        """Over one cap, press, up, over the other, press, up."""
        facts, named = self.facts(state), state.info["named"]
        swaps = plan.mode == expert.WRONG_CUBE
        first = jnp.where(swaps, named[1], named[0])
        second = jnp.where(swaps, named[0], named[1])
        second = jnp.where(plan.mode == expert.WRONG_PLATE, 3 - named[0] - named[1], second)
        one, two = (facts["caps"][i][:2] + plan.aim for i in (first, second))
        target, up, down = state.info["target"].position, 0.085, CAP_TOP - TRAVEL + 0.004
        return expert.waypoints(target, facts["tcp"], plan, [
            Stage(jnp.append(one, up), -1, 0.012, 0.03, way=0.15),
            Stage(jnp.append(one, down), -1, 0.02, 0.008, hold=2),
            Stage(jnp.append(target[:2], up), -1, 0.02, 0.03),
            Stage(jnp.append(two, up), -1, 0.012, 0.03, way=0.15),
            Stage(jnp.append(two, down), -1, 0.02, 0.008, hold=2),
            Stage(jnp.append(target[:2], up + 0.05), -1),
        ], facts["grasped"])  # fmt: skip
