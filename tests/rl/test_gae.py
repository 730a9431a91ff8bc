import jax
import jax.numpy as jnp
import numpy as np
from brax.training.agents.ppo.losses import compute_gae
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import explained_variance_score

from lrm_jax.rl.gae import gae, unexplained

T, N = 7, 3
gae = jax.jit(gae, static_argnames="bootstrap_truncated")
compute_gae = jax.jit(compute_gae)


def draw(seed):
    rng = np.random.default_rng(seed)
    rewards, flags = rng.normal(size=(T, N)), rng.random((3, T, N)) < 0.2
    return rewards.astype(np.float32), rng.normal(size=(T + 1, N)).astype(np.float32), flags


def loop(rewards, values, terminated, truncated, mask, discount, decay, bootstrap):
    """The definition, one number at a time, in float64."""
    advantages = np.zeros((T, N))
    for n in range(N):
        for t in range(T):
            total, weight = 0.0, 1.0
            for k in range(t, T):
                if not mask[k, n]:
                    break
                ends = terminated[k, n] or truncated[k, n]
                looks_on = not ends or (bootstrap and truncated[k, n] and not terminated[k, n])
                following = float(values[k + 1, n]) if looks_on else 0.0
                delta = float(rewards[k, n]) + discount * following - float(values[k, n])
                total += weight * delta
                weight *= discount * decay
                if ends:
                    break
            advantages[t, n] = total
    return advantages


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_matches_the_definition(seed, discount, decay, bootstrap):
    rewards, values, (terminated, truncated, masked) = draw(seed)
    mask = ~masked
    advantages, returns = gae(
        rewards, values, terminated=terminated, truncated=truncated, mask=mask,
        discount=discount, decay=decay, bootstrap_truncated=bootstrap,
    )  # fmt: skip
    expected = loop(rewards, values, terminated, truncated, mask, discount, decay, bootstrap)
    # At most 7 float32 additions of numbers of order 1.
    np.testing.assert_allclose(advantages, expected, atol=1e-5)
    np.testing.assert_allclose(returns, expected + values[:-1], atol=1e-5)
    assert not np.asarray(advantages)[~mask].any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 1), st.floats(0, 1))
def test_matches_brax(seed, discount, decay):
    rewards, values, (terminated, cut, _) = draw(seed)
    # Brax drops a truncated step (its next value belongs to another episode): our mask.
    targets, _ = compute_gae(
        cut.astype(np.float32), terminated.astype(np.float32), rewards, values[:-1], values[-1],
        lambda_=decay, discount=discount,
    )  # fmt: skip
    # Its second result is r + discount * target' - V, without the decay of GAE: compare targets.
    _, returns = gae(
        rewards, values, terminated=terminated, truncated=np.zeros((T, N), bool), mask=~cut,
        discount=discount, decay=decay,
    )  # fmt: skip
    np.testing.assert_allclose(returns, targets, atol=1e-5)


def test_invalid_rewards_stay_outside():
    rewards, values, (terminated, truncated, masked) = draw(0)
    masked[3, 1] = True
    options = dict(terminated=terminated, truncated=truncated, mask=~masked)
    clean, _ = gae(rewards, values, **options)
    rewards[masked] = np.nan
    dirty, _ = gae(rewards, values, **options)
    np.testing.assert_array_equal(clean, dirty)


def test_perfect_values_have_no_advantage_and_no_gradient():
    rewards = np.ones((4, 1), np.float32)
    values = np.array([sum(0.5**k for k in range(4 - t)) for t in range(5)], np.float32)[:, None]
    none = np.zeros((4, 1), bool)
    ends = none.copy()
    ends[3] = True
    options = dict(terminated=none, truncated=ends, mask=~none, discount=0.5, decay=0.9)
    advantages, _ = gae(rewards, values, **options)
    np.testing.assert_allclose(advantages, 0, atol=1e-6)
    slope = jax.grad(lambda v: gae(rewards, v, **options)[0].sum())(jnp.asarray(values))
    assert not np.asarray(slope).any()


def test_unexplained_share_against_scikit_learn():
    rng = np.random.default_rng(3)
    returns = rng.normal(2.0, 1.0, (6, 5))
    mask = rng.random((6, 5)) < 0.7
    for noise in (0.1, 0.8):
        values = returns + rng.normal(0.5, noise, returns.shape)
        share = unexplained(*(jnp.asarray(x) for x in (values, returns, mask)))
        # the mean error is no part of it, nor are the masked ones
        expected = 1 - explained_variance_score(returns[mask], values[mask])
        np.testing.assert_allclose(share, expected, rtol=1e-4)
    nothing = jnp.ones((6, 5))
    assert unexplained(jnp.asarray(values), nothing, mask) == 1.0  # returns that do not vary
    assert unexplained(-jnp.asarray(returns), jnp.asarray(returns), mask) == 1.0  # at most
    assert unexplained(jnp.asarray(returns), jnp.asarray(returns), mask) == 0.0
