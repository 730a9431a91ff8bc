"""From scores to rewards: pure functions of [T, ...] arrays, time first.

Score s_t belongs to the state after action t, and r_t is the reward of that action. `reset_t` marks
steps whose *result* is the first state of a new episode (an automatic reset): s_t is then the score
of the new episode's first frame, and the step that ended the old one has index t - 1.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp


@jax.jit
def dense(scores: jax.Array, valid: jax.Array) -> jax.Array:
    """The score itself, float32 [T, ...]; where it is invalid, the last valid one (0 before the
    first)."""
    return carry_last(scores, valid, jnp.zeros(scores.shape[1:], jnp.float32))[0]


def carry_last(
    scores: jax.Array, valid: jax.Array, initial: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Replaces invalid entries along time by the last valid one, `initial` [...] before the first.

    Returns the filled scores float32 [T, ...] and how many entries were filled, int32 [...].
    """

    def step(last, now):
        value, ok = now
        last = jnp.where(ok, value, last)
        return last, last

    _, filled = jax.lax.scan(step, jnp.asarray(initial, jnp.float32), (scores, valid))
    return filled, jnp.sum(~valid, axis=0)


@flax.struct.dataclass
class HoldState:
    """Between calls of `hold`: steps since the episode began, int32 [...], and the reward being
    repeated."""

    counter: jax.Array
    held: jax.Array

    @classmethod
    def start(cls, shape: tuple[int, ...]) -> HoldState:
        """At the beginning of episodes."""
        return cls(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))


@functools.partial(jax.jit, static_argnames="interval")
def hold(
    scores: jax.Array,
    valid: jax.Array,
    interval: int,
    reset: jax.Array | None = None,
    state: HoldState | None = None,
) -> tuple[jax.Array, HoldState]:
    """Interval-Hold, the method's own reward (Large Reward Models, 2603.16065; `lrm_method.md`
    1.4).

    Each environment counts its own steps. At every `interval`-th step of an episode the score is
    taken and then repeated until the next; before the first trigger the reward is 0. An invalid
    score at a trigger keeps the held one. Counter and held value start anew with the episode.

    Args:
      scores, valid: [T, ...].
      interval: K, steps from one trigger to the next; the first comes after K steps.
      reset: bool [T, ...], steps that lead to a new episode's first state; none by default.
      state: where an earlier rollout of the same environments stopped.
    Returns:
      rewards float32 [T, ...] and the state to go on from.
    """
    if interval < 1:
        raise ValueError(f"interval is {interval}: must be at least 1")
    reset = jnp.zeros(valid.shape, bool) if reset is None else reset
    state = HoldState.start(valid.shape[1:]) if state is None else state

    def step(state, now):
        value, ok, begins = now
        counter = jnp.where(begins, 0, state.counter + 1)
        held = jnp.where(begins, 0.0, state.held)
        trigger = (counter > 0) & (counter % interval == 0) & ok
        held = jnp.where(trigger, value, held)
        return HoldState(counter, held), held

    state, rewards = jax.lax.scan(step, state, (scores, valid, reset))
    return rewards, state


@jax.jit
def delta(
    potential: jax.Array,
    valid: jax.Array,
    gamma: float,
    first: jax.Array | None = None,
    terminated: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Potential-based shaping r_t = gamma Phi(s_{t+1}) - Phi(s_t) (Ng, Harada and Russell 1999).

    Within an episode the discounted rewards telescope: sum_t gamma^t r_t = gamma^T Phi_T - Phi_0.

    Args:
      potential, valid: Phi of T + 1 states, [T + 1, ...]. Where it is invalid the last valid Phi of
        the episode stands in, so that a failed judgement means "no change"; at an episode's start
        the first valid one that follows in it.
      gamma: the discount of the learner.
      first: bool [T + 1, ...], states that begin an episode (state 0 always does). The step into
        such a state is no transition of one episode: its reward is 0.
      terminated: bool [T, ...], steps that end an episode for good; Phi of the state after is taken
        as 0, which keeps the optimal policy. A time limit is no such end: the last state keeps its
        Phi, and the learner bootstraps from there.
    Returns:
      rewards float32 [T, ...] and the count of invalid potentials, int32 [...].
    """
    steps = potential.shape[0]
    begins = jnp.zeros(valid.shape, bool) if first is None else jnp.asarray(first)
    begins = begins.at[0].set(True)

    def forward(carry, now):
        last, known = carry
        value, ok, new = now
        known = (known & ~new) | ok
        last = jnp.where(ok, value, jnp.where(new, 0.0, last))
        return (last, known), (last, known)

    def backward(carry, now):
        upcoming, ahead = carry
        value, ok, new_after = now
        upcoming = jnp.where(ok, value, jnp.where(new_after, 0.0, upcoming))
        ahead = ok | (ahead & ~new_after)
        return (upcoming, ahead), jnp.where(ahead, upcoming, 0.0)

    zero, no = jnp.zeros(valid.shape[1:], jnp.float32), jnp.zeros(valid.shape[1:], bool)
    _, (last, known) = jax.lax.scan(forward, (zero, no), (potential, valid, begins))
    new_after = jnp.concatenate([begins[1:], jnp.ones_like(begins[:1])])
    _, upcoming = jax.lax.scan(backward, (zero, no), (potential, valid, new_after), reverse=True)
    phi = jnp.where(known, last, upcoming)
    after = phi[1:]
    if terminated is not None:
        after = jnp.where(terminated, 0.0, after)
    rewards = jnp.where(begins[1:], 0.0, gamma * after - phi[:-1])
    if terminated is not None:
        # The state after a termination is usually the next episode's first one (an automatic
        # reset).
        rewards = jnp.where(terminated, -phi[:-1], rewards)
    assert rewards.shape[0] == steps - 1
    return rewards, jnp.sum(~valid, axis=0)


@jax.jit
def completion_bonus(
    completion: jax.Array,
    valid: jax.Array,
    bonus: float,
    threshold: float = 0.5,
    first: jax.Array | None = None,
) -> jax.Array:
    """`bonus` once an episode, at the first step whose state is judged done.

    Args:
      completion, valid: P(done) of T + 1 states, [T + 1, ...]. A state is done at or above
        `threshold`.
      bonus, threshold: the payment, and the probability that earns it.
      first: bool [T + 1, ...], states that begin an episode (state 0 always does). A first state
        pays nothing, even if it is done.
    Returns:
      float32 [T, ...].
    """
    done = valid & (completion >= threshold)
    begins = jnp.zeros(valid.shape, bool) if first is None else jnp.asarray(first)
    begins = begins.at[0].set(True)

    def step(paid, now):
        is_done, new = now
        paid = paid & ~new
        pays = is_done & ~paid & ~new
        return paid | is_done, pays

    _, pays = jax.lax.scan(step, jnp.zeros(valid.shape[1:], bool), (done, begins))
    return bonus * pays[1:].astype(jnp.float32)
