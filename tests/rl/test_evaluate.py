import jax
import numpy as np
import pytest
from pixel_point import SENTENCES, PixelPoint, draw

from lrm_jax.policies.networks import Policy, PolicyConfig, init_variables
from lrm_jax.policies.vocabulary import Vocabulary
from lrm_jax.rl.evaluate import episode_keys, evaluate, record
from lrm_jax.run.errors import UserError

CONFIG = PolicyConfig(
    waypoints=0,
    chunk=4,
    image_size=32,
    channels=8,
    blocks=1,
    keypoints=4,
    sentence_size=16,
    hidden=32,
)


@pytest.fixture(scope="module")
def policy():
    vocabulary = Vocabulary.of(SENTENCES)
    network = Policy(CONFIG, vocabulary.size, 2)
    return network, init_variables(network, jax.random.PRNGKey(0), vocabulary, SENTENCES)


def test_batches_do_not_change_the_episodes(policy):
    env, keys = PixelPoint(radius=0.3), episode_keys(0, 10)
    seen = []
    whole = evaluate(env, draw, *policy, keys, batch=10)
    parts = evaluate(
        env, draw, *policy, keys, batch=4, keep_frames=(1, 9), on_batch=lambda *x: seen.append(x)
    )
    assert seen == [(4, 10), (8, 10), (10, 10)]
    np.testing.assert_array_equal(whole.success_any, parts.success_any)
    np.testing.assert_array_equal(whole.success_end, parts.success_end)
    np.testing.assert_allclose(whole.progress, parts.progress, atol=1e-5)
    assert whole.progress.shape == (10, 6) and whole.frames == {}
    assert 0 < whole.success_any.sum() < 10 and (whole.success_any >= whole.success_end).all()
    assert sorted(parts.frames) == [1, 9] and parts.frames[9].shape == (6, 32, 32, 3)
    assert whole.rate == whole.success_end.mean()
    video = record(env, draw, *policy, keys[np.array([1, 9])])
    assert video.shape == (2, 21, 32, 32, 3)
    for episode, i in zip(video, (1, 9), strict=True):
        # pixel values may round the other way where the batch size changes float sums
        assert np.abs(episode[::4].astype(int) - parts.frames[i].astype(int)).max() <= 2


def test_keys_pair_and_extend():
    np.testing.assert_array_equal(episode_keys(3, 8)[:5], episode_keys(3, 5))
    assert len(np.unique(np.asarray(episode_keys(3, 64)), axis=0)) == 64


def test_broken_episodes_are_failures(policy):
    env = PixelPoint(radius=0.9, break_below=0.35)
    result = evaluate(env, draw, *policy, episode_keys(0, 16), batch=16)
    assert result.bad.any() and not result.success_any[result.bad].any()
    assert np.isfinite(result.progress).all()


def test_sampling_needs_a_key(policy):
    env, keys = PixelPoint(), episode_keys(0, 2)
    with pytest.raises(UserError, match="key"):
        evaluate(env, draw, *policy, keys, batch=2, deterministic=False)
    with pytest.raises(UserError, match="below 2"):
        evaluate(env, draw, *policy, keys, batch=2, keep_frames=(2,))
    with pytest.raises(UserError, match="episodes"):
        evaluate(env, draw, *policy, keys[:0], batch=2)
