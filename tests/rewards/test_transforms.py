"""Reward transforms: the identities they promise, and fixed numbers (reward_metrics 8.3)."""

import itertools

import hypothesis.extra.numpy as hnp
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lrm_jax.rewards import transforms


def column(values):
    return jnp.array(values, jnp.float32)[:, None]


def yes(values):
    return jnp.ones((len(values), 1), bool)


def test_shaping_gives_the_published_numbers():
    phi = [0.1, 0.3, 0.25, 0.6, 1.0]
    rewards, invalid = transforms.delta(column(phi), yes(phi), 0.99)
    np.testing.assert_allclose(rewards[:, 0], [0.197, -0.0525, 0.344, 0.39], atol=1e-6)
    discounted = sum(0.99**t * float(r) for t, r in enumerate(rewards[:, 0]))
    np.testing.assert_allclose(discounted, 0.86059601, atol=1e-6)
    assert invalid.tolist() == [0]


@given(
    hnp.arrays(np.float32, (9, 2), elements=st.floats(0, 1, width=32)),
    hnp.arrays(bool, (9, 2)),
    hnp.arrays(bool, (9, 2)),
    st.floats(0.5, 1.0),
)
def test_shaping_telescopes_within_each_episode(phi, valid, first, gamma):
    rewards, invalid = map(np.asarray, transforms.delta(phi, valid, gamma, first=first))
    assert (invalid == (~valid).sum(0)).all()
    for n in range(2):
        starts = [0, *(t for t in range(1, 9) if first[t, n]), 9]
        for a, b in itertools.pairwise(starts):
            known = [t for t in range(a, b) if valid[t, n]]
            # The potential that stands in at either end: the last valid one, else the first to
            # come, else 0.
            begin = phi[known[0], n] if known else 0.0
            end = phi[known[-1], n] if known else 0.0
            total = sum(gamma ** (t - a) * rewards[t, n] for t in range(a, b - 1))
            np.testing.assert_allclose(total, gamma ** (b - 1 - a) * end - begin, atol=1e-5)
            if b < 9:
                assert rewards[b - 1, n] == 0  # the step over the reset


def test_termination_drops_the_potential_and_a_time_limit_keeps_it():
    phi = [0.2, 0.5, 0.8, 0.1]
    ended = jnp.array([[False], [True], [False]])
    first = jnp.array([[True], [False], [True], [False]])
    rewards, _ = transforms.delta(column(phi), yes(phi), 1.0, first=first, terminated=ended)
    np.testing.assert_allclose(rewards[:, 0], [0.3, -0.5, -0.7], atol=1e-6)
    rewards, _ = transforms.delta(column(phi), yes(phi), 1.0)
    np.testing.assert_allclose(rewards.sum(), phi[-1] - phi[0], atol=1e-6)


def test_an_invalid_potential_means_no_change():
    valid = jnp.array([[True], [False], [True]])
    rewards, invalid = transforms.delta(column([0.2, np.nan, 0.6]), valid, 1.0)
    np.testing.assert_allclose(rewards[:, 0], [0.0, 0.4], atol=1e-6)
    assert invalid.tolist() == [1]


def test_hold_repeats_the_score_of_each_trigger():
    scores = jnp.arange(1.0, 11.0)[:, None]
    rewards, state = transforms.hold(scores, yes(scores), 3)
    assert rewards[:, 0].tolist() == [0, 0, 3, 3, 3, 6, 6, 6, 9, 9]
    assert state.counter.tolist() == [10] and state.held.tolist() == [9.0]


def test_hold_counts_for_each_environment_and_starts_anew_with_an_episode():
    scores = jnp.stack([jnp.arange(1.0, 9.0)] * 2, 1)
    reset = jnp.zeros((8, 2), bool).at[3, 1].set(True)
    rewards, _ = transforms.hold(scores, jnp.ones((8, 2), bool), 2, reset=reset)
    assert rewards[:, 0].tolist() == [0, 2, 2, 4, 4, 6, 6, 8]
    assert rewards[:, 1].tolist() == [0, 2, 2, 0, 0, 6, 6, 8]


