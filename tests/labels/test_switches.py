"""The switches of clips and examples, for demonstrations from disk: no simulator says anything."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrm_jax.labels import (
    ClipSettings,
    ExampleSettings,
    FrameStore,
    HeldOut,
    make_clips,
    pair_examples,
    sentences_of,
    still_examples,
)
from lrm_jax.labels.clips import known_done, normal_sentence
from lrm_jax.labels.examples import comparison, draw_frames, draw_pairs, keyframes
from lrm_jax.labels.store import FAILURE, SUCCESS, WRONG_SENTENCE, Clip
from lrm_jax.run import config
from lrm_jax.run.errors import UserError

from .conftest import sentence, toy_episodes


def demonstrations(count=8, seed=0, success=None):
    """Episodes as they lie on disk: no progress, no other sentences, success unsaid."""
    return [
        dataclasses.replace(e, success=success, progress=None, meta={})
        for e in toy_episodes(count, seed)
    ]


def clips_of(episodes, held_out=None, seed=0, **settings):
    store = FrameStore.from_episodes(episodes)
    return make_clips(episodes, store, ClipSettings(**settings), seed, held_out)


def test_success_may_be_assumed():
    episodes = demonstrations()
    with pytest.raises(UserError, match="assume_success"):
        clips_of(episodes)
    clips = clips_of(episodes, assume_success=True, wrong_sentences=0, rewinds=0.0)
    assert [c.kind for c in clips] == [SUCCESS] * len(episodes)
    for clip in clips:
        np.testing.assert_allclose(
            clip.progress, np.arange(len(clip.frames)) / (len(clip.frames) - 1), atol=1e-6
        )
    # What says that it failed is not assumed to have succeeded.
    failed = [dataclasses.replace(episodes[0], success=False), *episodes[1:]]
    assert clips_of(failed, assume_success=True)[0].kind == FAILURE


def test_failures_may_be_left_out(episodes):
    kinds = {c.kind for c in clips_of(episodes, failures=False)}
    assert FAILURE not in kinds and SUCCESS in kinds
    assert FAILURE in {c.kind for c in clips_of(episodes)}
    with pytest.raises(UserError, match="failures are left out"):
        clips_of([e for e in episodes if not e.success], failures=False)


def test_the_success_cut_off(episodes):
    """The simulator says when: the clip ends a positive window behind it."""
    share = 0.1
    for clip in clips_of(episodes, cut_off=True, positive_fraction=share):
        if clip.kind == SUCCESS:
            episode = episodes[clip.episode]
            done = known_done(episode)
            assert len(clip.frames) == min(
                done + int(np.ceil(share * len(episode.frames))), len(episode.frames)
            )
            assert (clip.progress == 1).sum() == (clip.done == 1).sum() == len(clip.frames) - done
        if clip.kind == FAILURE:
            assert len(clip.frames) == len(episodes[clip.episode].frames)


def test_an_annotation_says_when_it_succeeded():
    (one,) = demonstrations(1, success=True)
    one = dataclasses.replace(one, meta={"success_frame": 12})
    settings = dict(wrong_sentences=0, rewinds=0.0, ambiguous_fraction=0.1)
    (clip,) = clips_of([one], **settings)
    margin = int(np.ceil(0.1 * len(one.frames)))
    assert clip.progress[12] == 1 and clip.progress[6] == 0.5 and (clip.done[12:] == 1).all()
    assert np.isnan(clip.done[12 - margin : 12]).all() and (clip.done[: 12 - margin] == 0).all()
    with pytest.raises(UserError, match="success_frame is 99"):
        clips_of([dataclasses.replace(one, meta={"success_frame": 99})], **settings)


@given(
    st.integers(0, 30), st.integers(0, 4),
    st.sets(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=4),
)  # fmt: skip
def test_sentences_from_anywhere_are_wrong_and_never_held_out(seed, wanted, pairs):
    """No test combination leaks, neither by its episodes nor as a wrong sentence."""
    episodes = demonstrations(10, seed)
    held_out = HeldOut(sentence(*p) for p in pairs)
    if all(e.task in held_out for e in episodes):
        return
    clips = clips_of(
        episodes, held_out, seed, assume_success=True, wrong_from="anywhere",
        wrong_sentences=wanted, rewinds=0.0,
    )  # fmt: skip
    known = {e.task for e in episodes if e.task not in held_out}
    for number in {c.episode for c in clips}:
        mine = [c for c in clips if c.episode == number and c.kind == WRONG_SENTENCE]
        assert len(mine) == min(wanted, len(known) - 1)
        said = {normal_sentence(c.task) for c in mine}
        assert len(said) == len(mine) and normal_sentence(episodes[number].task) not in said
        assert all((c.progress == 0).all() and (c.done == 0).all() for c in mine)
    assert not any(c.task in held_out or episodes[c.episode].task in held_out for c in clips)
    sentences = sentences_of(clips)
    for made in (still_examples, pair_examples):
        tasks = made(clips, sentences, ExampleSettings(), seed).task
        assert not any(sentences[t] in held_out for t in tasks)


def test_the_scene_comes_before_anywhere(episodes):
    clips = clips_of(episodes, wrong_from="anywhere", wrong_sentences=3, rewinds=0.0)
    for number, episode in enumerate(episodes):
        mine = [c for c in clips if c.episode == number and c.kind == WRONG_SENTENCE]
        scene = set(episode.meta["progress_by_task"]) - {episode.task}
        assert scene <= {c.task for c in mine} and len(mine) == 3


# --- examples ---


def test_keyframes_alone(episodes):
    settings = ExampleSettings(frames="keyframes")
    for clip in clips_of(episodes):
        at = draw_frames(clip, settings, np.random.default_rng(0))
        assert 2 <= len(at) <= 11 and at[0] == 0 and (np.diff(at) > 0).all()
        if clip.kind == SUCCESS:
            np.testing.assert_array_equal(at, np.unique(keyframes(clip)))
        else:
            assert at[-1] == len(clip.frames) - 1
    demo = next(c for c in clips_of(demonstrations(1, success=True)) if c.kind == SUCCESS)
    labels = demo.progress[draw_frames(demo, settings, np.random.default_rng(0))]
    # p = t / T of the frame nearest to k / 10 of the way.
    np.testing.assert_allclose(labels, np.arange(11) / 10, atol=0.5 / (len(demo.frames) - 1))


def ramp(count=200):
    line = np.linspace(0, 1, count, dtype=np.float32)
    return Clip(np.arange(count), 0, "do it", line, np.zeros(count, np.float32), SUCCESS)


def test_uniform_offsets():
    settings = ExampleSettings(min_gap=0.0, min_offset=5, max_offset=24, offsets="uniform")
    before, after, _ = draw_pairs(ramp(), 6000, settings, np.random.default_rng(0))
    counts = np.bincount(np.abs(after - before), minlength=25)[5:]
    # 6000 draws over 20 distances: 300 each, standard deviation 17.
    assert counts.sum() == 6000 and np.abs(counts - 300).max() < 5 * 17


def test_hard_pairs_have_their_share_distance_and_gap():
    """A neighbour in 200 frames differs by 0.005: only hard pairs may be so close."""
    settings = ExampleSettings(min_offset=1, hard_share=0.4, hard_offset=3, hard_gap=0.004)
    before, after, closer = draw_pairs(ramp(), 4000, settings, np.random.default_rng(0))
    offset = np.abs(after - before)
    hard = offset <= 3
    # Of the drawn pairs 40 % are hard and all of those are kept; of the others those that are at
    # least 6 frames apart (0.03 of 199): log(199 / 5.5) / log(199) of them.
    kept = 0.6 * np.log(199 / 5.5) / np.log(199)
    assert abs(hard.mean() - 0.4 / (0.4 + kept)) < 0.04
    assert offset[~hard].min() >= 6
    assert np.abs(np.bincount(offset[hard], minlength=4)[1:] / hard.sum() - 1 / 3).max() < 0.06
    assert (np.sign(after - before) == closer).all()
    none, _, _ = draw_pairs(ramp(), 4000, ExampleSettings(min_offset=1), np.random.default_rng(0))
    assert len(none)
    with pytest.raises(UserError, match="hard_offset is 1"):
        ExampleSettings(hard_share=0.1, hard_offset=1).validate()


@given(
    st.integers(0, 1000), st.floats(0, 1), st.sampled_from(["uniform", "log_uniform"]),
    st.integers(3, 60),
)  # fmt: skip
def test_pairs_are_antisymmetric_and_in_random_order(seed, share, offsets, count):
    """Whatever is drawn: swapping a pair turns its answer over, and both orders are as likely."""
    rng = np.random.default_rng(seed)
    line = np.round(np.cumsum(rng.random(count)) / count, 2).astype(np.float32)
    clip = Clip(np.arange(count), 0, "do it", line, np.zeros(count, np.float32), SUCCESS)
    settings = ExampleSettings(
        hard_share=share, offsets=offsets, min_offset=1, hard_gap=0.01, tie_share=1.0
    )
    before, after, closer = draw_pairs(clip, 400, settings, rng)
    gap = line[after].astype(np.float64) - line[before]
    np.testing.assert_array_equal(closer, np.sign(gap))
    for hard in (False, True):
        one, other = (
            comparison(line[a], line[b], settings, hard)
            for a, b in ((before, after), (after, before))
        )
        np.testing.assert_array_equal(one, -other)
    # A fair coin: six standard deviations.
    flipped = (after < before).mean()
    assert abs(flipped - 0.5) < 6 * 0.5 / np.sqrt(max(len(before), 1))


@pytest.mark.parametrize(
    "settings",
    [
        dict(wrong_from="dreams"), dict(rewinds=1.5), dict(positive_fraction=0.0),
        dict(pauses={"by": "ear"}), dict(progress="luck"),
    ],
)  # fmt: skip
def test_wrong_clip_settings(settings):
    with pytest.raises(UserError, match=f"clips.{next(iter(settings))}"):
        config.build(ClipSettings, settings, key="clips")
