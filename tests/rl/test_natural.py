from functools import lru_cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_policy import A, C, F, LinearPolicy, linear_problem

from lrm_jax.policies.networks import Policy, PolicyConfig, init_variables
from lrm_jax.policies.vocabulary import Vocabulary
from lrm_jax.rl import ppo
from lrm_jax.rl.natural import fisher_product, inner, natural_step
from lrm_jax.run.errors import UserError


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_step_against_a_direct_solution(damping):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(12, 12))
    fisher = root @ root.T + 0.5 * np.eye(12)
    gradient = rng.normal(size=12)
    shape = {"a": (3, 2), "b": (6,)}

    def tree(x):
        return {"a": jnp.asarray(x[:6], jnp.float32).reshape(3, 2),
                "b": jnp.asarray(x[6:], jnp.float32)}  # fmt: skip

    def product(v):
        return tree(jnp.asarray(fisher, jnp.float32) @ jnp.concatenate([v["a"].ravel(), v["b"]]))

    step = natural_step(tree(gradient), product, 0.02, iterations=24, damping=damping)
    assert jax.tree.map(jnp.shape, step) == shape
    found = np.concatenate([np.ravel(step["a"]), step["b"]])
    curvature = gradient @ fisher @ gradient / (gradient @ gradient)
    expected = -np.linalg.solve(fisher + damping * curvature * np.eye(12), gradient)
    expected *= np.sqrt(2 * 0.02 / (expected @ fisher @ expected))
    # conjugate gradients stop at a residual of 1e-4, which the condition number enlarges
    bound = 1e-4 * np.linalg.cond(fisher + damping * curvature * np.eye(12))
    np.testing.assert_allclose(found, expected, atol=bound * np.abs(expected).max())
    np.testing.assert_allclose(found @ fisher @ found / 2, 0.02, rtol=1e-4)
    # the direction does not depend on how large the gradient is
    tiny = natural_step(tree(1e-12 * gradient), product, 0.02, 24, damping)
    chex.assert_trees_all_close(tiny, step, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_no_gradient_no_step():
    zero = {"a": jnp.zeros(3)}
    step = natural_step(zero, lambda v: v, 0.02)
    np.testing.assert_array_equal(step["a"], np.zeros(3))


def test_fisher_of_a_gaussian_against_its_formula():
    params, batch = linear_problem()
    policy, features = LinearPolicy(), jnp.asarray(batch.features, jnp.float32)
    learned = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params["actor"])

    def acting(x):
        return policy.apply({"params": {"actor": x}}, features, None, method="act")

    product = fisher_product(lambda x: acting(learned).kl(acting(x)).mean(), learned)
    rng = np.random.default_rng(1)
    mean, log_std = rng.normal(size=(F, C, A)), rng.normal(size=A)
    found = product({"mean": jnp.asarray(mean, jnp.float32),
                     "log_std": jnp.asarray(log_std, jnp.float32)})  # fmt: skip
    # E[score score^T]: of the mean (1/B) sum_b f f^T (x) Sigma^-1, of log sigma_d twice the number
    # of directions, none between them.
    rho, gram = policy.config.rho, batch.features.T @ batch.features / len(batch.features)
    correlation = rho * np.ones((C, C)) + (1 - rho) * np.eye(C)
    for d in range(A):
        precision = np.linalg.inv(np.exp(2 * params["actor"]["log_std"][d]) * correlation)
        expected = gram @ mean[:, :, d] @ precision
        np.testing.assert_allclose(
            found["mean"][:, :, d], expected, atol=1e-4 * np.abs(expected).max()
        )
    np.testing.assert_allclose(found["log_std"], 2 * C * log_std, rtol=1e-4)


@lru_cache
def made(head):
    sentences, count = ("go to red", "go to blue"), 64
    vocabulary = Vocabulary.of(sentences)
    network = PolicyConfig(
        waypoints=0, chunk=3, action_size=2, image_size=16, channels=8, blocks=1, keypoints=4,
        hidden=16, sentence_size=8, head=head,
    )  # fmt: skip
    policy = Policy(network, vocabulary.size, 4)
    variables = init_variables(policy, jax.random.PRNGKey(0), vocabulary, sentences)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)
    tasks = jnp.asarray(rng.integers(0, 2, count))
    proprio, elapsed = jnp.asarray(rng.normal(size=(count, 4)), jnp.float32), jnp.full(count, 0.3)

    @partial(jax.jit, static_argnames=("method",))
    def apply(*inputs, method):
        return policy.apply(variables, *inputs, method=method)

    features = apply(frames, tasks, method="encode")
    values = apply(features, proprio, elapsed, method="value")
    chain = None
    if head == "flow":
        start = jnp.asarray(rng.normal(size=(count, 3, 2)), jnp.float32)
        key = jax.random.PRNGKey(1)
        chain, acting = apply(features, proprio, start, key, False, method="denoise")
        actions, log_probs = chain[:, -1], acting.log_prob(chain)
    else:
        acting = apply(features, proprio, method="act")
        actions = acting.sample(jax.random.PRNGKey(1))
        log_probs = acting.log_prob(actions)
    batch = ppo.Batch(
        frames=None, task_ids=None, features=features, proprio=proprio, elapsed=elapsed,
        actions=actions, log_probs=log_probs, values=values,
        advantages=jnp.asarray(rng.normal(size=count), jnp.float32),
        returns=values + 1.0, mask=jnp.asarray(rng.random(count) < 0.8), chain=chain,
    )  # fmt: skip
    return policy, variables, batch


