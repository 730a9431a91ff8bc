"""Clips to examples: keyframes, the stated distribution of pairs, antisymmetry."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrm_jax.labels import (
    ClipSettings,
    ExampleSettings,
    FrameStore,
    make_clips,
    pair_examples,
    sentences_of,
    still_examples,
)
from lrm_jax.labels.examples import comparison, draw_pairs, keyframes
from lrm_jax.labels.store import REWIND, SUCCESS, Clip
from lrm_jax.run.errors import UserError

from .conftest import toy_episodes

SETTINGS = ExampleSettings()


@pytest.fixture(scope="module")
def clips(episodes):
    return make_clips(
        episodes, FrameStore.from_episodes(episodes), ClipSettings(rewinds=1.0), seed=0
    )


def test_the_eleven_keyframes(clips):
    for clip in (c for c in clips if c.kind == SUCCESS):
        at = keyframes(clip)
        done = int(np.argmax(np.nan_to_num(clip.done) > 0.5))
        assert at[0] == 0 and at[-1] == done and len(at) == 11
        np.testing.assert_allclose(clip.progress[at], np.arange(11) / 10, atol=0.5 / done + 1e-6)


def test_still_examples_carry_the_clips_labels(clips):
    sentences = sentences_of(clips)
    made = still_examples(clips, sentences, SETTINGS, 0)
    assert not (made.kind == REWIND).any()
    for i in range(0, len(made), 7):
        clip = clips[made.clip[i]]
        at = int(np.flatnonzero(clip.frames == made.current[i])[0])
        assert made.initial[i] == clip.frames[0] and sentences[made.task[i]] == clip.task
        np.testing.assert_equal(made.labels["progress"][i], clip.progress[at])
        np.testing.assert_equal(made.labels["completion"][i], clip.done[at])
    for clip in (c for c in clips if c.kind == SUCCESS):
        mine = made.current[made.clip == clips.index(clip)]
        assert set(clip.frames[keyframes(clip)]) <= set(mine) and (np.diff(mine) > 0).all()


def test_pairs_follow_the_labels_in_both_orders(clips, episodes):
    sentences = sentences_of(clips)
    made = pair_examples(clips, sentences, SETTINGS, 0)
    # Any frame of a clip has one progress, so the answer can be looked up.
    progress = {(c.task, f): p for c in clips for f, p in zip(c.frames, c.progress, strict=True)}
    for i in range(len(made)):
        task = sentences[made.task[i]]
        gap = progress[task, made.current[i]] - progress[task, made.previous[i]]
        assert made.closer[i] == (0 if gap == 0 else np.sign(gap))
        assert gap == 0 or abs(gap) >= SETTINGS.min_gap
    back = made.swapped().swapped()
    for field in dataclasses.fields(made):
        np.testing.assert_array_equal(getattr(back, field.name), getattr(made, field.name))
    shares = [(made.closer == s).mean() for s in (-1, 0, 1)]
    assert abs(shares[0] - shares[2]) < 0.15 and shares[1] < 0.2  # random order, few ties
    assert (made.offset != 0).all() and (made.offset < 0).any()


@given(st.floats(0, 1), st.floats(0, 1))
def test_comparison_is_antisymmetric(a, b):
    one, other = (
        comparison(np.array(a), np.array(b), SETTINGS),
        comparison(np.array(b), np.array(a), SETTINGS),
    )
    np.testing.assert_array_equal(one, -other)


def test_offsets_are_log_uniform():
    count = 200
    ramp = np.linspace(0, 1, count, dtype=np.float32)
    clip = Clip(np.arange(count), 0, "do it", ramp, np.zeros(count, np.float32), SUCCESS)
    settings = ExampleSettings(min_gap=0.0, min_offset=2)
    before, after, closer = draw_pairs(clip, 4000, settings, np.random.default_rng(0))
    offset = np.abs(after - before)
    assert offset.min() >= 2 and (np.sign(after - before) == closer).all()
    # Half of all distances lie below the geometric mean of 2 and 199; standard error 0.008.
    assert abs((offset < np.sqrt(2 * 199)).mean() - 0.5) < 0.03

    near = dataclasses.replace(settings, max_offset=12)
    before, after, _ = draw_pairs(clip, 4000, near, np.random.default_rng(0))
    offset = np.abs(after - before)
    assert offset.min() == 2 and offset.max() == 12
    # Distances that are rounded to 4 or less were drawn below 4.5.
    assert abs((offset <= 4).mean() - np.log(4.5 / 2) / np.log(12 / 2)) < 0.03
    with pytest.raises(UserError, match="max_offset is 1"):
        dataclasses.replace(settings, max_offset=1).validate()


def test_rewinds_turn_pairs_over(clips):
    clip = next(c for c in clips if c.kind == REWIND and len(c.frames) > 25)
    before, after, closer = draw_pairs(clip, 200, SETTINGS, np.random.default_rng(0))
    turn = int(np.argmax(clip.frames))
    back = (np.minimum(before, after) >= turn) & (closer != 0)
    assert back.any() and (np.sign(after - before)[back] == -closer[back]).all()


def test_examples_depend_on_the_seed_alone():
    episodes = toy_episodes(6, 3)
    clips = make_clips(episodes, FrameStore.from_episodes(episodes), ClipSettings(), 0)
    sentences = sentences_of(clips)
    a, b, c = (pair_examples(clips, sentences, SETTINGS, seed) for seed in (1, 1, 2))
    assert (a.previous == b.previous).all() and (a.closer == b.closer).all()
    assert a.previous.shape != c.previous.shape or (a.previous != c.previous).any()
