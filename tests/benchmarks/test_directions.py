import numpy as np

from lrm_jax.benchmarks.directions import advantages, worth


def test_worth_of_a_step_leaves_out_its_own_rollout():
    steps, kl = np.array([[1.0], [1.0], [2.0]]), np.array([0.25, 0.25, 1.0])
    found = worth(steps, kl, np.array([[1.0], [2.0], [3.0]]))
    # by the others' gradients, 2.5, 2 and 1.5, and the root of each KL
    np.testing.assert_allclose(found["success_per_root_nat"], (5 + 4 + 3) / 3)
    np.testing.assert_allclose(found["standard_error"], 1 / np.sqrt(3))
    np.testing.assert_allclose(found["agreement"], 1.0)


def test_noise_is_worth_nothing():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(200, 50))
    found = worth(noise, np.ones(200), noise)  # with its own rollout each would gain 50
    assert abs(found["success_per_root_nat"]) < 1.0
    assert abs(found["agreement"]) < 0.01


def test_advantages_are_returns_less_their_mean():
    rewards = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    np.testing.assert_allclose(
        advantages(rewards, 0.5), [[0.0, 0.0], [-1.0, 1.0]], atol=1e-6
    )  # returns 1 and 0.5 * 2 at first, then 0 and 2