@given(
    hnp.arrays(np.float32, (12, 3), elements=st.floats(-1, 1, width=32)),
    hnp.arrays(bool, (12, 3)),
    hnp.arrays(bool, (12, 3)),
    st.sampled_from([1, 3]),
)
def test_hold_in_two_rollouts_is_hold_in_one(scores, valid, reset, interval):
    cut = 5
    whole, end = transforms.hold(scores, valid, interval, reset)
    a, state = transforms.hold(scores[:cut], valid[:cut], interval, reset[:cut])
    b, state = transforms.hold(scores[cut:], valid[cut:], interval, reset[cut:], state)
    assert (np.concatenate([a, b]) == np.asarray(whole)).all()
    assert (state.counter == end.counter).all() and (state.held == end.held).all()


def test_an_invalid_trigger_keeps_the_held_score():
    scores = column([1, 2, 3, 4, 5, 6])
    valid = jnp.array([[True], [True], [True], [False], [True], [True]])
    assert transforms.hold(scores, valid, 2)[0][:, 0].tolist() == [0, 2, 2, 2, 2, 6]


def test_dense_carries_the_last_valid_score():
    valid = jnp.array([[False], [True], [False], [True]])
    rewards = transforms.dense(column([9, 0.5, np.nan, 0.7]), valid)
    np.testing.assert_allclose(rewards[:, 0], [0, 0.5, 0.5, 0.7])


def test_the_bonus_is_paid_once_an_episode():
    done = column([0.9, 0.1, 0.6, 0.2, 0.9, 0.9, 0.7])
    first = jnp.zeros((7, 1), bool).at[5, 0].set(True)
    paid = transforms.completion_bonus(done, yes(done), 2.0, first=first)
    # State 0 is done without an action, so nothing is paid until the next episode either.
    assert paid[:, 0].tolist() == [0, 0, 0, 0, 0, 0]
    paid = transforms.completion_bonus(done[1:], yes(done[1:]), 2.0)
    assert paid[:, 0].tolist() == [2, 0, 0, 0, 0]
    paid = transforms.completion_bonus(done[1:], ~yes(done[1:]), 2.0)
    assert not paid.any()


@given(
    hnp.arrays(np.float32, (10, 2), elements=st.floats(0, 1, width=32)),
    st.integers(1, 8),
    st.floats(0.5, 1.0),
)
def test_shaping_of_a_rollout_cut_by_truncation_is_that_of_the_whole(phi, cut, gamma):
    """A rollout that stops in mid-episode and the one that goes on share the state between them."""
    valid = np.ones(phi.shape, bool)
    whole, _ = transforms.delta(phi, valid, gamma)
    before, _ = transforms.delta(phi[: cut + 1], valid[: cut + 1], gamma)
    after, _ = transforms.delta(phi[cut:], valid[cut:], gamma)
    np.testing.assert_array_equal(np.concatenate([before, after]), whole)


@given(
    hnp.arrays(np.float32, (13, 2), elements=st.floats(0, 1, width=32)),
    st.sampled_from([2, 3, 4]),
    st.floats(0.5, 1.0),
)
def test_shaping_of_chunks_is_the_discounted_sum_of_their_steps(phi, chunk, gamma):
    """With gamma a step, a chunk of C steps from s to s' earns gamma^C Phi(s') - Phi(s)."""
    steps, _ = transforms.delta(phi, np.ones(phi.shape, bool), gamma)
    ends = phi[::chunk]
    chunks, _ = transforms.delta(ends, np.ones(ends.shape, bool), gamma**chunk)
    weights = gamma ** np.arange(chunk)[None, :, None]
    summed = (np.asarray(steps).reshape(-1, chunk, 2) * weights).sum(1)
    np.testing.assert_allclose(chunks, summed, atol=2e-6)
