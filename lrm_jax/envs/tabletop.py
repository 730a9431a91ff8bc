"""What all tasks on the table share: arm, controller, camera, colours, sentences, steps."""

import dataclasses
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from lrm_jax.envs import colours, expert, panda, variations
from lrm_jax.envs.base import State
from lrm_jax.envs.colours import COLOURS
from lrm_jax.envs.controller import DeltaPoseController, Target
from lrm_jax.envs.implementation import put_model
from lrm_jax.envs.wordings import Wordings
from lrm_jax.run.errors import UserError, did_you_mean
from lrm_jax.run.quiet_mjx import mjx

SOLID, FLAT = 0, 1  # rows of colours.tables()


@dataclasses.dataclass(frozen=True)
class TabletopConfig(variations.VariationConfig):
    """Settings of a task: scenes to draw from, horizon, time steps, and what varies.

    combos: ``train``, ``held_out`` or ``all`` combinations of colours. episode_length: control
    steps, the task's own horizon if None. timestep: seconds of a physics step; substeps: of them
    in a control step. cube_yaw: largest turn at reset [rad]. wordings: ``plain``, or the templates
    ``train``, ``held_out`` or ``all``. impl: ``jax``, ``warp`` or ``auto`` (see
    `envs.implementation`).
    """

    combos: str = "held_out"
    episode_length: int | None = None
    timestep: float = 0.01
    substeps: int = 5
    cube_yaw: float = 0.25
    wordings: str = "plain"
    impl: str = "jax"


class Layout(NamedTuple):
    """Where things are at reset.

    joints: joint name -> its qpos values. mocap: float32 [nmocap,3], positions of mocap bodies.
    start: float32 [M,2], the places that progress is measured from.
    """

    joints: dict[str, jax.Array]
    mocap: jax.Array
    start: jax.Array


