"""Reward arms: what each pays, and that controls cannot see what they must not."""

import typing
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrm_jax.jobs.arms import (
    dealing,
    heads_asked,
    judgements,
    make_reward,
    other_sentences,
    untrained,
)
from lrm_jax.jobs.reward_settings import ARMS, RewardSettings
from lrm_jax.jobs.signals import potential, rewards_of, rewards_of_potential
from lrm_jax.rewards.judges import Judged
from lrm_jax.rewards.model import load_reward_model
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

    for bad in (
        {"arm": "vml"}, {"signal": "progess"}, {"interval": 0}, {"transform": "none"},
        {"arm": "roboreward"}, {"arm": "robometer", "judge": "x", "bonus": 1.0},
        {"per_step": True},
    ):  # fmt: skip
        with pytest.raises(UserError):
            config.build(RewardSettings, bad)


def test_every_arm_can_be_named():
    assert typing.get_args(typing.get_type_hints(RewardSettings)["arm"]) == ARMS


class Engine:
    """In place of the model: what it is asked, and scores that the frames spell out."""

    def __init__(self):
        self.asked = []

    def score(self, params, frames, tasks, heads):
        self.asked.append((np.asarray(frames), np.asarray(tasks), heads))
        value = frames[..., 0, 0, 0].astype(jnp.float32) / 100
        return scores(value, value)


def spelled(values):
    """Frames uint8 [T+1,N,8,8,3] whose first number is 100 times the value."""
    hundredths = np.round(100 * np.asarray(values)).astype(np.uint8)
    return jnp.zeros((*np.shape(values), 8, 8, 3), jnp.uint8).at[:, :, 0, 0, 0].set(hundredths)


def played(success=None, progress=None, seed=0, environments=2):
    rng = np.random.default_rng(seed)
    return SimpleNamespace(
        actions=jnp.asarray(rng.normal(size=(3, environments, 2, 7)), jnp.float32),
        privileged=SimpleNamespace(success=success, progress=progress),
    )


def test_hold_asks_about_its_triggers_only_and_counts_them():
    engine = Engine()
    settings = RewardSettings(signal="progress", transform="hold", interval=2)
    values = np.linspace(0, 1, 7)[:, None] * [1.0, 0.5]
    reward = make_reward(settings, 0.9, engine, None)
    rewards, facts = reward(spelled(values), TASKS, None)
    assert engine.asked[0][0].shape[0] == 4  # frames 0, 2, 4, 6
    shown = np.round(100 * values) / 100
    np.testing.assert_allclose(rewards, shown[[0, 2, 2, 4, 4, 6]] * [[0], [1], [1], [1], [1], [1]])
    assert facts["judgements"] == judgements(settings, 6, 2) == 4 * 2
    assert np.asarray(facts["valid"]).all()
    # What an engine is asked about is what is counted, comparisons from the second frame on.
    tri = RewardSettings(signal="tri")
    assert judgements(tri, 6, 2) == (7 + 7 + 6) * 2
    assert judgements(RewardSettings("constant"), 6, 2) == 0


