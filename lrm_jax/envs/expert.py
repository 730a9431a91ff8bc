"""The scripted demonstrator: right, wrong and half-way episodes with human flaws, for every task.

A task gives a *program* (`Tabletop.program`): where the tool is to be in each phase, computed anew
from the state in every step, and when a phase is over. What a demonstrator intends (its mode) and
how it moves (speed, tremor, pauses, errors of aim) is the same for all tasks.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lrm_jax.envs.base import State

# What the demonstrator sets out to do. Only SUCCESS and RETRY aim at the sentence's goal.
# WRONG_CUBE handles another thing than the named one, WRONG_PLATE takes it to another goal.
SUCCESS, WRONG_CUBE, WRONG_PLATE, DROP, MISS, STALL, NEAR_MISS, RETRY = range(8)
MODES = (
    "success", "wrong_cube", "wrong_plate", "drop", "miss", "stall", "near_miss", "retry",
)  # fmt: skip
APPROACH, DESCEND, CLOSE, LIFT, CARRY, LOWER, OPEN, RETREAT = range(8)
_HOLD = {CLOSE: 4, OPEN: 3}  # control steps the gripper is given


class Spans(NamedTuple):
    """Where in a program flaws strike; points are phase + fraction of its way.

    lift: the phase at whose end a RETRY sees that nothing was caught. open: where a DROP goes on
    from. drop, stall: (first, last) points at which DROP and STALL give up.
    """

    lift: int
    open: int
    drop: tuple[float, float]
    stall: tuple[float, float]


PICK_AND_PLACE = Spans(
    LIFT, OPEN, (LIFT + 0.6, CARRY + 0.8), (APPROACH + 0.3, LOWER + 0.5)
)


class Program(NamedTuple):
    """P phases in one state.

    goals float32 [P,3]: where the tool's target is to go [m]. reached bool [P]: the phase is over.
    gripper float32 [P]: +1 open, -1 closed. way float32 [P]: usual length of the phase's way [m].
    grasped bool []: the thing to be carried is held. step float32 [P], if given: how far the
    target goes in a control step at most, along each axis [m].
    """

    goals: jax.Array
    reached: jax.Array
    gripper: jax.Array
    way: jax.Array
    grasped: jax.Array
    step: jax.Array | None = None


@struct.dataclass
class Plan:
    """One demonstrator's intention, flaws and progress through its phases (all scalars or [2])."""

    mode: jax.Array  # int32, one of MODES
    phase: jax.Array  # int32
    in_phase: jax.Array  # int32, control steps since the phase began
    speed: jax.Array  # cap on the translation action, in (0, 1]
    noise: jax.Array  # scale of the hand's tremor, in action units
    tremor: jax.Array  # float32 [3], AR(1) state
    pause_rate: jax.Array  # chance a step of starting a pause
    pause_left: jax.Array  # int32, control steps still to stand still
    aim: jax.Array  # float32 [2], error of the grasp point [m]
    place: jax.Array  # float32 [2], offset of the release point from the goal's centre [m]
    fail_at: jax.Array  # where DROP and STALL give up: phase + fraction of its way
    rng: jax.Array


@dataclasses.dataclass(frozen=True)
class DemonstratorConfig:
    """Ranges that a demonstrator's flaws are drawn from (uniform)."""

    speed: tuple[float, float] = (0.35, 0.75)
    noise: tuple[float, float] = (0.02, 0.12)
    pause_rate: tuple[float, float] = (0.0, 0.05)
    pause_steps: tuple[int, int] = (2, 7)
    aim_error: float = 0.006  # standard deviation [m]
    hover: float = 0.11  # height of transport [m]
    grasp: float = 0.022  # height of the tool centre when grasping [m]
    release: float = 0.032  # height of the tool centre when letting go [m]


def begin(
    rng: jax.Array, mode: jax.Array, config: DemonstratorConfig, spans: Spans = PICK_AND_PLACE
) -> Plan:
    """Draw a demonstrator's flaws for one episode from a PRNG key; ``mode`` int32 []."""
    keys = jax.random.split(rng, 9)

    def uniform(key, low_high):
        return jax.random.uniform(key, (), minval=low_high[0], maxval=low_high[1])

    aim = config.aim_error * jax.random.normal(keys[3], (2,))
    missing = (mode == MISS) | (mode == RETRY)
    aim = jnp.where(missing, _disc(keys[4], 0.05, 0.075), aim)
    place = _disc(keys[5], 0.0, 0.02)
    place = jnp.where(mode == NEAR_MISS, _disc(keys[6], 0.085, 0.12), place)
    fail_at = jnp.where(
        mode == DROP, uniform(keys[7], spans.drop), uniform(keys[7], spans.stall)
    )
    zero = jnp.zeros((), jnp.int32)
    return Plan(
        mode=jnp.asarray(mode, jnp.int32), phase=zero, in_phase=zero,
        speed=uniform(keys[0], config.speed), noise=uniform(keys[1], config.noise),
        tremor=jnp.zeros(3), pause_rate=uniform(keys[2], config.pause_rate), pause_left=zero,
        aim=aim, place=place, fail_at=fail_at, rng=keys[8],
    )  # fmt: skip


def _disc(key: jax.Array, low: float, high: float) -> jax.Array:
    """A point [2] in a random direction at a distance uniform in [low, high]."""
    k_angle, k_radius = jax.random.split(key)
    angle = jax.random.uniform(k_angle, (), maxval=2 * jnp.pi)
    radius = jax.random.uniform(k_radius, (), minval=low, maxval=high)
    return radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])


