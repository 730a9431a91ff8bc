import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrm_jax.policies import augment
from lrm_jax.policies.cloning import CloneConfig, clone, masked_huber
from lrm_jax.policies.demonstrations import (
    action_chunks,
    from_episodes,
    hindsight_waypoints,
    proprio_statistics,
    split_by_episode,
)
from lrm_jax.policies.networks import Policy, PolicyConfig, init_variables
from lrm_jax.policies.vocabulary import Vocabulary
from lrm_jax.run.errors import UserError

SENTENCES = ("go to red", "go to blue")
VOCABULARY = Vocabulary.of(SENTENCES)
NETWORK = PolicyConfig(
    waypoints=0, chunk=2, action_size=3, image_size=16, channels=8, blocks=1, keypoints=4,
    hidden=32,
    sentence_size=16,
)  # fmt: skip
COLOURS = np.array([[220, 20, 20], [20, 20, 220]], np.uint8)


def episodes(count, steps=6, seed=0):
    """A red and a blue 2x2 square; the action is the named square's place, three times over."""
    rng = np.random.default_rng(seed)
    frames, proprio, tasks, actions = [], [], [], []
    for _ in range(count):
        images = np.full((steps + 1, 16, 16, 3), 100, np.uint8)
        task = int(rng.integers(2))
        taken = np.zeros((steps, 3), np.float32)
        for s in range(steps):
            corners = rng.integers(0, 14, (2, 2))
            for colour, (y, x) in zip(COLOURS, corners, strict=True):
                images[s, y : y + 2, x : x + 2] = colour
            y, x = corners[task]
            taken[s] = [x / 7 - 1, y / 7 - 1, 0.0]
        frames.append(images)
        proprio.append(rng.normal(5, 2, (steps + 1, 4)))
        tasks.append(task)
        actions.append(taken)
    return frames, proprio, tasks, actions


@pytest.fixture(scope="module")
def data():
    # chunk 2 of which only the first can be foreseen: mask the other
    made = from_episodes(*episodes(120), chunk=2)
    return made.replace(mask=made.mask & np.array([True, False]))


@pytest.fixture(scope="module")
def policy():
    network = Policy(NETWORK, VOCABULARY.size, 4)
    return network, init_variables(network, jax.random.PRNGKey(0), VOCABULARY, SENTENCES)


CONFIG = CloneConfig(epochs=40, batch=32, lr=3e-3, shift=0, jitter=0.02, validation=0.2)


@pytest.fixture(scope="module")
def trained(policy, data):
    states = []
    result = clone(
        *policy, data, CONFIG, jax.random.PRNGKey(1), on_epoch=lambda s, m: states.append((s, m))
    )
    return *result, states


def test_it_learns_what_was_shown(policy, data, trained):
    start = policy[1]
    variables, report, states = trained
    assert [row["epoch"] for row in report["curve"]] == list(range(1, 41)) and len(states) == 40
    # A constant guess has a mean absolute error of about 0.5 in x and y.
    assert max(report["residual_mae"]) < 0.25
    assert report["curve"][-1]["validation_loss"] < 0.5 * report["curve"][0]["validation_loss"]
    for name in ("encoder", "actor"):
        assert not np.array_equal(
            jax.tree.leaves(variables["params"][name])[0], jax.tree.leaves(start["params"][name])[0]
        )
    same = jax.tree.map(np.array_equal, variables["params"]["critic"], start["params"]["critic"])
    assert all(jax.tree.leaves(same))


def test_std_comes_from_validation_residuals(policy, trained):
    network, _ = policy
    variables, report, _ = trained
    expected = np.clip(report["residual_rms"], CONFIG.std_low, CONFIG.std_high)
    np.testing.assert_allclose(report["std"], expected, rtol=1e-6)
    chosen = network.apply(variables, jnp.zeros((1, 28)), jnp.zeros((1, 4)), method="act")
    np.testing.assert_allclose(jnp.exp(chosen.log_std), report["std"], rtol=1e-4)


