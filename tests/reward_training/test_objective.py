"""The loss: targets with the right expectation, cross-entropy with the right minimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrm_jax.reward_training import objective

TENTHS = tuple(k / 10 for k in range(11))


@given(st.floats(0, 1))
def test_targets_expect_the_label(label):
    shares = np.asarray(objective.target(TENTHS, jnp.float32(label)))
    np.testing.assert_allclose(shares.sum(), 1, atol=1e-6)
    np.testing.assert_allclose(shares @ TENTHS, label, atol=1e-6)
    assert (shares > 1e-6).sum() <= 2


def test_targets_of_keyframes_and_pairs():
    np.testing.assert_allclose(
        objective.target(TENTHS, jnp.array([0.3]))[0], np.eye(11)[3], atol=1e-5
    )
    got = objective.target((-1.0, 1.0), jnp.array([-1.0, 0.0, 1.0, np.nan]))
    np.testing.assert_allclose(got, [[1, 0], [0.5, 0.5], [0, 1], [0, 0]], atol=1e-6)
    with pytest.raises(ValueError, match="ascend"):
        objective.target((1.0, 0.0), jnp.zeros(1))


def test_smoothing_spreads_and_keeps_the_middle():
    shares = np.asarray(objective.target(TENTHS, jnp.float32(0.5), 0.1))
    np.testing.assert_allclose(shares.sum(), 1, atol=1e-6)
    np.testing.assert_allclose(shares @ TENTHS, 0.5, atol=1e-6)
    assert shares[5] == shares.max() and shares[4] > 0.2


@given(st.lists(st.floats(-8, 0), min_size=11, max_size=11), st.floats(0, 1))
def test_cross_entropy_is_a_divergence(logits, label):
    shares = objective.target(TENTHS, jnp.float32(label))
    log_p = jax.nn.log_softmax(jnp.array(logits, jnp.float32))
    assert float(objective.cross_entropy(log_p, shares)) >= -1e-5
    best = jnp.log(jnp.maximum(shares, 1e-30))
    np.testing.assert_allclose(objective.cross_entropy(best, shares), 0, atol=1e-5)


def test_no_label_no_loss():
    shares = objective.target(TENTHS, jnp.array([np.nan]))
    grad = jax.grad(lambda x: objective.cross_entropy(x, shares).sum())(jnp.zeros((1, 11)))
    assert not grad.any()
