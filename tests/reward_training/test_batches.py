"""Batches: indices that say what the clips say, the same for the same step."""

import dataclasses

import jax
import numpy as np
import pytest

from lrm_jax.labels import ExampleSettings, sentences_of
from lrm_jax.labels.store import FAILURE
from lrm_jax.reward_training import Phase
from lrm_jax.reward_training.batches import Sampler
from lrm_jax.run.errors import UserError

from .toy import toy_clips

HEADS = ("progress", "completion", "object_x")
PHASE = Phase(name="test", rows=8, frames_per_row=4, pairs_per_row=2)


@pytest.fixture(scope="module")
def clips():
    return toy_clips(10)[1]


def sampler(clips, phase=PHASE, seed=0, heads=HEADS):
    return Sampler(clips, sentences_of(clips), heads, phase, ExampleSettings(), seed)


def test_a_batch_says_what_the_clips_say(clips):
    sentences = sentences_of(clips)
    batch = sampler(clips).batch(3)
    assert batch.frames.shape == (8, 5) and batch.labels.shape == (8, 4, 3)
    for row in range(8):
        (clip,) = [c for c in clips if c.frames[0] == batch.frames[row, 0]]
        assert sentences[batch.sentence[row]] == clip.task
        places = batch.frames[row] - clip.frames[0]
        for i, name in enumerate(HEADS):
            np.testing.assert_array_equal(batch.labels[row, :, i], clip.labels[name][places[1:]])
        for (before, after), closer in zip(batch.pairs[row], batch.closer[row], strict=True):
            if np.isfinite(closer):
                assert closer == np.sign(
                    clip.progress[places[after]] - clip.progress[places[before]]
                )
    assert np.isfinite(batch.closer).mean() > 0.8 and {-1.0, 1.0} <= set(batch.closer.ravel())


def test_the_draw_depends_on_seed_and_step_alone(clips):
    one, two = sampler(clips), sampler(clips)
    one.batch(0)  # drawing another step first changes nothing
    jax.tree.map(np.testing.assert_array_equal, one.batch(5), two.batch(5))
    assert (one.batch(5).frames != one.batch(6).frames).any()
    assert (one.batch(5).frames != sampler(clips, seed=1).batch(5).frames).any()


def test_kinds_are_drawn_by_weight(clips):
    marked = [dataclasses.replace(c, kind=FAILURE) if c.episode == 0 else c for c in clips]
    phase = dataclasses.replace(PHASE, kinds={"success": 1.0, "failure": 3.0}, rows=400)
    batch = sampler(marked, phase).batch(0)
    share = (batch.frames[:, 0] == marked[0].frames[0]).mean()
    assert abs(share - 0.75) < 0.1  # standard error 0.02


def test_clips_without_labels_are_left_out(clips):
    nothing = np.full(12, np.nan, np.float32)
    blank = [dataclasses.replace(c, progress=nothing, done=nothing, facts={}) for c in clips]
    mixed = sampler([*blank, clips[0]]).batch(0)
    assert (mixed.frames[:, 0] == clips[0].frames[0]).all()
    with pytest.raises(UserError, match="has labels"):
        sampler(blank)
    with pytest.raises(UserError, match="did you mean 'failure'"):
        sampler(clips, dataclasses.replace(PHASE, kinds={"failures": 1.0}))


def test_questions_about_things(clips):
    """Colours are answered by the sentence's own tokens; sides follow the image."""
    from lrm_jax.reward_training.config import NanoSize
    from lrm_jax.reward_training.nano import nano_config
    from lrm_jax.reward_training.scene_heads import (
        named_heads,
        scene_heads,
        thing_facts,
        thing_heads,
    )
    from lrm_jax.rewards.layout import Query, build_layout
    from lrm_jax.rewards.model import NANO_FOLDER
    from lrm_jax.rewards.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(NANO_FOLDER)
    colours = ("red", "green", "blue")
    heads = (*thing_heads(colours), *named_heads(colours))
    sentence = "put the red cube on the blue plate"
    queries = [Query(h, h.images) for h in (*scene_heads(), *heads)]
    config = nano_config(NanoSize(), tokenizer)
    layout = build_layout(queries, [sentence], tokenizer, config, (64, 64))
    ids = tokenizer.encode(sentence)[0]
    for query, table in zip(layout.queries, layout.answers, strict=True):
        # One token an answer, except behind a colour, where a number is written digit by digit.
        assert table.token.shape[1] == (3 if query.head in heads[-6:] else 1)
        if query.head.name.endswith("colour"):
            assert table.token[0, 0] == ids[2] and table.token[2, 0] == ids[6]
    cubes = np.array([[0.2, 0.7], [0.8, 0.7]])
    facts = thing_facts("cube", cubes, (0, 1), 3)
    facts |= thing_facts("plate", cubes[:, ::-1], (2, 1), 3)
    np.testing.assert_allclose(facts["left_cube_x"], [0.2, 0.7])
    np.testing.assert_allclose(facts["left_cube_colour"], [0.0, 0.5])
    np.testing.assert_allclose(facts["right_plate_colour"], [1.0, 0.5])
    np.testing.assert_allclose(facts["red_cube_x"], [0.2, 0.8])
    np.testing.assert_allclose(facts["blue_plate_x"], [0.7, 0.7])
    assert np.isnan(facts["red_plate_x"]).all()  # there is no red plate
    assert set(facts) == {h.name for h in heads}


def test_frames_can_be_drawn_evenly_instead_of_clips(clips):
    """A clip cut to half its frames is then drawn half as often."""
    short = dataclasses.replace(
        clips[0], frames=clips[0].frames[: len(clips[0].frames) // 2],
        progress=clips[0].progress[: len(clips[0].frames) // 2],
        done=clips[0].done[: len(clips[0].frames) // 2],
        facts={k: v[: len(clips[0].frames) // 2] for k, v in clips[0].facts.items()},
    )  # fmt: skip
    given = [short, *clips[1:3]]
    rows, frames = 4000, [len(c.frames) for c in given]
    for draw, expected in (("clips", 1 / 3), ("frames", frames[0] / sum(frames))):
        phase = dataclasses.replace(PHASE, rows=rows, draw=draw, kinds={"success": 1.0})
        batch = sampler(given, phase).batch(0)
        share = (batch.frames[:, 0] == short.frames[0]).mean()
        deviation = np.sqrt(expected * (1 - expected) / rows)
        assert abs(share - expected) < 4 * deviation, draw
        assert {int(f) for f in batch.frames[:, 0]} == {int(c.frames[0]) for c in given}
