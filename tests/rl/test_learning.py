"""The whole loop on a toy: clone a biased teacher from pixels, refine by a reward from pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pixel_point import SENTENCES, SIZE, PixelPoint, demonstrations, draw

from lrm_jax.policies import (
    CloneConfig,
    Policy,
    PolicyConfig,
    Vocabulary,
    clone,
    from_episodes,
    init_variables,
)
from lrm_jax.rl import PPOConfig, RefineConfig, episode_keys, evaluate, refine

ENV = PixelPoint(step_size=0.04)
NETWORK = PolicyConfig(
    waypoints=0,
    chunk=4,
    image_size=SIZE,
    channels=16,
    blocks=1,
    keypoints=8,
    sentence_size=32,
    hidden=64,
)
CLONE = CloneConfig(epochs=10, batch=64, lr=2e-3, shift=0, std_low=0.15, std_high=0.3)


def distance_in_the_image(frames, task_ids):
    """float [T+1,N]: between the point and the dot that the task names, by pixel centroids."""
    x = frames.astype(jnp.float32)
    red, green, blue = x[..., 0], x[..., 1], x[..., 2]
    white = (red > 200) & (green > 200)
    named = jnp.where(
        (task_ids == 0)[:, None, None], (red > 150) & (green < 120), (blue > 150) & (red < 120)
    )
    axis = (jnp.arange(SIZE) + 0.5) / SIZE

    def centre(pixels):
        weight = pixels.sum((-1, -2))
        along = jnp.stack([(pixels.sum(-2) * axis).sum(-1), (pixels.sum(-1) * axis).sum(-1)], -1)
        return along / jnp.maximum(weight, 1)[..., None], weight

    point, _ = centre(white)
    dot, visible = centre(named)
    # a dot that the point covers has been reached
    return jnp.where(visible > 1, jnp.linalg.norm(point - dot, axis=-1), 0.0)


def closer(frames, task_ids, played):
    """Potential-based: Phi = 1 - distance, r = 0.99 Phi(s') - Phi(s)."""
    phi = 1.0 - distance_in_the_image(frames, task_ids)
    return 0.99 * phi[1:] - phi[:-1], {}


def constant(frames, task_ids, played):
    return jnp.full((frames.shape[0] - 1, frames.shape[1]), 0.3), {}


@pytest.mark.slow
def test_refinement_mends_a_biased_clone():
    vocabulary = Vocabulary.of(SENTENCES)
    policy = Policy(NETWORK, vocabulary.size, ENV.proprio_size)
    variables = init_variables(policy, jax.random.PRNGKey(0), vocabulary, SENTENCES)
    frames, proprio, tasks, actions = demonstrations(ENV, jax.random.PRNGKey(1), 300)
    actions = actions.copy()
    actions[..., 0] = np.clip(actions[..., 0] + 0.45, -1, 1)  # it always pulls to the right
    data = from_episodes(frames, proprio, tasks, actions, NETWORK.chunk)
    variables, _ = clone(policy, variables, data, CLONE, jax.random.PRNGKey(2))

    config = RefineConfig(
        iterations=20,
        num_envs=64,
        num_chunks=5,
        critic_warmup=1,
        ppo=PPOConfig(
            lr=3e-4,
            value_lr=1e-3,
            epochs=4,
            minibatches=4,
            clip=0.2,
            entropy=0.0,
            target_kl=0.05,
            decay=0.9,
        ),
    )
    keys = episode_keys(0, 256)
    base = evaluate(ENV, draw, policy, variables, keys, batch=64)
    rates = {}
    for reward in (closer, constant):
        state = refine(ENV, draw, policy, variables, reward, config, jax.random.PRNGKey(5))
        found = evaluate(ENV, draw, policy, state.variables, keys, batch=64)
        rates[reward] = found
    assert 0.3 < base.rate < 0.8
    better, control = rates[closer], rates[constant]
    gained = int((better.success_end & ~base.success_end).sum())
    lost = int((~better.success_end & base.success_end).sum())
    # McNemar's z above 5, and no gain without information in the reward (two standard errors).
    assert (gained - lost) / np.sqrt(gained + lost) > 5
    assert control.rate < base.rate + 2 * np.sqrt(0.25 / 256)
