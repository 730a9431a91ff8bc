from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrm_jax.policies.networks import (
    Policy,
    PolicyConfig,
    init_variables,
    raw_std,
    space_to_depth,
    spatial_softmax,
    with_proprio_statistics,
    with_tasks,
)
from lrm_jax.policies.vocabulary import Vocabulary
from lrm_jax.run.errors import UserError

SENTENCES = ["put the red cube on the blue plate", "put the blue cube on the red plate", "reach"]
VOCABULARY = Vocabulary.of(SENTENCES)
CONFIG = PolicyConfig(
    waypoints=0, image_size=32, channels=8, keypoints=4, hidden=32, sentence_size=16, rho=0.5
)


@pytest.fixture(scope="module")
def policy():
    policy = Policy(CONFIG, VOCABULARY.size, 6)
    return policy, init_variables(policy, jax.random.PRNGKey(0), VOCABULARY, SENTENCES)


@partial(jax.jit, static_argnums=0, static_argnames="method")
def apply(network, variables, *arrays, method="__call__"):
    return network.apply(variables, *arrays, method=method)


def inputs(batch=3, seed=0):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (batch, 32, 32, 3)).astype(np.uint8)
    return frames, rng.normal(size=(batch, 6)).astype(np.float32), np.arange(batch) % 3


def test_shapes_and_tree(policy):
    network, variables = policy
    assert set(variables) == {"params", "norm", "tasks"}
    assert set(variables["params"]) == {"encoder", "actor", "critic"}
    frames, proprio, tasks = inputs()
    output = apply(network, variables, frames, proprio, tasks, jnp.zeros(3))
    assert output.distribution.mean.shape == (3, 5, 7) and output.distribution.rho == 0.5
    assert output.value.shape == (3,) and output.features.shape == (3, 3 * 4 + 16)
    assert np.isfinite(output.value).all()
    np.testing.assert_allclose(output.distribution.log_std, np.log(CONFIG.init_std), rtol=1e-5)


def test_every_input_matters(policy):
    network, variables = policy
    # The last layers start near zero: compare what they see.
    frames, proprio, tasks = inputs()

    def outputs(frames, proprio, tasks, elapsed):
        out = apply(network, variables, frames, proprio, tasks, elapsed)
        return np.asarray(out.distribution.mean), np.asarray(out.value)

    base = outputs(frames, proprio, tasks, jnp.zeros(3))
    for other in (
        (255 - frames, proprio, tasks, jnp.zeros(3)),
        (frames, proprio + 1, tasks, jnp.zeros(3)),
        (frames, proprio, (tasks + 1) % 3, jnp.zeros(3)),
    ):
        changed = outputs(*other)
        assert (changed[0] != base[0]).any() and (changed[1] != base[1]).any()
    late = outputs(frames, proprio, tasks, jnp.ones(3))
    assert (late[1] != base[1]).all()
    np.testing.assert_array_equal(late[0], base[0])  # time is the critic's alone


def test_word_order_and_padding(policy):
    network, variables = policy
    frames, _, _ = inputs(1)
    features = [
        np.asarray(apply(network, variables, frames, np.array([t]), method="encode"))
        for t in (0, 1)
    ]
    # the same words in another order name another task
    assert np.abs(features[0] - features[1]).max() > 1e-4
    # what stands in the padding of a short sentence does not matter
    tokens = np.array(variables["tasks"]["tokens"])
    tokens[2, 1:] = 3
    other = {**variables, "tasks": {**variables["tasks"], "tokens": jnp.asarray(tokens)}}
    a, b = (apply(network, v, frames, np.array([2]), method="encode") for v in (variables, other))
    np.testing.assert_array_equal(a, b)


