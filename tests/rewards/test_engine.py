"""The batched engine against scoring one frame at a time, and its promises: antisymmetry, masks,
one program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrm_jax.qwen3_vl import VisionInputs, fixed_grid, patchify
from lrm_jax.rewards import scoring
from lrm_jax.rewards.engine import RewardEngine
from lrm_jax.rewards.heads import nano_heads
from lrm_jax.rewards.layout import Query, build_layout
from lrm_jax.rewards.scores import NAMES
from lrm_jax.run.errors import UserError

from .conftest import episode_heads

TOLERANCE = 1e-5  # probabilities; float32 sums of a few hundred terms in another order
TASKS = np.array([2, 0, 1], np.int32)


@pytest.fixture(scope="module")
def engine(tiny, tokenizer, sentences):
    return RewardEngine(tiny[0], episode_heads(), tokenizer, (32, 32), sentences, frames_per_row=3)


@pytest.fixture(scope="module")
def scores(engine, tiny, frames):
    return jax.tree.map(np.asarray, engine.score(tiny[1], frames, TASKS, interval=2))


@pytest.fixture(scope="module")
def naive(tiny, tokenizer, sentences, frames):
    """P over answers of one head about two frames, each in a row and a forward of its own."""
    model, params = tiny
    grid = jax.tree.map(jnp.asarray, fixed_grid(model.config, 32, 32))
    layouts = {
        h.name: build_layout([Query(h, ("a", "b"))], sentences, tokenizer, model.config, (32, 32))
        for h in episode_heads()
    }

    @jax.jit
    def run(tables, pair, sentence):
        images = VisionInputs(patchify(pair, model.config), grid)
        features = model.apply({"params": params}, images, method="encode")
        return scoring.read_log_probabilities(
            model, {"params": params}, tables, features, sentence[None], jnp.array([[0, 1]])
        )[0]

    def ask(name, first, second, sentence):
        layout = layouts[name]
        reads = run(layout.tables, np.stack([first, second]), jnp.int32(sentence))
        return scoring.normalise(
            scoring.answer_log_probabilities(reads, layout.answers[0])
        ).probability

    return ask


def test_equals_naive_scoring(scores, naive, frames):
    for t in (
        0,
        1,
        4,
        6,
    ):  # the first row, an inner place of one, and the last row, which is not full
        for n in range(3):
            now = frames[t, n]
            p = naive("progress", frames[0, n], now, TASKS[n])
            np.testing.assert_allclose(scores.distribution[t, n], p, atol=TOLERANCE)
            np.testing.assert_allclose(
                scores.progress[t, n], p @ np.linspace(0, 1, 11), atol=TOLERANCE
            )
            p = naive("completion", frames[0, n], now, TASKS[n])
            np.testing.assert_allclose(scores.completion[t, n], p[1], atol=TOLERANCE)
            if t >= 2:
                one = naive("contrastive", frames[t - 2, n], now, TASKS[n])
                other = naive("contrastive", now, frames[t - 2, n], TASKS[n])
                want = (one[1] - one[0] + other[0] - other[1]) / 2
                np.testing.assert_allclose(scores.contrastive[t, n], want, atol=2 * TOLERANCE)


def test_frames_share_a_row_only_where_they_share_a_prefix(tiny, tokenizer, sentences, frames):
    nano = RewardEngine(tiny[0], nano_heads(), tokenizer, (32, 32), sentences, frames_per_row=3)
    episode = RewardEngine(
        tiny[0], episode_heads(), tokenizer, (32, 32), sentences, frames_per_row=3
    )
    names = ("progress", "completion")
    assert nano.plan(names, 3).frames_per_row == 1
    assert episode.plan(names, 3).frames_per_row == 3
    # Frames that are judged alone: each one's score is the same in any company.
    whole = nano.score(tiny[1], frames, TASKS)
    some = nano.score(tiny[1], frames[3:4], TASKS)
    np.testing.assert_allclose(whole.progress[3], some.progress[0], atol=TOLERANCE)
    np.testing.assert_allclose(whole.completion[3], some.completion[0], atol=TOLERANCE)
    assert bool(whole.valid["tri"][1:].all())


def test_masks_and_composition(scores):
    assert set(scores.valid) == set(NAMES)
    assert scores.valid["progress"].all() and scores.valid["completion"].all()
    for name in ("contrastive", "tri"):
        assert not scores.valid[name][:2].any() and scores.valid[name][2:].all()
        assert (
            np.isnan(getattr(scores, name)[:2]).all()
            and np.isfinite(getattr(scores, name)[2:]).all()
        )
    want = (scores.progress + scores.completion + (scores.contrastive + 1) / 2) / 3
    np.testing.assert_allclose(scores.tri[2:], want[2:], atol=1e-6)
    assert (scores.entropy > 0).all() and (scores.entropy <= np.log(11) + 1e-6).all()


def test_contrastive_turns_over_when_time_is_reversed(engine, tiny, frames, scores):
    back = jax.tree.map(np.asarray, engine.score(tiny[1], frames[::-1], TASKS, interval=2))
    np.testing.assert_allclose(back.contrastive[2:], -scores.contrastive[2:][::-1], atol=1e-6)


def test_micro_batches_and_groups_change_nothing(tiny, tokenizer, sentences, frames, scores):
    # So small a budget that every frame, row and environment is computed alone.
    small = RewardEngine(
        tiny[0],
        episode_heads(),
        tokenizer,
        (32, 32),
        sentences,
        frames_per_row=3,
        memory_bytes=200_000,
    )
    got = small.score(tiny[1], frames, TASKS, interval=2)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(scores), strict=True):
        np.testing.assert_allclose(a, b, atol=TOLERANCE)


def test_episodes_that_begin_within_the_rollout(engine, tiny, frames, scores, naive):
    first = np.zeros((7, 3), bool)
    first[4, 1] = True
    got = jax.tree.map(np.asarray, engine.score(tiny[1], frames, TASKS, interval=2, first=first))
    # The new episode has its own initial frame, and nothing to be compared with at first.
    want = naive("progress", frames[4, 1], frames[6, 1], TASKS[1])
    np.testing.assert_allclose(got.distribution[6, 1], want, atol=TOLERANCE)
    assert got.valid["contrastive"][:, 1].tolist() == [False, False, True, True, False, False, True]
    # Nothing else changes.
    for name in NAMES:
        a, b = getattr(got, name), getattr(scores, name)
        np.testing.assert_allclose(a[:, [0, 2]], b[:, [0, 2]], atol=TOLERANCE)
        np.testing.assert_allclose(a[:4, 1], b[:4, 1], atol=TOLERANCE)


def test_new_data_does_not_recompile(engine, tiny, frames):
    engine.score(tiny[1], frames, TASKS, interval=2)
    before = engine.compilations
    rng = np.random.default_rng(1)
    for _ in range(3):
        other = rng.integers(0, 256, frames.shape, np.uint8)
        engine.score(
            jax.tree.map(lambda x: x * 1.1, tiny[1]), other, rng.integers(0, 3, 3), interval=2
        )
    assert engine.compilations == before


def test_within_a_jitted_function(engine, tiny, frames, scores):
    run = jax.jit(lambda p, f, i: engine.score(p, f, i, interval=2).progress)
    np.testing.assert_allclose(run(tiny[1], frames, TASKS), scores.progress, atol=TOLERANCE)


def test_what_the_network_cannot_compute_is_invalid(engine, tiny, frames):
    broken = dict(tiny[1], embed_tokens=tiny[1]["embed_tokens"].at[:, 0].set(jnp.nan))
    got = engine.score(broken, frames, TASKS, interval=2)
    for name in NAMES:
        assert not got.valid[name].any() and np.isnan(getattr(got, name)).all()


def test_some_heads_only(engine, tiny, frames, scores):
    got = engine.score(tiny[1], frames, TASKS, heads=["completion"])
    np.testing.assert_allclose(got.completion, scores.completion, atol=TOLERANCE)
    assert not got.valid["progress"].any() and not got.valid["tri"].any()
    short = engine.score(tiny[1], frames[:1], TASKS, heads=["contrastive"])
    assert not short.valid["contrastive"].any()


def test_cost_is_counted(engine):
    one, both = engine.cost(80, ["completion"]), engine.cost(80, ["completion", "contrastive"])
    assert 0 < one["tokens"] < both["tokens"] and 0 < one["flops"] < both["flops"]


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(frames=np.zeros((2, 3, 32, 32, 3), np.float32)), "uint8"),
        (dict(frames=np.zeros((2, 3, 64, 32, 3), np.uint8)), "32"),
        (dict(frames=np.zeros((0, 3, 32, 32, 3), np.uint8)), "no frames"),
        (dict(interval=0), "interval"),
        (dict(heads=["progres"]), "did you mean 'progress'"),
        (dict(heads=[]), "at least one"),
    ],
)
def test_wrong_input(engine, tiny, frames, change, message):
    arguments = dict(frames=frames, task_ids=TASKS) | change
    with pytest.raises(UserError, match=message):
        engine.score(tiny[1], arguments.pop("frames"), arguments.pop("task_ids"), **arguments)