def test_resume_is_bit_identical(policy, data, trained):
    variables, report, states = trained
    middle = jax.tree.map(np.asarray, states[33][0])  # as a checkpoint would hold it
    again, second = clone(*policy, data, CONFIG, jax.random.PRNGKey(1), state=middle)
    assert len(second["curve"]) == 6
    assert second["curve"] == report["curve"][34:]
    jax.tree.map(np.testing.assert_array_equal, variables, again)


def test_average_is_returned_if_asked_for(policy, data):
    config = CloneConfig(epochs=1, batch=32, ema=0.9, validation=0.2)
    states = []
    variables, _ = clone(
        *policy, data, config, jax.random.PRNGKey(1), on_epoch=lambda s, m: states.append(s)
    )
    kernel = variables["params"]["encoder"]["stem"]["kernel"]
    np.testing.assert_array_equal(kernel, states[-1].average["encoder"]["stem"]["kernel"])
    assert not np.array_equal(kernel, states[-1].params["encoder"]["stem"]["kernel"])


def test_it_stops_when_it_is_good_enough(policy, data):
    config = CloneConfig(
        epochs=7, batch=32, ema=0.9, validation=0.2, until=0.4, trial_every=2
    )  # fmt: skip
    played, states = [], []

    def trial(variables):
        played.append(variables)
        return (0.1, 0.5, 0.9)[len(played) - 1]

    variables, report = clone(
        *policy, data, config, jax.random.PRNGKey(1), trial=trial,
        on_epoch=lambda s, m: states.append(s),
    )  # fmt: skip
    assert report["epoch"] == 4 and len(report["curve"]) == 4
    assert [row.get("trial") for row in report["curve"]] == [None, 0.1, None, 0.5]
    # What was tried is the average, and what is returned: but for the std, which is set afterwards.
    tried = {**played[-1]["params"]["actor"], "raw_std": variables["params"]["actor"]["raw_std"]}
    jax.tree.map(np.testing.assert_array_equal, tried, variables["params"]["actor"])
    jax.tree.map(
        np.testing.assert_array_equal, states[-1].average["encoder"],
        variables["params"]["encoder"],
    )  # fmt: skip
    never = dataclasses.replace(config, epochs=3, until=0.6)
    assert clone(*policy, data, never, jax.random.PRNGKey(1), trial=lambda _: 0.5)[1]["epoch"] == 3
    with pytest.raises(UserError, match="trial"):
        clone(*policy, data, config, jax.random.PRNGKey(1))
    with pytest.raises(UserError, match="until"):
        CloneConfig(keep="best", until=0.5)


def test_masked_steps_do_not_count():
    rng = np.random.default_rng(0)
    prediction, target = rng.normal(size=(2, 4, 3, 2)).astype(np.float32)
    mask = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]], bool)
    error = np.abs(prediction - target)
    huber = np.where(error < 0.1, error**2 / 2, 0.1 * (error - 0.05)).mean(-1)
    loss = masked_huber(prediction, target, mask, 0.1)
    np.testing.assert_allclose(loss, huber[mask].mean(), rtol=1e-5)
    target[~mask] = 77.0
    assert loss == masked_huber(prediction, target, mask, 0.1)