class Tabletop:
    """A task: a sentence names things by colour, an arm acts for a fixed number of control steps.

    A task states, as class attributes: ``groups`` (how many things of each kind are coloured, in
    the order of ``info["colours"]``), ``alternatives`` (every value that ``info["named"]`` takes: a
    scene has one sentence for each), ``mentions`` (the things whose colours that sentence says),
    ``painted`` (geom, thing, SOLID or FLAT), ``held_out`` (colours of held-out sentences),
    ``words`` (its sentences' templates), ``modes`` (the demonstrator's intentions that it knows),
    ``spans`` and, if its horizon differs, ``horizon``. It defines `mjcf`, `layout`, `facts`,
    `program`.
    """

    camera = "front"
    action_size = 7
    proprio_size = 9
    horizon = 80  # control steps, unless episode_length says otherwise
    groups: tuple[int, ...]
    alternatives: tuple[tuple[int, ...], ...]
    mentions: tuple[tuple[int, ...], ...]
    painted: tuple[tuple[str, int, int], ...]
    held_out: tuple[tuple[str, ...], ...]
    words: Wordings
    modes: tuple[str, ...] = expert.MODES
    spans: expert.Spans = expert.PICK_AND_PLACE
    stretched: tuple[str, ...] = ()  # boxes that may be longer along their x than they are drawn

    def __init__(self, **settings):
        """Build the MuJoCo and MJX models; ``settings`` are fields of the task's config."""
        self.name = type(self).__name__
        known = {f.name for f in dataclasses.fields(TabletopConfig)}
        if unknown := sorted(set(settings) - known):
            raise UserError(
                f"{self.name} has no setting {unknown[0]!r}: {did_you_mean(unknown[0], known)}"
            )
        self.config = TabletopConfig(**settings)
        self.config.validate(self.name)
        self.episode_length = self.config.episode_length or self.horizon
        self.control_hz = 1.0 / (self.config.timestep * self.config.substeps)
        self.controller = DeltaPoseController()
        self.scenes = colours.scenes(
            self.groups, self.mentions, self.held_out, self.config.combos
        )
        self._spoken = self.words.in_use(self.config.wordings)
        self._templates = self.words.table(self.config.wordings)
        said = len(self.mentions[0])
        self.instructions = tuple(
            template.format(*(COLOURS[c] for c in combo))
            for combo in itertools.product(range(len(COLOURS)), repeat=said)
            for template in self._templates
        )
        xml = variations.with_distractors(self.mjcf(self.config.timestep), self.config.distractors)
        self.mj_model = mujoco.MjModel.from_xml_string(xml)
        self.model, self._template = put_model(self.mj_model, self.config.impl)
        self._variations = variations.Variations(self.config, self.mj_model, self.stretched)
        self._index()

    def _index(self) -> None:
        """Addresses of the named things and the settled start posture."""
        m = self.mj_model
        self._tcp = m.site("tcp").id
        self._fingers = np.array([m.joint(f"{s}_finger").qposadr[0] for s in ("left", "right")])
        self._painted_geoms = np.array([m.geom(name).id for name, _, _ in self.painted])
        self._painted_things = np.array([thing for _, thing, _ in self.painted])
        self._painted_kinds = np.array([kind for *_, kind in self.painted])
        first = [self._painted_things.tolist().index(i) for i in range(sum(self.groups))]
        self._shown = self._painted_geoms[first]  # the geom that stands for each thing
        self._mentions = np.array(self.mentions)
        self._alternatives = np.array(self.alternatives)
        rotation = jnp.array([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]])  # gripper points down
        target = Target(
            jnp.array([0.46, 0.0, 0.20]), rotation, jnp.asarray(panda.READY, jnp.float32),
            jnp.asarray(panda.FINGER_MAX, jnp.float32),
        )  # fmt: skip
        solve = jax.jit(self.controller.solve)
        for _ in range(60):
            target = target.replace(joints=solve(target, jnp.asarray(panda.READY, jnp.float32)))
        self._start = jax.tree.map(np.asarray, target)

    # -- what a task defines -------------------------------------------------------------------

    def mjcf(self, timestep: float) -> str:
        """The scene as MJCF; see `mjcf.world`."""
        raise NotImplementedError

    def layout(self, k_place: jax.Array, k_yaw: jax.Array) -> Layout:
        """Where things are in a new episode."""
        raise NotImplementedError

    def facts(self, state: State, named: jax.Array | None = None) -> dict[str, jax.Array]:
        """Privileged simulator facts for experts, labels and evaluation (never for a policy).

        Args:
          named: int32 [K], one of ``alternatives``, to judge by; the sentence's own if None. Others
            tell how far the same state is along a sentence that was not said.
        Returns:
          success, grasped bool []; progress float32 [] in [0, 1]; tcp float32 [3] in metres; and
          what else the task's demonstrator reads.
        """
        raise NotImplementedError

    def program(
        self, state: State, plan: expert.Plan, config: expert.DemonstratorConfig
    ) -> expert.Program:
        """The demonstrator's phases in this state; see `envs.expert`."""
        raise NotImplementedError

    def memory(self) -> dict[str, jax.Array]:
        """What ``info`` keeps of an episode's course beside the common entries; none by default."""
        return {}

    def remember(self, info: dict, data: mjx.Data) -> dict:
        """``info`` after a control step; unchanged by default."""
        return info

    def record(self, state: State) -> dict[str, jax.Array]:
        """What collected episodes store of each frame beside the common arrays.

        grasped bool [A]: whether the thing to be handled is held, for each of ``alternatives``.
        things float32 [M,3]: where the coloured things are, in metres, in the order of their
        colours.
        """
        judged = [self.facts(state, jnp.array(named)) for named in self.alternatives]
        return {
            "grasped": jnp.stack([f["grasped"] for f in judged]),
            "things": state.data.geom_xpos[self._shown],
        }

    def draw_named(self, key: jax.Array) -> jax.Array:
        """One of ``alternatives``, int32 [K]."""
        return jnp.asarray(self._alternatives, jnp.int32)[
            jax.random.randint(key, (), 0, len(self.alternatives))
        ]

    # -- reset ---------------------------------------------------------------------------------

    def draw(self, rng: jax.Array) -> State:
        """A new episode before any physics: `reset` without the forward pass."""
        k_scene, k_place, k_yaw, k_named = jax.random.split(rng, 4)
        scene = jnp.asarray(self.scenes)[jax.random.randint(k_scene, (), 0, len(self.scenes))]
        keys = jax.random.split(jax.random.fold_in(k_scene, 1), len(self.groups))
        ends = np.cumsum(self.groups)
        mixed = jnp.concatenate(
            [
                jax.random.permutation(key, scene[end - size : end])
                for key, end, size in zip(keys, ends, self.groups, strict=True)
            ]
        )
        named = self.draw_named(k_named)
        layout = self.layout(k_place, k_yaw)
        qpos = jnp.zeros(self.mj_model.nq)
        qpos = qpos.at[:7].set(self._start.joints).at[self._fingers].set(panda.FINGER_MAX)
        for name, values in layout.joints.items():
            address = self.mj_model.joint(name).qposadr[0]
            qpos = qpos.at[address : address + values.shape[0]].set(values)
        target = jax.tree.map(jnp.asarray, self._start)
        mocap, varied = self._variations.draw(jax.random.fold_in(rng, 4), layout.mocap)
        data = self._template.replace(
            qpos=qpos, mocap_pos=mocap, ctrl=self.controller.control(target)
        )
        info = {
            "task_id": self._task_id(mixed, named, k_named),
            "named": named,
            "colours": mixed,
            "target": target,
            "start_places": layout.start,
            "step": jnp.zeros((), jnp.int32),
            **self.memory(),
            **varied,
        }
        zero = jnp.zeros((), jnp.float32)
        return State(data, {}, zero, zero, {}, info)

    def reset(self, rng: jax.Array) -> State:
        """New colours, places and sentence from a PRNG key."""
        state = self.draw(rng)
        data = mjx.forward(self._model(state.info), state.data)
        return self.observe(state.replace(data=data), state.reward)

    def _task_id(self, mixed: jax.Array, named: jax.Array, key: jax.Array) -> jax.Array:
        """Index into ``instructions`` of a sentence of this scene."""
        own = jnp.argmax(jnp.all(jnp.asarray(self._alternatives) == named, axis=-1))
        number = jnp.zeros((), mixed.dtype)
        for thing in range(self._mentions.shape[1]):
            number = number * len(COLOURS) + mixed[jnp.asarray(self._mentions)[own, thing]]
        if len(self._templates) == 1:
            return number
        spoken = jnp.asarray(self._spoken, mixed.dtype)
        chosen = jax.random.randint(jax.random.fold_in(key, 1), (), 0, len(self._spoken))
        return number * len(self._templates) + spoken[chosen]

    # -- step ----------------------------------------------------------------------------------

    def step(self, state: State, action: jax.Array) -> State:
        """One control step: move the target, solve the arm, advance the physics, read the facts."""
        state, model = self.command(state, action), self._model(state.info)
        data = jax.lax.fori_loop(
            0, self.config.substeps, lambda _, d: mjx.step(model, d), state.data
        )
        # mjx.step leaves frames of the state before its last integration: refresh them for
        # cameras and facts (kinematics alone; contacts are not read).
        data = mjx.kinematics(model, data)
        return self.advance(state, data)

    def command(self, state: State, action: jax.Array) -> State:
        """The state with the servo targets of an action [7]; no time passes."""
        target = self.controller.apply(state.info["target"], action, self._start.joints)
        data = state.data.replace(ctrl=self.controller.control(target))
        return state.replace(data=data, info=dict(state.info, target=target))

    def advance(self, state: State, data: mjx.Data) -> State:
        """The state after a control step whose physics ended in ``data``."""
        info = dict(state.info, step=state.info["step"] + 1)
        moved = state.replace(data=data, info=self.remember(info, data))
        return self.observe(moved, state.metrics["progress"])

    def observe(self, state: State, before: jax.Array) -> State:
        """Fill obs, metrics, reward (progress since ``before``) and done from the physics state."""
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

    # -- readings that tasks share -------------------------------------------------------------

    def body(self, name: str) -> int:
        """The id of a body."""
        return self.mj_model.body(name).id

    def tool(self, state: State) -> jax.Array:
        """Position [3] of the point between the pads, metres."""
        return state.data.site_xpos[self._tcp]

    def commanded_open(self, state: State) -> jax.Array:
        """bool []: the gripper is told to open."""
        return state.info["target"].finger > 0.5 * panda.FINGER_MAX

    def holds(self, state: State, gap: jax.Array, half: float, reach: float = 0.03) -> jax.Array:
        """bool []: fingers closed around something 2 ``half`` wide whose ``gap`` [m] is small."""
        width = jnp.sum(state.data.qpos[self._fingers])
        closed = (width > 1.5 * half) & (width < 2.6 * half)
        return (gap < reach) & closed & ~self.commanded_open(state)

    # -- sentences and pictures ----------------------------------------------------------------

    def sentence(self, *mentioned: int, wording: int = 0) -> str:
        """The instruction for colour indices into COLOURS; wording: see `wording_of`."""
        return self._templates[wording].format(*(COLOURS[int(c)] for c in mentioned))

    def sentences(self, mixed: np.ndarray, wording: int = 0) -> tuple[str, ...]:
        """The instruction of each of ``alternatives`` in a scene of these colours [M]; the plain
        one unless another wording is asked for."""
        return tuple(
            self.sentence(*(mixed[i] for i in said), wording=wording) for said in self.mentions
        )

    def wording_of(self, task_id: int) -> int:
        """Which template of ``words`` an index into ``instructions`` is said with."""
        return int(task_id) % len(self._templates)

    def sentences_in_use(self) -> tuple[str, ...]:
        """The instructions that can occur with these settings, sorted."""
        combos = {tuple(row[i] for i in said) for row in self.scenes for said in self.mentions}
        spoken = [self._templates[i] for i in self._spoken]
        return tuple(sorted(t.format(*(COLOURS[c] for c in row)) for row in combos for t in spoken))

    def lit(self, state: State, rgba: jax.Array) -> jax.Array:
        """Colours [ngeom,4] as the episode's course has changed them; unchanged by default."""
        return rgba

    def _model(self, info: dict) -> mjx.Model:
        """This episode's physics: the task's model unless physics or shapes vary."""
        return self._variations.physics(self.model, info)

    def scene(self, state: State) -> tuple[mjx.Model, mjx.Data]:
        """The model with this episode's colours, and the data: what a renderer takes."""
        mixed = state.info["colours"]
        rgba = jnp.asarray(colours.tables())[
            self._painted_kinds, mixed[self._painted_things]
        ]
        model_rgba = jnp.asarray(self.model.geom_rgba).at[self._painted_geoms].set(rgba)
        model = self.model.replace(geom_rgba=self.lit(state, model_rgba))
        return self._variations.looks(model, state.data, state.info)