def pick_and_place(
    target: jax.Array,
    tcp: jax.Array,
    plan: Plan,
    *,
    grasp_at: jax.Array,
    place_at: jax.Array,
    grasped: jax.Array,
    grasp: float,
    release: float,
    hover: float,
) -> Program:
    """Eight phases: over the thing, down, close, up, over the goal, down, open, away.

    target, tcp float32 [3]: commanded and actual position of the tool. grasp_at, place_at [2]: the
    thing's and the goal's place, with the demonstrator's errors. Heights in metres.
    """
    stay = target[:2]
    goals = jnp.stack(
        [
            jnp.append(grasp_at, hover),
            jnp.append(grasp_at, grasp),
            target,
            jnp.append(stay, hover),
            jnp.append(place_at, hover),
            jnp.append(place_at, release),
            target,
            jnp.append(stay, hover + 0.05),
        ]
    )
    flat = jnp.linalg.norm(tcp[:2] - goals[:, :2], axis=-1)
    height = jnp.abs(tcp[2] - goals[:, 2])
    reached = jnp.stack(
        [
            (flat[APPROACH] < 0.012) & (height[APPROACH] < 0.04),
            height[DESCEND] < 0.008,
            plan.in_phase >= _HOLD[CLOSE],
            height[LIFT] < 0.025,
            flat[CARRY] < 0.015,
            height[LOWER] < 0.010,
            plan.in_phase >= _HOLD[OPEN],
            jnp.asarray(False),
        ]
    )
    gripper = jnp.array([1.0, 1.0, -1.0, -1.0, -1.0, -1.0, 1.0, 1.0])
    # How far along a phase one is, is judged by what is left of its usual way.
    way = jnp.array([0.15, 0.09, 1.0, 0.09, 0.20, 0.08, 1.0, 1.0])
    return Program(goals, reached, gripper, way, grasped)


class Stage(NamedTuple):
    """One phase of a program of waypoints.

    goal float32 [3] in metres, or None to stay. gripper: +1 open, -1 closed. flat, height: how near
    the tool has to come [m]. hold: control steps that it stays at least. way: usual length [m].
    step: how far the target goes in a control step at most [m].
    """

    goal: jax.Array | None
    gripper: float
    flat: float = 0.012
    height: float = 0.02
    hold: int = 0
    way: float = 0.1
    step: float = 1.0


def waypoints(
    target: jax.Array, tcp: jax.Array, plan: Plan, stages: list[Stage], grasped: jax.Array
) -> Program:
    """A program of stages, one after the other; the last one never ends.

    target, tcp float32 [3]: commanded and actual position of the tool.
    """
    goals = jnp.stack([target if s.goal is None else s.goal for s in stages])
    flat = jnp.linalg.norm(tcp[:2] - goals[:, :2], axis=-1)
    height = jnp.abs(tcp[2] - goals[:, 2])
    there = (flat < jnp.array([s.flat for s in stages])) & (
        height < jnp.array([s.height for s in stages])
    )
    there |= np.array([s.goal is None for s in stages])
    reached = there & (plan.in_phase >= np.array([s.hold for s in stages]))
    gripper, way, step = jnp.array([(s.gripper, s.way, s.step) for s in stages], jnp.float32).T
    return Program(goals, reached.at[-1].set(False), gripper, way, grasped, step)


def act(env, state: State, plan: Plan, config: DemonstratorConfig) -> tuple[jax.Array, Plan]:
    """The demonstrator's action float32 [7] in [-1, 1] for this state, and its updated plan."""
    spans = env.spans
    program = env.program(state, plan, config)
    error = program.goals[plan.phase] - state.info["target"].position
    reached = program.reached[plan.phase]

    # Giving up half-way.
    way = program.way[plan.phase]
    done_part = plan.phase + jnp.clip(1.0 - jnp.linalg.norm(error) / way, 0.0, 1.0)
    gives_up = done_part >= plan.fail_at
    drops = (plan.mode == DROP) & gives_up & (plan.phase < spans.open)
    stalls = (plan.mode == STALL) & gives_up
    # A retry sees after lifting that nothing was caught, and goes back with a better aim.
    again = (plan.mode == RETRY) & (plan.phase == spans.lift) & reached & ~program.grasped

    k_pause, k_len, k_noise, rng = jax.random.split(plan.rng, 4)
    starts = jax.random.uniform(k_pause) < plan.pause_rate
    length = jax.random.randint(k_len, (), *config.pause_steps)
    pause_left = jnp.where(plan.pause_left > 0, plan.pause_left - 1, jnp.where(starts, length, 0))
    still = (pause_left > 0) | stalls
    tremor = 0.7 * plan.tremor + plan.noise * jax.random.normal(k_noise, (3,))
    if program.step is not None:
        error = jnp.clip(error, -program.step[plan.phase], program.step[plan.phase])
    move = error / env.controller.max_translation
    move = move * jnp.minimum(1.0, plan.speed / (jnp.max(jnp.abs(move)) + 1e-6))
    move = jnp.where(still, 0.0, move) + tremor * jnp.where(still, 0.3, 1.0)
    gripper = program.gripper[plan.phase]
    action = jnp.concatenate([jnp.clip(move, -1, 1), jnp.zeros(3), gripper[None]])

    advance = reached & (pause_left == 0) & ~stalls
    phase = jnp.where(drops, spans.open, jnp.where(again, APPROACH, plan.phase + advance))
    changed = phase != plan.phase
    plan = plan.replace(
        phase=phase.astype(jnp.int32),
        in_phase=jnp.where(changed, 0, plan.in_phase + 1),
        tremor=tremor,
        pause_left=pause_left,
        aim=jnp.where(again, plan.aim * 0.05, plan.aim),
        rng=rng,
    )
    return action, plan