@pytest.fixture
def problem():
    return made("gaussian")


def updated(problem, train_policy=True, advantages=None, **settings):
    policy, variables, batch = problem
    if advantages is not None:
        batch = batch.replace(advantages=advantages)
    config = ppo.PPOConfig(epochs=1, minibatches=2, entropy=0.0, **settings)
    optimiser = ppo.init_optimiser(variables["params"], config)
    found = ppo.update(
        policy, config, variables, optimiser, batch, jax.random.PRNGKey(0), None, train_policy
    )
    return found[0]["params"], found[2]


def moved_by(problem, params):
    """Exact KL(old || new) over the valid decisions, and the new surrogate's mean."""
    policy, variables, batch = problem

    @jax.jit
    def acting(p):
        return policy.apply(
            {**variables, "params": p}, batch.features, batch.proprio, batch.chain, method="act"
        )

    drawn = batch.actions if batch.chain is None else batch.chain
    new = acting(params)
    gain = (jnp.exp(new.log_prob(drawn) - batch.log_probs) - 1.0) * batch.advantages
    kl = acting(variables["params"]).kl(new)
    return tuple(float(x[batch.mask].mean()) for x in (kl, gain))


@pytest.mark.parametrize(("head", "steps"), [("gaussian", 1), ("gaussian", 3), ("flow", 1)])
def test_an_update_spends_its_kl_and_improves_the_surrogate(head, steps):
    problem = made(head)
    params, metrics = updated(problem, natural=steps, target_kl=1e-4)
    kl, gain = moved_by(problem, params)
    # The second order's error goes with the root of the KL; steps of one batch's gradient are
    # nearly parallel, never more than that.
    assert (0.9 if steps == 1 else 0.6) * 1e-4 < kl < 1.1e-4
    assert gain > 0 and metrics["updates"] == 2  # the critic's, which the KL does not stop
    # Along the plain gradient the same KL buys less.
    policy, variables, batch = problem
    config = ppo.PPOConfig(entropy=0.0)
    own = {"actor": variables["params"]["actor"]}

    @jax.jit
    @jax.grad
    def along(x):
        params = {**variables["params"], **x}
        return ppo.ppo_loss(policy, {**variables, "params": params}, batch, config)[0]

    slope = along(own)
    length = 1e-3 / jnp.sqrt(inner(slope, slope))
    plain = jax.tree.map(lambda p, g: p - length * g, own, slope)
    plain_kl, plain_gain = moved_by(problem, {**variables["params"], **plain})
    assert gain / np.sqrt(kl) > 1.05 * plain_gain / np.sqrt(plain_kl)


def test_the_critic_learns_as_with_adam(problem):
    natural, _ = updated(problem, natural=1, target_kl=0.01)
    adam, _ = updated(problem)
    chex.assert_trees_all_close(natural["critic"], adam["critic"], rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_equal(natural["encoder"], adam["encoder"])


def test_nothing_to_learn_and_warm_up_leave_the_policy(problem):
    before = problem[1]["params"]["actor"]
    warm, _ = updated(problem, natural=1, target_kl=0.01, train_policy=False)
    chex.assert_trees_all_equal(warm["actor"], before)
    nothing = jnp.zeros_like(problem[2].advantages)
    still, _ = updated(problem, natural=1, target_kl=0.01, advantages=nothing)
    chex.assert_trees_all_equal(still["actor"], before)


def test_settings_that_do_not_fit(problem):
    with pytest.raises(UserError, match="target_kl"):
        updated(problem, natural=1)
    with pytest.raises(UserError, match="Adam"):
        updated(problem, natural=1, target_kl=0.01, adapt_lr=True)
    with pytest.raises(UserError, match="unexplained"):
        updated(problem, target_kl=0.01, unexplained=True)
    with pytest.raises(UserError, match="joint_grad_clip"):
        updated(problem, natural=1, target_kl=0.01, joint_grad_clip=True)


@pytest.mark.parametrize("missed", [0.0, 0.01, 0.4, 3.0])
def test_a_critic_that_misses_little_shortens_the_step(problem, missed):
    policy, variables, batch = problem
    rng = np.random.default_rng(4)
    returns, error = rng.normal(size=(2, len(batch.mask)))
    valid = np.asarray(batch.mask)
    error *= np.sqrt(missed) * returns[valid].std() / error[valid].std()
    batch = batch.replace(
        returns=jnp.asarray(returns, jnp.float32), values=jnp.asarray(returns - error, jnp.float32)
    )
    params, metrics = updated(
        (policy, variables, batch), natural=1, target_kl=1e-3, unexplained=True
    )
    np.testing.assert_allclose(metrics["step_kl"], min(missed, 1.0) * 1e-3, rtol=1e-3, atol=1e-9)
    kl, _ = moved_by(problem, params)
    # third order, as above: the root of 1e-3 is 3 % of a step
    np.testing.assert_allclose(kl, min(missed, 1.0) * 1e-3, rtol=0.15, atol=1e-7)
