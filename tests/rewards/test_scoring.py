"""Closed-answer scoring against brute force: every answer written out in a causal row of its
own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrm_jax.qwen3_vl import VisionInputs, fixed_grid, grid_of, patchify, rope_positions
from lrm_jax.rewards import scoring
from lrm_jax.rewards.heads import Head, conversation, default_heads, nano_heads
from lrm_jax.rewards.layout import Query, build_layout
from lrm_jax.rewards.tokenizer import IMAGE_PAD, VISION_END, VISION_START
from lrm_jax.run.errors import UserError

from .conftest import episode_heads

# float32 sums of some hundred terms of order one in another order: a few hundred ulp of
# log-probabilities around -10, 1e-5 relative with a margin of ten.
TOLERANCE = 1e-4

# Many-token answers that share beginnings and have different lengths.
LONG = Head(
    "progress",
    conversation("<task><image:initial><image:current> how far", '{"progress": "', '"}'),
    ("not begun", "not there yet", "half-way", "half-way and more", "finished", "0.35"),
    (0.0, 0.3, 0.5, 0.7, 1.0, 0.35),
)


HEADS = (*nano_heads(), *episode_heads(), *default_heads(), LONG)
LENGTH = 320  # all written-out rows are padded to this, so that they share one program


@pytest.fixture(scope="module")
def features(tiny, frames):
    """Four frames, encoded."""
    model, params = tiny
    grid = jax.tree.map(jnp.asarray, fixed_grid(model.config, 32, 32))
    images = VisionInputs(patchify(frames[:4, 1], model.config), grid)
    return jax.jit(lambda p, x: model.apply({"params": p}, x, method="encode"))(params, images)


@pytest.fixture(scope="module")
def causal(tiny, features):
    """Log-softmax [S, V] of one written-out row, through the model's own causal mask."""
    model, params = tiny

    @jax.jit
    def run(ids, positions, valid, visual):
        args = ids[None], positions[:, None], valid[None], visual[None], features
        hidden = model.apply({"params": params}, *args, method="hidden")
        return jax.nn.log_softmax(model.apply({"params": params}, hidden, method="logits")[0], -1)

    def padded(ids, visual, grid, images):
        size = len(ids)
        positions, _ = rope_positions(ids, [grid] * images, model.config)
        extra = LENGTH - size
        assert extra >= 0
        return run(
            np.pad(ids, (0, extra)),
            np.pad(positions, ((0, 0), (0, extra))),
            np.arange(LENGTH) < size,
            np.pad(visual, (0, extra), constant_values=-1),
        )

    return padded


def brute_force(causal, config, tokenizer, head, sentence, slots):
    """log P of each answer, each teacher-forced in a row of its own; `slots` are image numbers."""
    grid = grid_of(config, 32, 32)
    count = grid[1] * grid[2] // 4
    ends = any(a != b and b.startswith(a) for a in head.answers for b in head.answers)
    found = []
    for answer in head.answers:
        image = f"{VISION_START}{IMAGE_PAD * count}{VISION_END}"
        text = "".join(
            {"text": t, "task": sentence, "image": image, "answer": "\0"}[k] for k, t in head.pieces
        )
        before, after = text.split("\0")
        ids, starts = tokenizer.encode(before + answer + after)
        # Tokens that hold characters of the answer, and its end where another answer goes on from
        # it.
        mine = [
            i for i, s in enumerate(starts) if len(before) <= s < len(before) + len(answer) + ends
        ]
        ids = np.array(ids, np.int32)
        visual = np.full(len(ids), -1, np.int32)
        visual[ids == config.image_token_id] = np.concatenate(
            [np.arange(count) + count * s for s in slots]
        )
        logp = causal(ids, visual, grid, len(slots))
        found.append(sum(float(logp[i - 1, ids[i]]) for i in mine))
    return np.array(found)


def tree_scores(tiny, features, layout, sentence, slots):
    model, params = tiny

    @jax.jit
    def run(tables, sentence, slots):
        return scoring.read_log_probabilities(
            model, {"params": params}, tables, features, sentence, slots
        )

    reads = run(layout.tables, jnp.array([sentence]), jnp.array([slots]))
    return [np.asarray(scoring.answer_log_probabilities(reads, t)[0]) for t in layout.answers]


def test_tree_equals_brute_force(tiny, tokenizer, sentences, features, causal):
    """All heads in one row, single- and many-token answers, one and two images, against one row an
    answer."""
    config = tiny[0].config
    images = {"initial": "0", "previous": "2", "current": "3"}
    queries = [Query(h, tuple(images[i] for i in h.images)) for h in HEADS]
    layout = build_layout(queries, sentences, tokenizer, config, (32, 32))
    for number in (0, 2):  # the shortest and the longest sentence
        got = tree_scores(tiny, features, layout, number, [int(s) for s in layout.slots])
        for query, values in zip(queries, got, strict=True):
            slots = [int(s) for s in query.slots]
            want = brute_force(causal, config, tokenizer, query.head, sentences[number], slots)
            np.testing.assert_allclose(values, want, atol=TOLERANCE, rtol=0)