def test_a_chunk_earns_what_the_paper_pays_step_by_step():
    """Against a loop over control steps, in which a query happens at every tenth."""
    chunk, decisions, interval = 5, 7, 2
    rng = np.random.default_rng(0)
    phi = rng.random((1 + decisions // interval, 3)).astype(np.float32)
    settings = RewardSettings(
        signal="progress", transform="hold", interval=interval, per_step=True
    )
    rewards, facts = rewards_of_potential(
        settings, jnp.asarray(phi), jnp.ones(phi.shape, bool), 0.99, decisions=decisions,
        chunk=chunk,
    )  # fmt: skip
    held, expected = np.zeros(3), np.zeros((decisions, 3))
    for step in range(1, decisions * chunk + 1):
        if step % (interval * chunk) == 0:
            held = phi[step // (interval * chunk)]
        expected[(step - 1) // chunk] += held
    np.testing.assert_allclose(rewards, expected, rtol=1e-6)
    assert np.asarray(facts["valid"]).all()


def test_a_lower_bound_subtracts_the_answers_deviation():
    rng = np.random.default_rng(0)
    answers = rng.dirichlet(np.ones(11), size=(4, 2)).astype(np.float32)
    levels = np.linspace(0, 1, 11)
    mean = answers @ levels
    one = scores(mean, COMPLETION).replace(distribution=jnp.asarray(answers))
    _, valid, spread = potential(RewardSettings(signal="progress+completion"), one)
    assert np.asarray(valid).all()
    p = np.array(COMPLETION)
    deviation = [
        [np.sqrt(np.cov(levels, aweights=a, ddof=0)) for a in row] for row in answers
    ]
    expected = (np.array(deviation) + np.sqrt(p * (1 - p))) / 2
    np.testing.assert_allclose(spread, expected, atol=1e-6)
    plain, _ = rewards_of(RewardSettings(transform="dense"), one, 0.9)
    lower, facts = rewards_of(RewardSettings(transform="dense", uncertainty=0.7), one, 0.9)
    np.testing.assert_allclose(np.asarray(plain - lower), 0.7 * expected[1:], atol=1e-6)
    np.testing.assert_allclose(facts["uncertainty"], expected[1:].mean(), rtol=1e-5)


def test_oracles_pay_for_what_the_simulator_knows():
    success = jnp.asarray([[False, False], [True, False], [False, False]])
    progress = jnp.asarray([[0.0, 0.2], [0.5, 0.2], [1.0, 0.1], [0.4, 0.1]])
    sparse = make_reward(RewardSettings("oracle_sparse"), 1.0, None, None)
    rewards, _ = sparse(FRAMES, TASKS, played(success))
    np.testing.assert_array_equal(rewards, [[0, 0], [1, 0], [0, 0]])
    dense = make_reward(RewardSettings("oracle"), 1.0, None, None)
    rewards, _ = dense(FRAMES, TASKS, played(progress=progress))
    np.testing.assert_allclose(rewards, np.diff(progress, axis=0), atol=1e-6)


def test_shuffled_rewards_belong_to_others():
    values = np.linspace(0, 1, 4)[:, None] * np.arange(1, 9)[None] / 8
    settings = {"signal": "progress", "transform": "dense"}
    frames, tasks = spelled(values), jnp.zeros(8, jnp.int32)
    own, _ = make_reward(RewardSettings(**settings), 0.9, Engine(), None)(frames, tasks, None)
    shuffled = make_reward(RewardSettings("shuffled", **settings), 0.9, Engine(), None)
    given, facts = shuffled(frames, tasks, played(environments=8))
    deal = np.asarray(dealing(played(environments=8).actions))
    np.testing.assert_array_equal(given, np.asarray(own)[:, deal])
    assert sorted(deal) == list(range(8)) and (deal != np.arange(8)).all()
    assert facts["valid"].shape == (3, 8)
    np.testing.assert_array_equal(dealing(played(environments=8).actions), deal)
    assert (np.asarray(dealing(played(seed=1, environments=8).actions)) != deal).any()


def test_the_untrained_model_has_the_size_and_none_of_the_weights():
    model = load_reward_model("lrm-nano")
    blank = untrained(model)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), blank.params, model.params)
    pairs = list(zip(*(jax.tree.leaves(m.params) for m in (blank, model)), strict=True))
    # Biases and norms start where they may end; matrices do not.
    assert all(not np.array_equal(a, b) for a, b in pairs if a.ndim >= 3)
    assert not blank.adapters and not blank.calibration


def test_a_judges_arm_shows_the_frames_of_its_triggers():
    seen = {}

    class Fixed:
        def score(self, frames, tasks, fps):
            seen.update(shape=frames.shape, tasks=tasks, fps=fps)
            value = frames[..., 0, 0, 0].astype(np.float32) / 100
            value[0, -1] = np.nan
            return Judged(value, np.isfinite(value), value)

    settings = RewardSettings("roboreward", judge="folder", transform="hold", interval=3)
    values = np.linspace(0, 0.9, 7)[:, None] * [1.0, 0.5]
    reward = make_reward(
        settings, 0.9, None, None, chunk=2, judge=Fixed(), sentences=("a", "b"), control_hz=10.0
    )
    rewards, facts = reward(spelled(values), jnp.array([1, 0]), None)
    assert seen == {"shape": (2, 3, 8, 8, 3), "tasks": ["b", "a"], "fps": 10 / 6}
    np.testing.assert_allclose(np.asarray(rewards)[2:5, 1], 0.22 + 0 * values[:3, 1], atol=6e-3)
    valid = np.asarray(facts["valid"])
    assert valid[:, 1].all() and valid[:5, 0].all() and not valid[5, 0]
    assert facts["judgements"] == 6 and int(facts["unreadable"]) == 1