def test_value_loss_leaves_the_encoder_alone(policy):
    network, variables = policy
    frames, proprio, tasks = inputs()

    def value(params):
        out = apply(network, {**variables, "params": params}, frames, proprio, tasks, jnp.zeros(3))
        return jnp.square(out.value - 1.0).sum()

    gradient = jax.jit(jax.grad(value))(variables["params"])
    size = {
        k: sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(g)) for k, g in gradient.items()
    }
    assert size["encoder"] == 0 and size["actor"] == 0 and size["critic"] > 0


def test_statistics_and_tasks_are_data(policy):
    network, variables = policy
    frames, proprio, tasks = inputs()
    shifted = with_proprio_statistics(variables, np.full(6, 2.0), np.full(6, 4.0))
    a = apply(network, variables, frames, proprio, tasks, jnp.zeros(3))
    b = apply(network, shifted, frames, 4 * proprio + 2, tasks, jnp.zeros(3))
    np.testing.assert_allclose(a.distribution.mean, b.distribution.mean, atol=1e-6)
    renamed = with_tasks(variables, VOCABULARY, [SENTENCES[1]])
    c = apply(network, renamed, frames[:1], np.array([0]), method="encode")
    d = apply(network, variables, frames[:1], np.array([1]), method="encode")
    np.testing.assert_array_equal(c, d)


def test_spatial_softmax_finds_a_peak():
    logits = np.full((2, 16, 16, 3), -20.0, np.float32)
    logits[0, 3, 12, 1] = 20.0
    points, presence = spatial_softmax(jnp.asarray(logits))
    points = np.asarray(points).reshape(2, 3, 2)
    np.testing.assert_allclose(points[0, 1], [12 / 7.5 - 1, 3 / 7.5 - 1], atol=1e-5)
    np.testing.assert_allclose(points[1], np.zeros((3, 2)), atol=1e-5)
    np.testing.assert_allclose(presence[0, 1], 20 - np.log(256), rtol=1e-5)
    np.testing.assert_allclose(presence[1], np.full(3, -20.0), rtol=1e-5)
    # a peak between two cells has a coordinate between theirs
    logits[0, 3, 13, 1] = 20.0
    between = np.asarray(spatial_softmax(jnp.asarray(logits))[0]).reshape(2, 3, 2)
    np.testing.assert_allclose(between[0, 1, 0], 12.5 / 7.5 - 1, atol=1e-5)


def test_space_to_depth_keeps_every_pixel():
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3))
    folded = np.asarray(space_to_depth(jnp.asarray(frames), 4))
    assert folded.shape == (2, 2, 3, 48)
    np.testing.assert_array_equal(folded[1, 1, 2].reshape(4, 4, 3), frames[1, 4:8, 8:12])


def test_std_parameter_round_trip():
    std = np.array([0.03, 0.1, 0.4], np.float32)
    share = jax.nn.sigmoid(raw_std(jnp.asarray(std), CONFIG))
    low, high = np.log(CONFIG.min_std), np.log(CONFIG.max_std)
    np.testing.assert_allclose(np.exp(low + (high - low) * share), std, rtol=1e-5)
    assert np.isfinite(raw_std(jnp.array([1e-9, 9.0]), CONFIG)).all()


def test_vocabulary():
    tokens, mask = VOCABULARY.encode(["Reach the RED plate!"])
    assert [VOCABULARY.words[t - 1] for t in tokens[0][mask[0]]] == ["reach", "the", "red", "plate"]
    assert tokens.shape == (1, 8) and not tokens[0, 4:].any()
    with pytest.raises(UserError, match="'giraffe'"):
        VOCABULARY.encode(["put the giraffe on the plate"])
    with pytest.raises(UserError, match="words"):
        VOCABULARY.encode(["put " * 9])
    with pytest.raises(UserError):
        Vocabulary.of([])


@pytest.mark.parametrize(
    "wrong", [{"image_size": 30}, {"init_std": 0.9}, {"rho": 1.0}, {"min_std": 0.0}]
)
def test_bad_settings_are_user_errors(wrong):
    with pytest.raises(UserError):
        PolicyConfig(**wrong)