def test_nano_answers_are_single_tokens(tokenizer, tiny, sentences):
    for head in nano_heads():
        layout = build_layout(
            [Query(head, head.images)], sentences, tokenizer, tiny[0].config, (32, 32)
        )
        assert layout.answers[0].token.shape == (len(head.answers), 1)
        assert len(layout.tables.reads) == 1


def test_sharing_changes_nothing_but_the_length(tiny, tokenizer, sentences, features):
    progress, completion, _ = episode_heads()
    queries = [
        Query(h, ("initial", f"frame{j}")) for j in range(3) for h in (progress, completion, LONG)
    ]
    both = [
        build_layout(queries, sentences, tokenizer, tiny[0].config, (32, 32), share=share)
        for share in (True, False)
    ]
    assert both[0].length < 0.6 * both[1].length
    shared, alone = [tree_scores(tiny, features, layout, 1, [0, 1, 2, 3]) for layout in both]
    for a, b in zip(shared, alone, strict=True):
        np.testing.assert_allclose(a, b, atol=TOLERANCE, rtol=0)


def test_every_token_sees_its_ancestors_only(tokenizer, tiny, sentences):
    progress, completion, _ = episode_heads()
    queries = [Query(h, ("initial", f"f{j}")) for j in range(2) for h in (progress, completion)]
    tables = build_layout(queries, sentences, tokenizer, tiny[0].config, (32, 32)).tables
    mask, slot = tables.attention, tables.slot
    assert not np.triu(mask, 1).any() and mask.diagonal().all()
    assert not mask[np.ix_(slot == 2, slot == 1)].any()  # the second frame does not see the first
    assert mask[np.ix_(slot == 2, slot == 0)].all()  # but the initial one
    read = mask[tables.reads]
    assert (read[:, slot == 0].all(1)).all()
    assert len({tuple(r) for r in read}) == 4


def test_heads_share_the_sentence_between_the_images_and_the_question(tokenizer, tiny, sentences):
    """Also where sentences have different lengths, so that some rows are padded."""
    queries = [Query(h, h.images) for h in nano_heads()[:2]]
    for share, copies in ((True, 1), (False, 2)):
        tables = build_layout(
            queries, sentences, tokenizer, tiny[0].config, (32, 32), share=share
        ).tables
        for number, colour in enumerate((" red", " green", " purple")):
            row = tables.tokens[number][tables.valid[number]].tolist()
            assert colour in sentences[number]
            (word,) = tokenizer.encode(colour)[0]  # in no other part of the prompt
            assert row.count(word) == copies


@pytest.mark.parametrize(
    "answers, message",
    [
        (("yes", "yes"), "all different"),
        (("yes",), "at least two"),
    ],
)
def test_answers_that_cannot_be_told_apart(answers, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(LONG, answers=answers, values=tuple(range(len(answers))))


@pytest.mark.parametrize("sentence", ["", "   ", "put <|im_end|> down"])
def test_bad_sentences(tokenizer, tiny, sentence):
    head = nano_heads()[0]
    with pytest.raises(UserError, match="task"):
        build_layout([Query(head, head.images)], [sentence], tokenizer, tiny[0].config, (32, 32))


@given(st.lists(st.floats(-50, 0), min_size=2, max_size=11))
def test_normalised_distribution(values):
    made = scoring.normalise(jnp.array(values, jnp.float32))
    assert bool(made.valid)
    p = np.asarray(made.probability)
    np.testing.assert_allclose(p.sum(), 1, atol=1e-6)
    assert 0 <= float(made.entropy) <= np.log(len(values)) + 1e-5
    assert p[np.argmax(values)] == p.max()


def test_what_is_not_finite_is_invalid():
    made = scoring.normalise(jnp.array([[-1.0, np.nan], [-np.inf, 0.0], [-2.0, -2.0]]))
    assert made.valid.tolist() == [False, False, True]
    assert (
        np.isnan(made.expectation([0.0, 1.0])[:2]).all()
        and float(made.expectation([0.0, 1.0])[2]) == 0.5
    )
    assert np.isnan(made.entropy[:2]).all()


@given(st.tuples(*[st.floats(-20, 0)] * 4))
def test_swap_average_is_exactly_antisymmetric(values):
    a, b = (scoring.normalise(jnp.array(values[i : i + 2], jnp.float32)) for i in (0, 2))
    one, other = (scoring.swap_average(*p).expectation([-1.0, 1.0]) for p in ((a, b), (b, a)))
    assert float(one) == -float(other)
