"""Episodes to labelled clips: the paper's labels, bounds, and the held-out filter."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrm_jax.labels import ClipSettings, FrameStore, HeldOut, make_clips, rewind, time_map
from lrm_jax.labels.clips import normal_sentence
from lrm_jax.labels.store import FAILURE, REWIND, SUCCESS, WRONG_SENTENCE
from lrm_jax.run.errors import UserError

from .conftest import COLOURS, sentence, toy_episodes

SETTINGS = ClipSettings(wrong_sentences=1, rewinds=0.5)


@pytest.fixture(scope="module")
def clips(episodes):
    return make_clips(episodes, FrameStore.from_episodes(episodes), SETTINGS, seed=0)


def test_a_demonstration_is_labelled_by_time(episodes, clips):
    for clip in (c for c in clips if c.kind == SUCCESS):
        progress = episodes[clip.episode].progress
        done = int(np.argmax(progress >= 1))
        np.testing.assert_allclose(clip.progress[: done + 1], np.arange(done + 1) / done, atol=1e-6)
        assert (clip.progress[done:] == 1).all() and (clip.done[done:] == 1).all()
        known = np.isfinite(clip.done[:done])
        assert (clip.done[:done][known] == 0).all() and not known[
            -1
        ]  # the frame before is ambiguous


def test_without_a_simulator_the_last_frames_are_done(episodes):
    one = dataclasses.replace(episodes[0], progress=None)
    store = FrameStore.from_episodes([one])
    settings = ClipSettings(positive_fraction=0.1, rewinds=0.0)
    (clip,) = (c for c in make_clips([one], store, settings, 0) if c.kind == SUCCESS)
    count = len(one.frames)
    np.testing.assert_allclose(clip.progress, np.arange(count) / (count - 1), atol=1e-6)
    assert np.flatnonzero(clip.done == 1).tolist() == list(range(int(0.9 * count), count))


def test_failures_are_labelled_on_the_scale_of_time(episodes, clips):
    # In the toy successes progress is time / T, so the map is the identity up to its bins.
    for clip in (c for c in clips if c.kind == FAILURE):
        progress = episodes[clip.episode].progress
        if progress is None:
            assert np.isnan(clip.progress).all()
        else:
            np.testing.assert_allclose(clip.progress, progress, atol=0.05)
        assert (clip.done == 0).all()


def test_time_map_undoes_a_monotone_distortion():
    episodes = [e for e in toy_episodes(20) if e.success]
    bent = [dataclasses.replace(e, progress=e.progress**3) for e in episodes]
    to_time = time_map(bent)
    # A bin of 1/40 of the simulator's progress spans less than 0.06 of time from x = 0.3 on.
    x = np.linspace(0.3, 1, 15)
    np.testing.assert_allclose(to_time(x**3), x, atol=0.06)
    assert to_time(np.array([0.0, 1.0])).tolist() == [0, 1]
    assert (np.diff(to_time(np.linspace(0, 1, 200))) >= 0).all()
    assert time_map([])(np.array([0.3])) == np.float32(0.3)


def test_wrong_sentences_are_other_sentences_of_the_scene(episodes, clips):
    wrong = [c for c in clips if c.kind == WRONG_SENTENCE]
    assert wrong
    for clip in wrong:
        episode = episodes[clip.episode]
        assert clip.task != episode.task and clip.task in episode.meta["progress_by_task"]
        assert clip.progress.max() <= 0.4 and (clip.done == 0).all()


def test_rewinds_fall(episodes, clips):
    rewinds = [c for c in clips if c.kind == REWIND]
    assert rewinds
    for clip in rewinds:
        turn = int(np.argmax(clip.frames))
        assert (np.diff(clip.frames[: turn + 1]) == 1).all() and (
            np.diff(clip.frames[turn:]) == -1
        ).all()
        assert (np.diff(clip.progress[turn:]) <= 1e-6).all()


@given(st.integers(0, 50), st.sampled_from(["time", "simulator"]))
def test_labels_stay_in_bounds_and_depend_on_the_seed_alone(seed, progress):
    episodes = toy_episodes(8, seed)
    store = FrameStore.from_episodes(episodes)
    settings = dataclasses.replace(SETTINGS, progress=progress)
    one, two = (make_clips(episodes, store, settings, seed) for _ in range(2))
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        for name, values in a.labels.items():
            np.testing.assert_array_equal(values, b.labels[name])
            known = values[np.isfinite(values)]
            assert ((known >= 0) & (known <= 1)).all()
        assert (a.frames == b.frames).all() and a.task == b.task
        assert (store.frames[a.frames][:, 0, 0, 0] == a.episode).all()  # frames of its own episode


@given(st.integers(0, 50), st.sets(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=5))
def test_no_held_out_combination_is_ever_emitted(seed, pairs):
    episodes = toy_episodes(10, seed)
    held_out = HeldOut(sentence(*p).upper() + "." for p in pairs)
    store = FrameStore.from_episodes(episodes)
    if all(e.task in held_out for e in episodes):
        return
    clips = make_clips(
        episodes, store, dataclasses.replace(SETTINGS, wrong_sentences=3), seed, held_out
    )
    for clip in clips:
        assert clip.task not in held_out and episodes[clip.episode].task not in held_out
    held_out.check(c.task for c in clips)


def test_the_filter_stops_what_got_past():
    held_out = HeldOut([sentence(0, 1)])
    with pytest.raises(UserError, match="held-out"):
        held_out.check([f"  Put the {COLOURS[0]}  cube on the {COLOURS[1]} plate. "])
    assert normal_sentence(" A  b. ") == "a b"


def test_rewind_never_leaves_the_clip(clips):
    clip = clips[0]
    for seed in range(50):
        made = rewind(clip, np.random.default_rng(seed))
        assert set(made.frames) <= set(clip.frames) and made.frames[0] == clip.frames[0]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda e: [], "no episodes"),
        (lambda e: [dataclasses.replace(e[0], frames=e[0].frames[:1])], "fewer than two"),
        (lambda e: [e[0], dataclasses.replace(e[1], frames=e[1].frames[:, :2])], "different sizes"),
        (lambda e: [dataclasses.replace(e[0], success=None)], "succeeded"),
    ],
)
def test_wrong_episodes(episodes, change, message):
    with pytest.raises(UserError, match=message):
        changed = change(episodes)
        make_clips(changed, FrameStore.from_episodes(changed), SETTINGS, 0)
    with pytest.raises(UserError, match="nothing is left"):
        held_out = HeldOut(e.task for e in episodes)
        make_clips(episodes, FrameStore.from_episodes(episodes), SETTINGS, 0, held_out)
