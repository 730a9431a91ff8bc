"""Videos and strips decode back: frames, size, rate, colours, the moving cursor."""

import io

import av
import numpy as np
import pytest
from PIL import Image

from lrm_jax.report import style, video
from lrm_jax.report.canvas import font, wrap
from lrm_jax.report.strip import film_strip

HEADS = ("progress", "completion", "contrastive", "tri")


def decode(data: bytes):
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        frames = [f.to_ndarray(format="rgb24").astype(int) for f in container.decode(video=0)]
        return frames, stream


def clip(frames=6, size=64, label="", sentence="put the cube on the plate", **curves):
    pictures = np.zeros((frames, size, size, 3), np.uint8)
    pictures[..., 0] = 200  # red ground
    for t in range(frames):
        pictures[t, :, : size // 2] = (20, 60 + 10 * t, 180)
    return video.Clip(pictures, sentence, curves, label)


def test_mp4_round_trip():
    rising = np.linspace(0, 1, 6)
    data = video.overlay_video(clip(**dict.fromkeys(HEADS, rising)), fps=7.5)
    assert data[4:8] == b"ftyp"
    frames, stream = decode(data)
    assert len(frames) == 6 and stream.average_rate == 7.5
    assert stream.codec_context.name == "h264" and stream.pix_fmt == "yuv420p"
    height, width, _ = frames[0].shape
    assert height % 2 == width % 2 == 0 and width >= 320
    expected = list(video.overlay_frames(clip(**dict.fromkeys(HEADS, rising))))
    for got, wanted in zip(frames, expected, strict=True):
        # Inside flat areas only the quantisation of H.264 at crf 18 and of 8-bit YUV remains.
        for y, x in ((200, 60), (200, 250)):
            assert np.abs(got[y, x] - wanted[y, x].astype(int)).max() <= 8
    assert np.abs(np.array(frames) - np.array(expected)).mean() < 4


def test_pictures_are_upscaled_by_whole_factors_without_smoothing():
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)
    up = video.upscale(frames, 256)
    assert up.shape == (2, 256, 384, 3)
    np.testing.assert_array_equal(up[:, ::4, ::4], frames)
    np.testing.assert_array_equal(up[:, 3::4, 3::4], frames)
    assert video.upscale(np.zeros((480, 640, 3), np.uint8)).shape == (480, 640, 3)
    page = next(video.overlay_frames(video.Clip(frames), picture=256))
    top = next(y for y in range(64) if (page[y : y + 256, 14:398] == up[0]).all())
    assert top > 0


def test_side_by_side_of_different_lengths():
    pair = [clip(4, label="before"), clip(9, label="after", progress=np.linspace(0, 1, 9))]
    frames = list(video.overlay_frames(pair))
    assert len(frames) == 9
    single = next(video.overlay_frames(pair[1]))
    assert frames[0].shape[1] == 2 * single.shape[1] and frames[0].shape[0] == single.shape[0]
    half = single.shape[1]
    np.testing.assert_array_equal(frames[3][:, :half], frames[8][:, :half])  # stays at its end
    assert (frames[3][:, half:] != frames[8][:, half:]).any()
    assert len(decode(video.encode_mp4(frames, 10))[0]) == 9


def test_the_cursor_moves_and_colours_what_was():
    episode = clip(11, progress=np.full(11, 0.5))
    frames = list(video.overlay_frames(episode))
    ink = np.array([int(style.LIGHT.ink[i : i + 2], 16) for i in (1, 3, 5)])
    panel = frames[0].shape[0] - 40
    cursors = [np.flatnonzero((f[panel:] == ink).all(-1).sum(0) >= 10)[0] for f in frames]
    steps = np.diff(cursors)
    assert (steps > 0).all() and np.ptp(steps) <= 1
    blue = np.array([0, 114, 178])
    solid = [(np.abs(f[panel:, 110:].astype(int) - blue).max(-1) < 30).any(0).sum() for f in frames]
    assert solid[0] < 12 and (np.diff(solid) > 0).all()


