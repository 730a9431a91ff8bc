"""Reward arms: what each pays, and that controls cannot see what they must not."""

import jax.numpy as jnp
import numpy as np
import pytest

from lrm_jax.jobs.arms import (
    RewardSettings,
    heads_asked,
    make_reward,
    other_sentences,
    rewards_of,
)
from lrm_jax.rewards.scores import Scores

FRAMES = jnp.zeros((4, 2, 8, 8, 3), jnp.uint8)
TASKS = jnp.zeros(2, jnp.int32)


def scores(progress, completion):
    shape = np.shape(progress)
    nothing = jnp.full(shape, jnp.nan)
    return Scores(
        progress=jnp.asarray(progress),
        completion=jnp.asarray(completion),
        contrastive=nothing,
        tri=nothing,
        valid={
            "progress": jnp.isfinite(jnp.asarray(progress)),
            "completion": jnp.isfinite(jnp.asarray(completion)),
            "contrastive": jnp.zeros(shape, bool),
            "tri": jnp.zeros(shape, bool),
        },
        distribution=jnp.zeros((*shape, 11)),
        entropy=nothing,
    )


PROGRESS = [[0.0, 0.1], [0.2, 0.1], [0.6, 0.1], [1.0, 0.0]]
COMPLETION = [[0.0, 0.0], [0.0, 0.0], [0.2, 0.0], [0.9, 0.1]]


def test_constant_and_ramp_know_nothing_of_the_frames():
    constant, _ = make_reward(RewardSettings("constant"), 0.99, None, None)(FRAMES, TASKS, None)
    np.testing.assert_array_equal(constant, np.ones((3, 2)))
    ramp, _ = make_reward(RewardSettings("time_ramp"), 0.99, None, None)(FRAMES, TASKS, None)
    np.testing.assert_allclose(ramp[:, 0], [1 / 3, 2 / 3, 1], rtol=1e-6)


def test_delta_telescopes_over_the_mean_of_progress_and_completion():
    settings = RewardSettings(signal="progress+completion", transform="delta")
    rewards, facts = rewards_of(settings, scores(PROGRESS, COMPLETION), 0.9)
    phi = (np.array(PROGRESS) + np.array(COMPLETION)) / 2
    total = (0.9 ** np.arange(3)[:, None] * np.asarray(rewards)).sum(0)
    np.testing.assert_allclose(total, 0.9**3 * phi[-1] - phi[0], atol=1e-6)
    assert np.asarray(facts["valid"]).all()
    np.testing.assert_allclose(facts["final_progress"], 0.5, atol=1e-6)


def test_hold_repeats_each_environments_last_trigger():
    settings = RewardSettings(signal="progress", transform="hold", interval=2)
    rewards, _ = rewards_of(settings, scores(PROGRESS, COMPLETION), 0.9)
    np.testing.assert_allclose(rewards[:, 0], [0.0, 0.6, 0.6], atol=1e-6)


def test_an_invalid_score_is_masked_and_counted():
    broken = [list(row) for row in PROGRESS]
    broken[2][1] = float("nan")
    settings = RewardSettings(signal="progress", transform="delta")
    rewards, facts = rewards_of(settings, scores(broken, COMPLETION), 0.9)
    assert np.isfinite(np.asarray(rewards)).all()
    np.testing.assert_array_equal(np.asarray(facts["valid"])[:, 1], [True, False, False])
    assert int(facts["unreadable"]) == 1


@pytest.mark.parametrize("transform", ["dense", "hold"])
def test_an_unreadable_trigger_is_no_reward(transform):
    broken = [list(row) for row in PROGRESS]
    broken[1][0] = float("nan")
    settings = RewardSettings(signal="progress", transform=transform, interval=1)
    _, facts = rewards_of(settings, scores(broken, COMPLETION), 0.9)
    np.testing.assert_array_equal(np.asarray(facts["valid"])[:, 0], [False, True, True])
    assert np.asarray(facts["valid"])[:, 1].all()
    held = RewardSettings(signal="progress", transform="hold", interval=2)
    broken[2][1] = float("nan")
    _, facts = rewards_of(held, scores(broken, COMPLETION), 0.9)
    # Step 1 comes before the first trigger, whose failure counts until the next one.
    np.testing.assert_array_equal(np.asarray(facts["valid"])[:, 1], [True, False, False])


def test_a_failed_comparison_is_no_neutral_one():
    one = scores(PROGRESS, COMPLETION)
    contrastive = jnp.asarray([[np.nan, np.nan], [0.5, np.nan], [0.5, 0.5], [1.0, 0.5]])
    one = one.replace(
        contrastive=contrastive, valid={**one.valid, "contrastive": jnp.isfinite(contrastive)}
    )
    _, facts = rewards_of(RewardSettings(signal="tri", transform="dense"), one, 0.9)
    np.testing.assert_array_equal(facts["valid"], [[True, False], [True, True], [True, True]])


def test_a_bonus_needs_a_readable_completion():
    broken = [list(row) for row in COMPLETION]
    broken[3][0] = float("nan")
    settings = RewardSettings(signal="progress", transform="delta", bonus=2.0)
    assert heads_asked(settings) == ("progress", "completion")
    _, facts = rewards_of(settings, scores(PROGRESS, broken), 1.0)
    np.testing.assert_array_equal(np.asarray(facts["valid"])[:, 0], [True, True, False])


def test_only_arms_with_the_model_ask_it():
    assert heads_asked(RewardSettings("oracle")) == heads_asked(RewardSettings("constant")) == ()
    assert heads_asked(RewardSettings("wrong_sentence")) == ("progress", "completion")


def test_bonus_is_paid_once_when_done():
    settings = RewardSettings(signal="completion", transform="delta", bonus=2.0)
    plain = RewardSettings(signal="completion", transform="delta")
    with_bonus, _ = rewards_of(settings, scores(PROGRESS, COMPLETION), 1.0)
    without, _ = rewards_of(plain, scores(PROGRESS, COMPLETION), 1.0)
    np.testing.assert_allclose(
        np.asarray(with_bonus) - np.asarray(without), [[0, 0], [0, 0], [2, 0]], atol=1e-6
    )


def test_the_wrong_sentence_names_the_other_cube_and_plate():
    sentences = tuple(
        f"put the {c} cube on the {p} plate" for c in ("red", "green") for p in ("blue", "yellow")
    )
    swap = other_sentences(sentences, np.arange(4))
    np.testing.assert_array_equal(swap, [3, 2, 1, 0])
    # A task that does not occur keeps its number.
    assert other_sentences((*sentences, "wave"), np.arange(4))[4] == 4


def test_unknown_arm_or_signal_is_refused():
    from lrm_jax.run import config
    from lrm_jax.run.errors import UserError

    for bad in ({"arm": "vml"}, {"signal": "progess"}, {"interval": 0}, {"transform": "none"}):
        with pytest.raises(UserError):
            config.build(RewardSettings, bad)
