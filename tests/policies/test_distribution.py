import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.training.distribution import NormalDistribution
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dct
from scipy.stats import multivariate_normal

from lrm_jax.policies.distribution import ChunkNormal, slow_cosines

C, D = 5, 3


def covariance(std, rho, steps=C):
    return std**2 * (rho * np.ones((steps, steps)) + (1 - rho) * np.eye(steps))


def make(seed, rho, batch=4):
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=(batch, C, D)).astype(np.float32)
    log_std = rng.uniform(-3, 0.5, D).astype(np.float32)
    actions = mean + rng.normal(size=(batch, C, D)).astype(np.float32) * np.exp(log_std)
    return ChunkNormal(jnp.asarray(mean), jnp.asarray(log_std), rho), actions


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 0.95))
def test_log_prob_and_entropy_match_scipy(seed, rho):
    chosen, actions = make(seed, rho)
    expected, entropy = np.zeros(4), 0.0
    for d in range(D):
        sigma = covariance(np.exp(float(chosen.log_std[d])), rho)
        normal = [multivariate_normal(np.float64(m[:, d]), sigma) for m in chosen.mean]
        expected += [n.logpdf(a[:, d]) for n, a in zip(normal, actions, strict=True)]
        entropy += normal[0].entropy()
    # The quadratic form divides float32 squares by 1 - rho >= 0.05: its error is a few hundred eps
    # of its size, which is a sum of 15 squares of order 1 / 0.05.
    np.testing.assert_allclose(chosen.log_prob(actions), expected, rtol=2e-5, atol=2e-3)
    np.testing.assert_allclose(chosen.entropy(), np.full(4, entropy), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rhos", [(0.0, 0.0), (0.6, 0.6), (0.3, 0.8)])
def test_kl_matches_the_matrix_formula(rhos):
    p, _ = make(0, rhos[0])
    q, _ = make(1, rhos[1])
    expected = np.zeros(4)
    for d in range(D):
        a = covariance(np.exp(float(p.log_std[d])), rhos[0])
        b = covariance(np.exp(float(q.log_std[d])), rhos[1])
        inverse = np.linalg.inv(b)
        moved = np.asarray(q.mean - p.mean, np.float64)[..., d]
        expected += 0.5 * (
            np.trace(inverse @ a) - C + np.linalg.slogdet(b)[1] - np.linalg.slogdet(a)[1]
            + np.einsum("bi,ij,bj->b", moved, inverse, moved)
        )  # fmt: skip
    np.testing.assert_allclose(p.kl(q), expected, rtol=1e-4)
    np.testing.assert_allclose(p.kl(p), np.zeros(4), atol=1e-5)


def test_uncorrelated_is_braxs_normal():
    chosen, actions = make(3, 0.0)
    scale = jnp.broadcast_to(jnp.exp(chosen.log_std), chosen.mean.shape)
    brax = NormalDistribution(D).create_dist((chosen.mean, scale))
    np.testing.assert_allclose(
        chosen.log_prob(actions), brax.log_prob(actions).sum((-1, -2)), rtol=1e-5, atol=1e-4
    )
    np.testing.assert_allclose(chosen.entropy(), brax.entropy().sum((-1, -2)), rtol=1e-5)
    other, _ = make(4, 0.0)
    other_scale = jnp.broadcast_to(jnp.exp(other.log_std), other.mean.shape)
    other_brax = NormalDistribution(D).create_dist((other.mean, other_scale))
    # Brax's method returns KL(argument || self), summed over D.
    divergence = other_brax.kl_divergence(brax).sum(-1)
    np.testing.assert_allclose(chosen.kl(other), divergence, rtol=1e-4)


def test_samples_have_the_covariance():
    std, rho, count = np.array([0.1, 0.5, 1.0], np.float32), 0.7, 40_000
    chosen = ChunkNormal(jnp.zeros((count, C, D)), jnp.log(std), rho)
    samples = np.asarray(chosen.sample(jax.random.PRNGKey(0)), np.float64)
    for d in range(D):
        expected = covariance(std[d], rho)
        # Standard error of a covariance entry is at most sqrt(2 / count) sigma^2 = 0.7 %; five of
        # them.
        np.testing.assert_allclose(np.cov(samples[..., d].T), expected, atol=0.036 * std[d] ** 2)
    cross = np.corrcoef(samples[:, 0].T)[np.triu_indices(D, 1)]
    assert np.abs(cross).max() < 5 / np.sqrt(count)


def test_batched_log_std_and_gradient():
    chosen, actions = make(5, 0.4)
    per_row = ChunkNormal(chosen.mean, jnp.broadcast_to(chosen.log_std, (4, D)), 0.4)
    np.testing.assert_allclose(chosen.log_prob(actions), per_row.log_prob(actions), rtol=1e-6)
    np.testing.assert_allclose(chosen.entropy(), per_row.entropy(), rtol=1e-6)
    gradient = jax.grad(lambda s: chosen.replace(log_std=s).log_prob(actions).sum())(chosen.log_std)
    assert np.isfinite(gradient).all() and (np.abs(gradient) > 0).all()


def test_slow_cosines_are_scipys():
    for steps in (1, 5, 8):
        whole = dct(np.eye(steps), type=2, norm="ortho", axis=0).T
        np.testing.assert_allclose(slow_cosines(steps, steps), whole, atol=1e-6)
        np.testing.assert_array_equal(slow_cosines(steps, 1), slow_cosines(steps, steps)[:, :1])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 0.95), st.integers(1, C))