def test_chunks_and_split():
    chunks, mask = action_chunks(np.arange(4)[:, None], 3)
    np.testing.assert_array_equal(chunks[..., 0], [[0, 1, 2], [1, 2, 3], [2, 3, 3], [3, 3, 3]])
    np.testing.assert_array_equal(mask.sum(1), [3, 3, 2, 1])
    made = from_episodes(*episodes(10), chunk=2, stride=2)
    assert len(made) == 30 and made.frames.shape == (30, 16, 16, 3)
    train, held = split_by_episode(made, 0.3, seed=0)
    assert len(np.unique(held.episodes)) == 3 and len(np.unique(train.episodes)) == 7
    assert not set(train.episodes) & set(held.episodes)
    mean, std = proprio_statistics(train)
    np.testing.assert_allclose((train.proprio - mean).mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(((train.proprio - mean) / std).std(0), 1, rtol=1e-5)


def test_bad_demonstrations_are_user_errors(policy, data):
    frames, proprio, tasks, actions = episodes(2)
    with pytest.raises(UserError, match="episode 1 has 3 frames"):
        from_episodes([frames[0], frames[1][:3]], proprio, tasks, actions, chunk=2)
    with pytest.raises(UserError, match="as many"):
        from_episodes(frames[:1], proprio, tasks, actions, chunk=2)
    with pytest.raises(UserError, match="both need one"):
        split_by_episode(from_episodes(frames, proprio, tasks, actions, 2), 0.1, 0)


def test_shift_moves_whole_frames():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (32, 8, 8, 3)).astype(np.uint8)
    moved = np.asarray(augment.random_shift(jax.random.PRNGKey(0), jnp.asarray(frames), 1))
    padded = np.pad(frames, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    seen = set()
    for i in range(32):
        crops = {(y, x): padded[i, y : y + 8, x : x + 8] for y in range(3) for x in range(3)}
        match = [k for k, crop in crops.items() if np.array_equal(crop, moved[i])]
        assert len(match) == 1
        seen.add(match[0])
    assert len(seen) > 5


def test_jitter_is_small_and_per_frame():
    frames = jnp.full((16, 4, 4, 3), 128, jnp.uint8)
    jittered = np.asarray(augment.colour_jitter(jax.random.PRNGKey(0), frames, 0.1)).astype(int)
    assert jittered.std() > 0
    # brightness moves by up to 12.75, the channel gain multiplies by up to 1.1
    assert np.abs(jittered - 128).max() <= 0.1 * 127.5 + 0.1 * (128 + 12.75) + 1
    assert len(np.unique(jittered[:, 0, 0, 0])) > 4
    np.testing.assert_array_equal(augment.colour_jitter(jax.random.PRNGKey(0), frames, 0), frames)


def test_hindsight_waypoints():
    proprio = np.arange(24, dtype=np.float32).reshape(8, 3)
    grip = np.array([1, 1, 1, -1, -1, 1, 1, 1], np.float32)
    found = hindsight_waypoints(proprio, np.stack([np.zeros(8), grip], 1))
    # before step 3 the closing place is ahead, before step 5 the opening place
    np.testing.assert_array_equal(found[:3, 0], np.repeat(proprio[3:4], 3, 0))
    np.testing.assert_array_equal(found[:5, 1], np.repeat(proprio[5:6], 5, 0))
    assert np.isnan(found[3:, 0]).all() and np.isnan(found[5:, 1]).all()
    never = hindsight_waypoints(proprio, np.ones((8, 2)))
    assert np.isnan(never).all()


def test_waypoints_are_learned_and_steer_the_actor():
    """The encoder finds the places; the actor sees them relative to the tool."""
    frames, _, tasks, actions = episodes(120)
    rng = np.random.default_rng(1)
    proprio = [rng.normal(0.5, 0.3, (7, 4)).astype(np.float32) for _ in frames]
    made = from_episodes(frames, proprio, tasks, actions, chunk=2)
    # hindsight of an imagined gripper: the first waypoint is where the named square is
    places = np.full((len(made), 2, 3), np.nan, np.float32)
    places[:, 0] = made.chunks[:, 0]
    made = made.replace(waypoints=places, mask=np.zeros_like(made.mask))
    network = Policy(dataclasses.replace(NETWORK, waypoints=2), VOCABULARY.size, 4)
    variables = init_variables(network, jax.random.PRNGKey(0), VOCABULARY, SENTENCES)
    config = dataclasses.replace(CONFIG, waypoint_weight=1.0)
    variables, _ = clone(network, variables, made, config, jax.random.PRNGKey(1))
    features = network.apply(variables, made.frames, made.task_ids, method="encode")
    predicted = network.apply(variables, features, method="predicted_waypoints")
    norm = variables["norm"]
    error = predicted[:, 0] * norm["std"][:3] + norm["mean"][:3] - places[:, 0]
    # a constant guess is off by 0.5 in x and in y
    assert np.abs(error[:, :2]).mean() < 0.2
    # the actor reads them
    states = jnp.asarray(made.proprio[:1])
    a = network.apply(variables, features[:1], states, method="act").mean
    moved = features[:1].at[:, -6:].add(0.5)
    b = network.apply(variables, moved, states, method="act").mean
    assert np.abs(a - b).max() > 1e-4
