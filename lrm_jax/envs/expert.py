"""A scripted demonstrator for PutOnPlate: right, wrong and half-way episodes with human flaws."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from lrm_jax.envs.base import State

# What the demonstrator sets out to do. Only SUCCESS and RETRY aim at the sentence's goal.
SUCCESS, WRONG_CUBE, WRONG_PLATE, DROP, MISS, STALL, NEAR_MISS, RETRY = range(8)
MODES = (
    "success", "wrong_cube", "wrong_plate", "drop", "miss", "stall", "near_miss", "retry",
)  # fmt: skip
APPROACH, DESCEND, CLOSE, LIFT, CARRY, LOWER, OPEN, RETREAT = range(8)
_HOLD = {CLOSE: 4, OPEN: 3}  # control steps the gripper is given


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
    place: jax.Array  # float32 [2], offset of the release point from the plate's centre [m]
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


def begin(rng: jax.Array, mode: jax.Array, config: DemonstratorConfig) -> Plan:
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
        mode == DROP,
        uniform(keys[7], (LIFT + 0.6, CARRY + 0.8)),
        uniform(keys[7], (APPROACH + 0.3, LOWER + 0.5)),
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


def act(env, state: State, plan: Plan, config: DemonstratorConfig) -> tuple[jax.Array, Plan]:
    """The demonstrator's action float32 [7] in [-1, 1] for this state, and its updated plan."""
    facts = env.facts(state)
    named = state.info["named"]
    target = state.info["target"].position
    cube_index = jnp.where(plan.mode == WRONG_CUBE, 1 - named[0], named[0])
    plate_index = jnp.where(plan.mode == WRONG_PLATE, 1 - named[1], named[1])
    cube = facts["cubes"][cube_index]
    plate = state.data.mocap_pos[plate_index]
    tcp = facts["tcp"]

    over_cube = cube[:2] + plan.aim
    over_plate = plate[:2] + plan.place
    stay = target[:2]
    waypoints = jnp.stack(
        [
            jnp.append(over_cube, config.hover),
            jnp.append(over_cube, config.grasp),
            target,
            jnp.append(stay, config.hover),
            jnp.append(over_plate, config.hover),
            jnp.append(over_plate, config.release),
            target,
            jnp.append(stay, 0.16),
        ]
    )
    goal = waypoints[plan.phase]
    error = goal - target
    flat = jnp.linalg.norm(tcp[:2] - goal[:2])
    height = jnp.abs(tcp[2] - goal[2])
    reached = jnp.stack(
        [
            (flat < 0.012) & (height < 0.04),
            height < 0.008,
            plan.in_phase >= _HOLD[CLOSE],
            height < 0.025,
            flat < 0.015,
            height < 0.010,
            plan.in_phase >= _HOLD[OPEN],
            jnp.asarray(False),
        ]
    )[plan.phase]

    # Giving up half-way. How far along the phase is judged by what is left of its way.
    way = jnp.array([0.15, 0.09, 1.0, 0.09, 0.20, 0.08, 1.0, 1.0])[plan.phase]
    done_part = plan.phase + jnp.clip(1.0 - jnp.linalg.norm(error) / way, 0.0, 1.0)
    gives_up = done_part >= plan.fail_at
    drops = (plan.mode == DROP) & gives_up & (plan.phase < OPEN)
    stalls = (plan.mode == STALL) & gives_up
    # A retry sees after lifting that nothing was caught, and goes back with a better aim.
    again = (plan.mode == RETRY) & (plan.phase == LIFT) & reached & ~(facts["grasped"] > 0)

    k_pause, k_len, k_noise, rng = jax.random.split(plan.rng, 4)
    starts = jax.random.uniform(k_pause) < plan.pause_rate
    length = jax.random.randint(k_len, (), *config.pause_steps)
    pause_left = jnp.where(plan.pause_left > 0, plan.pause_left - 1, jnp.where(starts, length, 0))
    still = (pause_left > 0) | stalls
    tremor = 0.7 * plan.tremor + plan.noise * jax.random.normal(k_noise, (3,))
    move = error / env.controller.max_translation
    move = move * jnp.minimum(1.0, plan.speed / (jnp.max(jnp.abs(move)) + 1e-6))
    move = jnp.where(still, 0.0, move) + tremor * jnp.where(still, 0.3, 1.0)
    gripper = jnp.where((plan.phase >= CLOSE) & (plan.phase < OPEN), -1.0, 1.0)
    action = jnp.concatenate([jnp.clip(move, -1, 1), jnp.zeros(3), gripper[None]])

    advance = reached & (pause_left == 0) & ~stalls
    phase = jnp.where(drops, OPEN, jnp.where(again, APPROACH, plan.phase + advance))
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
