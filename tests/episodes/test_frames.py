"""Lazy frames against the same frames as an array."""

import io
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from lrm_jax.episodes.broken import BrokenEpisode
from lrm_jax.episodes.frames import ChosenFrames, EncodedFrames, LazyFrames
from lrm_jax.episodes.mp4 import VideoFrames
from lrm_jax.labels import FrameStore

from .files import pictures, write_video


def encoded(frames, form="png"):
    files = [io.BytesIO() for _ in frames]
    for frame, file in zip(frames, files, strict=True):
        Image.fromarray(frame).save(file, form)
    return [f.getvalue() for f in files]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    frames = np.concatenate([pictures(0, 30), pictures(1, 30), pictures(2, 30)])
    write_video(path, frames)
    return path, frames


def whole(path):
    """All frames as PyAV gives them from the start."""
    import av

    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


INDEXES = [
    3, -1, slice(None), slice(2, 9, 3), slice(5, 5), [7, 2, 2, -1], np.array([[1, 4], [4, 0]]),
    np.arange(10) % 3 == 0,
]  # fmt: skip


@pytest.mark.parametrize("index", INDEXES, ids=str)
def test_every_index_means_what_it_means_for_an_array(index):
    frames = pictures(1, 10)
    lazy = EncodedFrames(encoded(frames))
    assert lazy.shape == frames.shape and len(lazy) == 10 and lazy.dtype == np.uint8
    np.testing.assert_array_equal(lazy[index], frames[index])
    np.testing.assert_array_equal(np.asarray(lazy), frames)


def test_only_what_is_asked_for_is_decoded_and_each_frame_once():
    frames, seen = pictures(0, 10), []

    class Counted(LazyFrames):
        def _decode(self, places):
            seen.extend(places.tolist())
            return frames[places]

    lazy = Counted(10, *frames.shape[1:3])
    assert not seen
    lazy[[5, 2, 5]]
    assert seen == [2, 5]
    with pytest.raises(IndexError):
        lazy[10]


def test_a_stretch_of_a_video_is_reached_by_seeking(video):
    """Any frames of any stretch, B-frames included, bit for bit as from the start."""
    path, frames = video
    expected = whole(path)
    assert np.abs(expected.astype(int) - frames).mean() < 3  # the video that we think it is
    np.testing.assert_array_equal(VideoFrames(path)[:], expected)
    stretch = VideoFrames(path, count=30, begin=3.0, fps=10)
    assert stretch.shape == (30, 32, 32, 3)
    for places in ([0], [29], [0, 29, 7, 8], [3, 28]):
        np.testing.assert_array_equal(stretch[places], expected[30:60][places])
    sparse = VideoFrames(path)[[0, 55, 89]]
    np.testing.assert_array_equal(sparse, expected[[0, 55, 89]])


def test_a_rate_of_television_is_counted_exactly(tmp_path):
    """29.97 frames/s, stated as 30: after 1200 frames the two are more than one frame apart."""
    path = tmp_path / "ntsc.mp4"
    frames = np.tile(pictures(0, 30, 16), (40, 1, 1, 1))
    write_video(path, frames, fps=Fraction(30000, 1001), gop=60)
    lazy = VideoFrames(path, fps=30)
    assert len(lazy) == 1200 and lazy.fps == 30
    np.testing.assert_array_equal(lazy[[3, 500, 1199]], whole(path)[[3, 500, 1199]])


def test_a_wrong_rate_and_a_stretch_beyond_the_end_are_broken(video):
    path, _ = video
    for kind, arguments in (
        ("fps", {"fps": 30}), ("video", {"count": 40, "begin": 6.0}), ("fps", {"fps": -1}),
    ):  # fmt: skip
        with pytest.raises(BrokenEpisode) as caught:
            VideoFrames(path, **arguments)
        assert caught.value.kind == kind


@pytest.mark.parametrize("faststart", [False, True])
def test_a_video_that_is_cut_off_is_broken(video, tmp_path, faststart):
    """Without its table at the end at once; with the table in front when the missing frames are
    asked for, and not before."""
    _, frames = video
    path = tmp_path / "b.mp4"
    write_video(path, frames, options={"movflags": "faststart"} if faststart else None)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.8)])
    with pytest.raises(BrokenEpisode) as caught:
        lazy = VideoFrames(path)
        assert faststart
        assert lazy[[0, 5]].shape[0] == 2
        lazy[[0, 89]]
    assert caught.value.kind == "video" and "b.mp4" in str(caught.value)


def test_a_damaged_picture_is_broken_when_it_is_decoded():
    data = encoded(pictures(0, 4))
    data[2] = data[2][:60]
    lazy = EncodedFrames(data)
    lazy[[0, 1, 3]]
    with pytest.raises(BrokenEpisode, match="frame 2"):
        lazy[1:]
    other = encoded(pictures(0, 1)) + encoded(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(BrokenEpisode) as caught:
        EncodedFrames(other)[:]
    assert caught.value.kind == "size"


def test_chosen_frames_are_ordered_flipped_and_resized():
    frames = pictures(1, 10)
    chosen = ChosenFrames(frames, np.array([8, 3]), (16, 24), flip=True)
    expected = [
        np.asarray(Image.fromarray(frames[p][::-1]).resize((24, 16), Image.Resampling.BICUBIC))
        for p in (8, 3)
    ]
    assert chosen.shape == (2, 16, 24, 3)
    np.testing.assert_array_equal(chosen[:], expected)


def test_labels_take_lazy_episodes_as_they_take_arrays():
    class Toy:
        def __init__(self, frames):
            self.frames = frames

    episodes = [pictures(e, 5 + e) for e in range(2)]
    plain = FrameStore.from_episodes([Toy(f) for f in episodes])
    lazy = FrameStore.from_episodes([Toy(EncodedFrames(encoded(f))) for f in episodes])
    np.testing.assert_array_equal(lazy.frames, plain.frames)
    np.testing.assert_array_equal(lazy.starts, plain.starts)
