"""Clips of blank pictures."""

import numpy as np

from lrm_jax.labels import ClipSettings, FrameStore, make_clips, with_blanks
from lrm_jax.labels.store import BLANK


def test_blank_pictures_are_of_one_colour_and_nothing_is_done_in_them(episodes):
    store = FrameStore.from_episodes(episodes)
    clips = make_clips(episodes, store, ClipSettings(), seed=0)
    longer, more = with_blanks(store, clips, 0.5, seed=3)
    assert more[: len(clips)] == clips
    np.testing.assert_array_equal(longer.frames[: len(store.frames)], store.frames)
    np.testing.assert_array_equal(longer.starts[:-1], store.starts)
    assert longer.starts[-1] == len(longer.frames)
    blanks = more[len(clips) :]
    # Binomial: five standard deviations around a half.
    assert abs(len(blanks) / len(clips) - 0.5) < 2.5 / np.sqrt(len(clips))
    tasks, firsts = {c.task for c in clips}, {int(c.frames[0]) for c in clips}
    real = 0
    for clip in blanks:
        assert clip.kind == BLANK and clip.task in tasks
        assert (clip.progress == 0).all() and (clip.done == 0).all()
        shown = longer.frames[clip.frames]
        one_colour = (shown == shown[:, :1, :1]).all((1, 2, 3))
        assert one_colour[1:].all()
        if clip.frames[0] < len(store.frames):
            real += 1
            assert int(clip.frames[0]) in firsts
    assert 0 < real < len(blanks)
    greys = (longer.frames[len(store.frames) :, 0, 0] == longer.frames[-256:, 0, 0, :1]).all(-1)
    assert 100 < greys.sum() < 200 and {0, 255} <= set(longer.frames[-256:, 0, 0, 0][greys])


def test_the_same_seed_gives_the_same_clips_and_no_share_gives_none(episodes):
    store = FrameStore.from_episodes(episodes)
    clips = make_clips(episodes, store, ClipSettings(), seed=0)
    one, two = (with_blanks(store, clips, 0.5, seed=1)[1] for _ in range(2))
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)
    assert len(with_blanks(store, clips, 0.0, seed=1)[1]) == len(clips)