def test_with_few_cosines_the_density_is_that_of_their_coefficients(seed, rho, count):
    waves = np.float64(slow_cosines(C, count))
    (chosen, actions), (other, _) = make(seed, rho), make(seed + 1, rho / 2)
    some, others = chosen.replace(cosines=count), other.replace(cosines=count)
    expected, entropy, divergence = np.zeros(4), 0.0, np.zeros(4)
    for d in range(D):
        a = waves.T @ covariance(np.exp(float(chosen.log_std[d])), rho) @ waves
        b = waves.T @ covariance(np.exp(float(other.log_std[d])), rho / 2) @ waves
        means = np.float64(chosen.mean)[..., d] @ waves
        drawn = np.float64(actions)[..., d] @ waves
        normal = [multivariate_normal(m, a) for m in means]
        expected += [n.logpdf(x) for n, x in zip(normal, drawn, strict=True)]
        entropy += normal[0].entropy()
        inverse, moved = np.linalg.inv(b), np.float64(other.mean)[..., d] @ waves - means
        divergence += 0.5 * (
            np.trace(inverse @ a) - count + np.linalg.slogdet(b)[1] - np.linalg.slogdet(a)[1]
            + np.einsum("bi,ij,bj->b", moved, inverse, moved)
        )  # fmt: skip
    # As above: float32 squares divided by 1 - rho >= 0.05.
    np.testing.assert_allclose(some.log_prob(actions), expected, rtol=2e-5, atol=2e-3)
    np.testing.assert_allclose(some.entropy(), np.full(4, entropy), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(some.kl(others), divergence, rtol=1e-4, atol=2e-3)


def test_samples_move_along_the_cosines_that_they_have():
    std, count = np.array([0.1, 0.5, 1.0], np.float32), 40_000
    chosen = ChunkNormal(jnp.zeros((count, C, D)), jnp.log(std), 0.3, cosines=2)
    samples = np.asarray(chosen.sample(jax.random.PRNGKey(0)), np.float64)
    waves = np.float64(slow_cosines(C, C))
    found = np.einsum("ncd,cm->nmd", samples, waves)
    assert np.abs(found[:, 2:]).max() < 1e-5  # float32 sums of a few numbers of order 1
    for d in range(D):
        expected = np.diag(waves[:, :2].T @ covariance(std[d], 0.3) @ waves[:, :2])
        # As above: a standard error of 0.7 % of a variance, five of them.
        np.testing.assert_allclose(found[:, :2, d].var(0), expected, rtol=0.036)


def test_all_cosines_are_the_same_as_none_left_out():
    chosen, actions = make(7, 0.4)
    whole = chosen.replace(cosines=C)
    np.testing.assert_allclose(whole.log_prob(actions), chosen.log_prob(actions), rtol=1e-5)
    np.testing.assert_allclose(whole.entropy(), chosen.entropy(), rtol=1e-6)


@pytest.mark.parametrize("rho", [-0.1, 1.0])
def test_rho_outside_its_range_is_refused(rho):
    with pytest.raises(ValueError, match="rho"):
        ChunkNormal(jnp.zeros((C, D)), jnp.zeros(D), rho)


def test_unexplored_dimensions_follow_the_mean_and_do_not_count():
    chosen, actions = make(2, 0.4)
    some = chosen.replace(explored=(0, 2))
    kept = ChunkNormal(chosen.mean[..., [0, 2]], chosen.log_std[jnp.array([0, 2])], 0.4)
    np.testing.assert_allclose(
        some.log_prob(actions), kept.log_prob(actions[..., [0, 2]]), rtol=1e-5
    )
    np.testing.assert_allclose(some.entropy(), kept.entropy(), rtol=1e-6)
    other, _ = make(3, 0.4)
    reduced = ChunkNormal(other.mean[..., [0, 2]], other.log_std[jnp.array([0, 2])], 0.4)
    np.testing.assert_allclose(some.kl(other), kept.kl(reduced), rtol=1e-5)
    sample = some.sample(jax.random.PRNGKey(0))
    np.testing.assert_array_equal(sample[..., 1], chosen.mean[..., 1])
    assert (sample[..., [0, 2]] != chosen.mean[..., [0, 2]]).all()