def test_invalid_values_are_gaps_and_dashes():
    values = np.full(12, 0.5)
    values[4:8] = np.nan
    whole = list(video.overlay_frames(clip(12, progress=np.full(12, 0.5))))[-1]
    holed = list(video.overlay_frames(clip(12, progress=values)))[-1]
    blue = np.array([0, 114, 178])

    def painted(frame):
        return (np.abs(frame[-40:, 110:].astype(int) - blue).max(-1) < 30).any(0).sum()

    assert 0.4 < painted(holed) / painted(whole) < 0.7
    everything_invalid = clip(3, progress=np.full(3, np.nan), contrastive=np.full(3, np.nan))
    assert len(list(video.overlay_frames(everything_invalid))) == 3


@pytest.mark.parametrize(
    "sentence",
    [
        "",
        "lege den roten Würfel auf den Teller",
        "把红色方块放在蓝色盘子上",
        "😀 " * 40,
        "x" * 300,
        "a\nb\x00c",
    ],
)
def test_any_sentence_fits(sentence):
    episode = clip(1, sentence=sentence, progress=[0.5])
    (frame,) = video.overlay_frames(episode)
    assert frame.dtype == np.uint8 and frame.shape[1] == 348
    assert len(decode(video.overlay_video(episode, theme="dark"))[0]) == 1
    face = font(15)
    lines = wrap(sentence, 320, face)
    assert len(lines) <= 3 and all(face.getlength(line) <= 320 for line in lines)


def test_writes_a_file(tmp_path):
    data = video.overlay_video(clip(2), tmp_path / "overlay.mp4")
    assert (tmp_path / "overlay.mp4").read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == ["overlay.mp4"]


def test_mpeg4_where_there_is_no_h264(monkeypatch):
    def no_such_codec(name, mode):
        raise ValueError(name)

    monkeypatch.setattr(video.av, "Codec", no_such_codec)
    assert video.best_codec() == "mpeg4"
    frames, stream = decode(video.overlay_video(clip(3)))
    assert len(frames) == 3 and stream.codec_context.name == "mpeg4"
    wanted = next(video.overlay_frames(clip(3))).astype(int)
    assert np.abs(frames[0][200, 60] - wanted[200, 60]).max() <= 16


@pytest.mark.parametrize(
    "call",
    [
        lambda: video.overlay_video([]),
        lambda: video.overlay_video(video.Clip(np.zeros((2, 8, 8, 3)))),
        lambda: video.overlay_video(video.Clip(np.zeros((0, 8, 8, 3), np.uint8))),
        lambda: video.overlay_video(clip(3, progress=[0.1, 0.2])),
        lambda: video.overlay_video(clip(3), fps=0),
        lambda: video.overlay_video(clip(3), fps=float("nan")),
        lambda: video.encode_mp4([], 10),
        lambda: video.encode_mp4([np.zeros((7, 8, 3), np.uint8)], 10),
        lambda: video.encode_mp4([np.zeros((8, 8, 3), np.float32)], 10),
        lambda: video.encode_mp4(
            [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 10, 3), np.uint8)], 10
        ),
        lambda: film_strip(np.zeros((0, 8, 8, 3), np.uint8)),
        lambda: film_strip(np.zeros((2, 8, 8, 3), np.uint8), {"progress": [1]}),
        lambda: film_strip(np.zeros((2, 8, 8, 3), np.uint8), count=0),
    ],
)
def test_wrong_arguments_are_errors(call):
    with pytest.raises(ValueError):
        call()


def test_film_strip_shows_first_and_last_frame():
    frames = np.zeros((20, 16, 16, 3), np.uint8)
    frames[:, ..., 1] = np.arange(20)[:, None, None] * 12
    values = {"progress": np.linspace(0, 1, 20), "contrastive": np.full(20, np.nan)}
    image = np.asarray(Image.open(io.BytesIO(film_strip(frames, values, count=4, picture=64))))
    row = image[30]  # through the pictures
    greens = [int(g) for r, g, b in row if r == 0 and b == 0]
    assert sorted(set(greens)) == [12 * t for t in (0, 6, 13, 19)]
    assert greens.count(0) == 64
    wide = Image.open(io.BytesIO(film_strip(frames[:1], count=8, sentence="größer", label="x")))
    assert wide.width < 200  # one frame gives one picture
