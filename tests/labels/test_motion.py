"""Pauses trimmed by motion: what is kept, in which order, and what it does to labels."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrm_jax.episodes import Episode
from lrm_jax.labels import ClipSettings, FrameStore, PauseSettings, kept_frames, make_clips
from lrm_jax.labels.store import SUCCESS
from lrm_jax.run.errors import UserError

TRIM = PauseSettings(trim=True)


def walk(steps, stride=1, proprio=True):
    """A robot that moves by `steps` between frames, seen by its joints and as a lit column."""
    at = np.concatenate([[0], np.cumsum(steps)]).astype(np.float32)
    frames = np.zeros((len(at), 2, 64, 3), np.uint8)
    frames[...] = np.clip(8 * (at[:, None] - np.arange(64)), 0, 255)[:, None, :, None]
    joints = np.repeat(np.stack([at, np.zeros_like(at)], 1), stride, axis=0)
    return Episode(
        frames=frames, task="move", fps=5.0, success=True,
        proprio=joints if proprio else None, meta={"stride": stride},
    )  # fmt: skip


@pytest.mark.parametrize("by", ["proprioception", "frames"])
def test_a_pause_is_left_out_and_the_way_is_not(by):
    steps = [1] * 5 + [0] * 6 + [1] * 5
    episode = walk(steps, stride=3)
    kept = kept_frames(episode, dataclasses.replace(TRIM, by=by))
    # Frames 6 to 11 show what frame 5 shows; one of them is kept.
    assert kept.tolist() == [*range(7), *range(12, 17)]
    none = kept_frames(episode, dataclasses.replace(TRIM, by=by, keep=0))
    assert none.tolist() == [*range(6), *range(12, 17)]
    assert kept_frames(episode, PauseSettings()).tolist() == list(range(17))


def test_slow_motion_adds_up():
    # Each step is below 5 % of the fast ones, every third of them together is not.
    kept = kept_frames(walk([1.0] * 10 + [0.02] * 9), dataclasses.replace(TRIM, keep=0))
    assert kept.tolist() == [*range(11), 13, 16, 19]


@given(
    st.lists(st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0]), min_size=2, max_size=40),
    st.integers(0, 3), st.sampled_from(["proprioception", "frames"]), st.data(),
)  # fmt: skip
def test_trimming_keeps_the_order_and_no_two_moments_are_merged(steps, keep, by, data):
    episode = walk(steps)
    needed = data.draw(st.integers(0, len(steps)))
    settings = dataclasses.replace(TRIM, keep=keep, by=by)
    kept = kept_frames(episode, settings, needed)
    assert kept[0] == 0 and needed in kept and (np.diff(kept) > 0).all()
    # No run of frames that is left out moves further than a pause may.
    at = episode.proprio[:, 0] / max(np.ptp(episode.proprio[:, 0]), 1e-9)
    limit = settings.still * np.quantile(np.abs(np.diff(at)), 0.95) + 1e-6
    if by == "proprioception":
        for t in np.setdiff1d(np.arange(len(at)), kept):
            assert np.abs(at[t] - at[kept[kept < t]]).min() <= limit


@given(st.lists(st.sampled_from([0, 0, 1]), min_size=4, max_size=30), st.data())
def test_labels_after_trimming(steps, data):
    """Progress grows along what is kept, and the frame of success stays at 1."""
    steps = [1, *steps]
    episode = walk(steps)
    success = data.draw(st.integers(1, len(steps)))
    episode.meta["success_frame"] = success
    store = FrameStore.from_episodes([episode])
    settings = ClipSettings(rewinds=0.0, pauses=TRIM, ambiguous_fraction=0.0)
    (clip,) = make_clips([episode], store, settings, 0)
    assert clip.kind == SUCCESS and (np.diff(clip.frames) > 0).all()
    assert (np.diff(clip.progress) >= 0).all() and clip.progress[0] == 0
    place = clip.frames.tolist().index(success)
    assert clip.progress[place] == 1 and clip.done.tolist() == [
        float(f >= success) for f in clip.frames
    ]


def test_pauses_that_cannot_be_found():
    with pytest.raises(UserError, match="no proprioception"):
        kept_frames(walk([1, 1], proprio=False), dataclasses.replace(TRIM, by="proprioception"))
    short = walk([1, 1], stride=2)
    with pytest.raises(UserError, match="do not reach"):
        kept_frames(dataclasses.replace(short, proprio=short.proprio[:4]), TRIM)
    still = walk([0, 0, 0])
    with pytest.raises(UserError, match="never moves"):
        settings = ClipSettings(pauses=dataclasses.replace(TRIM, keep=0))
        make_clips([still], FrameStore.from_episodes([still]), settings, 0)
    # Without proprioception "auto" looks at the frames.
    assert kept_frames(walk([1, 0, 0, 1], proprio=False), TRIM).tolist() == [0, 1, 2, 4]
