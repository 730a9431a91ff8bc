"""The flow head: densities of denoise chains, gradients, cloning of two ways to act, files."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats

from lrm_jax.evaluation.stats import wilson
from lrm_jax.policies import load_policy, save_policy
from lrm_jax.policies.cloning import CloneConfig, clone, masked_velocity_error
from lrm_jax.policies.config import PolicyConfig
from lrm_jax.policies.decisions import decide
from lrm_jax.policies.demonstrations import from_episodes
from lrm_jax.policies.flow import ChainNormal, FlowConfig, line, sample_times
from lrm_jax.policies.networks import Policy, PolicyOutput, init_variables
from lrm_jax.policies.vocabulary import Vocabulary
from lrm_jax.run.errors import UserError

SENTENCES = ("go there",)
VOCABULARY = Vocabulary.of(SENTENCES)
NETWORK = PolicyConfig(
    head="flow", waypoints=0, chunk=2, action_size=3, image_size=8, channels=4, blocks=1,
    keypoints=2, hidden=32, sentence_size=8, word_size=8, queries=1, rho=0.0,
    flow=FlowConfig(hidden=64, blocks=1, time_size=8, noise_hidden=8),
)  # fmt: skip
FEATURES = 3 * 2 + 8


def made(config):
    policy = Policy(config, VOCABULARY.size, 2)
    return policy, init_variables(policy, jax.random.PRNGKey(0), VOCABULARY, SENTENCES)


@pytest.fixture(scope="module")
def fresh():
    return made(NETWORK)


@pytest.fixture(scope="module")
def rough(fresh):
    """A policy whose expert does something: fresh output layers are almost zero."""
    policy, variables = fresh
    leaves, tree = jax.tree.flatten(variables["params"]["actor"])
    rng = np.random.default_rng(5)
    shaken = [x + jnp.asarray(0.2 * rng.normal(size=x.shape), x.dtype) for x in leaves]
    actor = tree.unflatten(shaken)
    return policy, {**variables, "params": {**variables["params"], "actor": actor}}


def seen(batch, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, FEATURES)).astype(np.float32), rng.normal(
        size=(batch, 2)
    ).astype(np.float32)


run = jax.jit(decide, static_argnums=0)


@partial(jax.jit, static_argnames=("policy", "method"))
def apply(policy, variables, *arrays, method):
    return policy.apply(variables, *arrays, method=method)


def decided(policy, variables, batch, deterministic, seed=0, keys=None, t=0):
    features, proprio = seen(batch)
    output = PolicyOutput(None, jnp.zeros(batch), jnp.asarray(features))
    keys = jax.random.split(jax.random.PRNGKey(9), batch) if keys is None else keys
    noise = jax.random.PRNGKey(seed)
    return run(policy, variables, output, proprio, noise, deterministic, keys, t)


@pytest.mark.parametrize("rho, explored", [(0.0, None), (0.6, (0, 2))])
def test_chain_density_entropy_and_kl_are_scipys(rho, explored):
    rng = np.random.default_rng(0)
    steps, chunk, size = 3, 4, 3
    chain = rng.normal(size=(2, steps + 1, chunk, size))
    means = rng.normal(size=(2, 2, steps, chunk, size))
    stds = rng.uniform(0.1, 0.5, (2, 2, steps, size))
    ours, other = (
        ChainNormal(jnp.asarray(m), jnp.log(jnp.asarray(s)), rho, explored)
        for m, s in zip(means, stds, strict=True)
    )
    shape = rho * np.ones((chunk, chunk)) + (1 - rho) * np.eye(chunk)
    log_prob, entropy, kl = np.zeros(2), np.zeros(2), np.zeros(2)
    for b in range(2):
        for k in range(steps):
            for d in range(size) if explored is None else explored:
                law = stats.multivariate_normal(means[0, b, k, :, d], stds[0, b, k, d] ** 2 * shape)
                log_prob[b] += law.logpdf(chain[b, k + 1, :, d])
                entropy[b] += law.entropy()
                pair = [
                    torch.distributions.MultivariateNormal(
                        torch.tensor(means[i, b, k, :, d]),
                        torch.tensor(stds[i, b, k, d] ** 2 * shape),
                    )
                    for i in range(2)
                ]
                kl[b] += float(torch.distributions.kl_divergence(*pair))
    # Sums of 36 float32 terms of up to 1e3 each.
    np.testing.assert_allclose(ours.log_prob(jnp.asarray(chain)), log_prob, rtol=1e-5)
    np.testing.assert_allclose(ours.entropy(), entropy, rtol=1e-5)
    np.testing.assert_allclose(ours.kl(other), kl, rtol=1e-5)
    mean = ours.replace(average=True).log_prob(jnp.asarray(chain))
    np.testing.assert_allclose(mean, log_prob / (steps + 1), rtol=1e-5)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_decision_is_the_euler_chain_and_knows_its_density(rough, deterministic):
    policy, variables = rough
    found = decided(policy, variables, 3, deterministic)
    features, proprio = seen(3)
    chain = np.asarray(found.chain, np.float64)
    assert chain.shape == (3, 5, 2, 3) and found.actions.shape == (3, 2, 3)
    np.testing.assert_array_equal(found.actions, found.chain[:, -1])
    expected = np.zeros(3)
    along = apply(policy, variables, features, proprio, found.chain, method="act")
    for k in range(4):
        velocity = apply(
            policy, variables, features, proprio, found.chain[:, k : k + 1],
            jnp.full((3, 1), k / 4), method="velocity",
        )  # fmt: skip
        mean = chain[:, k] + np.asarray(velocity[:, 0], np.float64) / 4
        std = np.exp(np.asarray(along.log_std[:, k], np.float64))[:, None]
        assert (std > NETWORK.min_std).all() and (std < NETWORK.max_std).all()
        expected += stats.norm(mean, std).logpdf(chain[:, k + 1]).sum((1, 2))
        if deterministic:
            np.testing.assert_allclose(chain[:, k + 1], mean, atol=1e-6)
    # Rounding of a mean (1e-7) over a std of at least 0.02, for 24 numbers.
    np.testing.assert_allclose(found.log_probs, expected, atol=1e-3)
    np.testing.assert_allclose(along.log_prob(found.chain), found.log_probs, atol=1e-3)
    assert np.ptp(np.asarray(along.log_std), axis=0).max() > 0.01  # it depends on what is seen


def test_where_decisions_start(rough):
    policy, variables = rough
    keys = jax.random.split(jax.random.PRNGKey(9), 3)
    whole = decided(policy, variables, 3, True, seed=0)
    other_noise = decided(policy, variables, 3, True, seed=1)
    np.testing.assert_array_equal(whole.chain, other_noise.chain)
    # The start belongs to the episode and the decision, not to its place in the batch.
    turned = decided(policy, variables, 3, True, keys=keys[::-1])
    np.testing.assert_array_equal(turned.chain[:, 0], whole.chain[::-1, 0])
    later = decided(policy, variables, 3, True, t=1)
    assert (later.chain[:, 0] != whole.chain[:, 0]).all()
    a, b = (decided(policy, variables, 3, False, seed=s).chain for s in (0, 1))
    assert (a != b).all()
    zero = dataclasses.replace(NETWORK, flow=dataclasses.replace(NETWORK.flow, start="zero"))
    centred = decided(Policy(zero, VOCABULARY.size, 2), variables, 3, True)
    assert not np.asarray(centred.chain[:, 0]).any()


def test_unexplored_dimensions_follow_the_flow(rough):
    _, variables = rough
    some = Policy(dataclasses.replace(NETWORK, explored=(1,)), VOCABULARY.size, 2)
    found = decided(some, variables, 3, False)
    features, proprio = seen(3)
    along = apply(some, variables, features, proprio, found.chain, method="act")
    away = np.abs(np.asarray(along.mean - found.chain[:, 1:])).max((0, 1, 2))
    assert away[0] < 1e-5 and away[2] < 1e-5 and away[1] > 0.05


def test_gradient_of_the_joint_log_probability(rough):
    """Against central differences in float64, along random directions of all actor parameters."""
    policy, variables = rough
    chain = np.asarray(decided(policy, variables, 3, False).chain, np.float64)
    features, proprio = seen(3)
    with jax.enable_x64(True):
        actor = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables["params"]["actor"])
        inputs = [jnp.asarray(x, jnp.float64) for x in (features, proprio, chain)]

        @jax.jit
        def joint(actor):
            merged = {**variables, "params": {**variables["params"], "actor": actor}}
            return policy.apply(merged, *inputs, method="act").log_prob(inputs[2]).sum()

        gradient = jax.grad(joint)(actor)
        norms = jax.tree.map(lambda x: float(jnp.abs(x).max()), gradient)
        assert min(jax.tree.leaves(norms)) > 0  # every parameter matters, the noise's included
        rng = np.random.default_rng(0)
        for _ in range(3):
            way = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), actor)
            h = 1e-6
            up, down = (joint(jax.tree.map(lambda p, d: p + s * d, actor, way)) for s in (h, -h))  # noqa: B023
            exact = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, way)))
            # Rounding: 1e-16 |joint| / h, and float32 constants; truncation: h^2.
            np.testing.assert_allclose((up - down) / (2 * h), exact, rtol=1e-5)


def test_training_times_and_lines():
    times = np.asarray(sample_times(jax.random.PRNGKey(0), (4000,), "beta"))
    assert stats.kstest(1 - times / 0.999, stats.beta(1.5, 1).cdf).pvalue > 0.01
    assert stats.kstest(times, "uniform").pvalue < 1e-6
    flat = np.asarray(sample_times(jax.random.PRNGKey(0), (4000,), "uniform"))
    assert stats.kstest(flat, "uniform").pvalue > 0.01
    with pytest.raises(UserError, match="beta"):
        sample_times(jax.random.PRNGKey(0), (1,), "betta")
    rng = np.random.default_rng(0)
    start, actions = rng.normal(size=(2, 5, 2, 3))
    at, velocity = (line(start, actions, np.full(5, t)) for t in (0.25, 0.75))
    np.testing.assert_allclose((velocity[0] - at[0]) / 0.5, at[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(line(start, actions, np.zeros(5))[0], start, rtol=1e-6)
    np.testing.assert_allclose(line(start, actions, np.ones(5))[0], actions, rtol=1e-6)


def test_flow_matching_loss_is_torchs_and_masked_steps_do_not_count():
    rng = np.random.default_rng(0)
    predicted, velocity = rng.normal(size=(2, 4, 3, 2, 5)).astype(np.float32)
    mask = np.array([[1, 1], [1, 0], [0, 0], [1, 1]], bool)
    sums, count = masked_velocity_error(jnp.asarray(predicted), jnp.asarray(velocity), mask)
    inside = np.broadcast_to(mask[:, None], (4, 3, 2))
    expected = torch.nn.functional.mse_loss(
        torch.tensor(predicted[inside]), torch.tensor(velocity[inside])
    )
    assert count == 5
    np.testing.assert_allclose(sums.mean() / count, float(expected), rtol=1e-5)


def two_ways(episodes=60, steps=8):
    """One and the same picture; half of the episodes go to +0.8, half to -0.8."""
    frames = [np.full((steps, 8, 8, 3), 100, np.uint8)] * episodes
    proprio = [np.zeros((steps, 2), np.float32)] * episodes
    actions = []
    for e in range(episodes):
        taken = np.zeros((steps, 3), np.float32)
        taken[:, 0] = 0.8 if e % 2 else -0.8
        actions.append(taken)
    return from_episodes(frames, proprio, [0] * episodes, actions, chunk=2)


CLONE = CloneConfig(
    epochs=40, batch=48, lr=1e-2, shift=0, jitter=0.0, validation=0.2, keep="best",
    std_low=0.05, std_high=0.1, flow_draws=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def cloned(fresh):
    states = []
    result = clone(
        *fresh, two_ways(), CLONE, jax.random.PRNGKey(1), on_epoch=lambda s, m: states.append(s)
    )
    return *result, states


def share_at_the_modes(policy, variables, deterministic, count=400):
    """Wilson intervals (99 %) of the shares of decisions at +0.8 and at -0.8, in all steps."""
    output = apply(
        policy, variables, jnp.full((count, 8, 8, 3), 100, jnp.uint8), jnp.zeros((count, 2)),
        jnp.zeros(count, jnp.int32), jnp.zeros(count), method="__call__",
    )  # fmt: skip
    keys = jax.random.split(jax.random.PRNGKey(3), count)
    found = run(
        policy, variables, output, jnp.zeros((count, 2)), jax.random.PRNGKey(4), deterministic,
        keys, 0,
    ).actions  # fmt: skip
    near = [(np.abs(np.asarray(found[..., 0]) - s * 0.8) < 0.3).all(1) for s in (1, -1)]
    return [wilson(int(n.sum()), count, 0.99) for n in near]


def test_a_flow_learns_two_ways_where_a_gaussian_falls_between(fresh, cloned):
    policy, _ = fresh
    variables, report, _ = cloned
    for deterministic in (True, False):
        for low, high in share_at_the_modes(policy, variables, deterministic):
            # Four Euler steps of the exact velocity put 48 % at either (20,000 starts).
            assert low > 0.3 and high < 0.65
    # The least that the loss can be is not 0: lines to both modes cross.
    assert report["validation_loss"] < 0.6 * report["curve"][0]["validation_loss"]
    gaussian, start = made(dataclasses.replace(NETWORK, head="gaussian"))
    regressed, _ = clone(gaussian, start, two_ways(), CLONE, jax.random.PRNGKey(1))
    for deterministic in (True, False):
        for _, high in share_at_the_modes(gaussian, regressed, deterministic):
            assert high < 0.1


def test_the_best_epoch_is_kept_and_resumed(fresh, cloned):
    variables, report, states = cloned
    losses = [row["validation_loss"] for row in report["curve"]]
    best = int(np.argmin(losses))
    assert report["epoch"] == best + 1
    assert report["validation_loss"] == losses[best]
    assert (report["train_episodes"], report["validation_episodes"]) == (48, 12)
    encoder = variables["params"]["encoder"]
    jax.tree.map(np.testing.assert_array_equal, encoder, states[best].params["encoder"])
    middle = jax.tree.map(np.asarray, states[34])
    again, _ = clone(*fresh, two_ways(), CLONE, jax.random.PRNGKey(1), state=middle)
    jax.tree.map(np.testing.assert_array_equal, variables, again)


@pytest.mark.parametrize("head", ["flow", "gaussian"])
def test_policies_come_back_bit_for_bit(tmp_path, cloned, fresh, head):
    if head == "flow":
        policy, variables = fresh[0], cloned[0]
    else:
        policy, variables = made(dataclasses.replace(NETWORK, head="gaussian", explored=(0, 2)))
    save_policy(tmp_path / "policy", policy, VOCABULARY, variables)
    again, vocabulary, restored = load_policy(tmp_path / "policy")
    assert again == policy and vocabulary == VOCABULARY
    jax.tree.map(np.testing.assert_array_equal, restored, variables)
    assert jax.tree.map(lambda x: x.dtype, restored) == jax.tree.map(lambda x: x.dtype, variables)
    if head == "flow":
        facts = tmp_path / "policy" / "policy.json"
        facts.write_text(facts.read_text().replace('"flow"', '"gaussian"', 1))
        with pytest.raises(UserError, match="no whole policy"):
            load_policy(tmp_path / "policy")
        facts.write_text("{")
        with pytest.raises(UserError, match="damaged"):
            load_policy(tmp_path / "policy")
        with pytest.raises(UserError, match="no policy"):
            load_policy(tmp_path)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: PolicyConfig(head="flows"), "flow"),
        (lambda: FlowConfig(steps=0), "at least 1"),
        (lambda: FlowConfig(time_size=7), "even"),
        (lambda: FlowConfig(start="nose"), "noise"),
        (lambda: FlowConfig(logprob="summ"), "sum"),
        (lambda: CloneConfig(keep="bets"), "best"),
        (lambda: CloneConfig(flow_times="betta"), "beta"),
        (lambda: CloneConfig(keep="best", validation=0.0), "held-out"),
    ],
)
def test_wrong_settings_are_user_errors(make, words):
    with pytest.raises(UserError, match=words):
        make()
