"""The door `score`: what it reads, what it writes, and what it says to bad input."""

import json
import subprocess
import sys

import av
import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import lrm_jax
from lrm_jax.episodes.video import natural, read_video
from lrm_jax.jobs.score import score_inputs
from lrm_jax.report.video import encode_mp4
from lrm_jax.run.errors import UserError

TASK = "put the red cube on the blue plate"


@pytest.fixture(scope="module")
def frames():
    """uint8 [6, 64, 64, 3], smooth, so that a video codec keeps them."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 255, (6, 2, 2, 3))
    made = jax.image.resize(corners, (6, 64, 64, 3), "linear")
    return np.asarray(made).round().astype(np.uint8)


@pytest.fixture(scope="module")
def model():
    return lrm_jax.load_reward_model("lrm-nano")


@pytest.fixture(scope="module")
def scored(model, frames, tmp_path_factory):
    folder = tmp_path_factory.mktemp("score")
    np.save(folder / "frames.npy", frames)
    facts = score_inputs(model, [folder / "frames.npy"], TASK, folder / "out", interval=2)
    return folder / "out", facts


def test_files_hold_what_the_model_says(model, frames, scored):
    out, facts = scored
    want = model.score(frames, TASK, interval=2)
    got = json.loads((out / "scores.json").read_text())
    assert got["model"] == "lrm-nano" and got["task"] == TASK and got["n_frames"] == 6
    assert facts["frames"] == 6 and facts["frames_per_second"] > 0
    for name in ("progress", "completion", "contrastive", "tri"):
        head, values = got["heads"][name], np.asarray(getattr(want, name))
        assert head["valid"] == np.isfinite(values).tolist()
        assert [v is None for v in head["value"]] == np.isnan(values).tolist()
        np.testing.assert_allclose(np.array(head["value"], float), values, atol=1e-5)
    assert got["heads"]["contrastive"]["value"][:2] == [None, None]
    np.testing.assert_allclose(
        got["heads"]["progress"]["distribution"], want.distribution, atol=1e-5
    )
    table = pq.read_table(out / "scores.parquet").to_pydict()
    assert table["frame_index"] == list(range(6)) and table["episode_index"] == [0] * 6
    np.testing.assert_allclose(table["progress_sparse"], want.progress, atol=1e-5)
    assert table["contrastive"][:2] == [None, None]
    with Image.open(out / "plot.png") as image:
        assert min(image.size) > 100
    with av.open(str(out / "overlay.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 6
    assert "model_sha256" in json.loads((out / "manifest.json").read_text())["hashes"]


def test_generated_answers_that_cannot_be_read_are_null(model, frames, tmp_path):
    """lrm-nano learned to answer behind the scaffold, not to close its JSON."""
    np.save(tmp_path / "frames.npy", frames[:2])
    facts = score_inputs(
        model, [tmp_path / "frames.npy"], TASK, tmp_path / "out", heads=["progress"],
        decode="generate", max_new_tokens=4,
    )  # fmt: skip
    assert facts["unreadable"] == facts["answers"] == 2
    got = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert got["decode"] == "generate"
    assert got["heads"]["progress"]["value"] == [None, None]
    assert [len(t) for t in got["heads"]["progress"]["texts"]] == [1, 1]


def test_many_inputs_of_every_kind(model, frames, scored, tmp_path):
    (tmp_path / "images").mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "images" / f"frame_{i + 7}.png")  # 9 before 10
    np.savez(tmp_path / "clip.npz", frames=frames, other=np.zeros(3))
    (tmp_path / "b").mkdir()
    np.save(tmp_path / "b" / "clip.npy", frames[:3])
    (tmp_path / "clip.mp4").write_bytes(encode_mp4(frames, fps=5.0))
    inputs = ["images", "clip.npz", "b/clip.npy", "clip.mp4"]
    out = tmp_path / "out"
    facts = score_inputs(model, [tmp_path / p for p in inputs], TASK, out, interval=2)
    assert facts["frames"] == 6 + 6 + 3 + 6
    want = json.loads((scored[0] / "scores.json").read_text())["heads"]["progress"]["value"]
    names = ["images", "clip", "clip_2", "clip_3"]
    found = {n: json.loads((out / n / "scores.json").read_text()) for n in names}
    for name, count, off in (("images", 6, 1e-5), ("clip", 6, 1e-5), ("clip_2", 3, 1e-5)):
        got = found[name]["heads"]["progress"]["value"]
        np.testing.assert_allclose(got, want[:count], atol=off)
    assert found["clip_3"]["fps"] == 5.0 and found["clip_3"]["n_frames"] == 6
    episodes = [
        pq.read_table(out / n / "scores.parquet")["episode_index"][0].as_py() for n in names
    ]
    assert sorted(episodes) == [0, 1, 2, 3]


def test_a_video_is_read_as_it_was_written(frames, tmp_path):
    (tmp_path / "v.mp4").write_bytes(encode_mp4(frames, fps=12.5))
    got = read_video(tmp_path / "v.mp4")
    assert got.fps == 12.5 and got.frames.shape == frames.shape
    # Half-resolution colour and a lossy codec: a few levels; another order of channels is dozens.
    assert np.abs(got.frames.astype(int) - frames).mean() < 6


def test_natural_order():
    assert sorted(["f10", "f9", "f1a"], key=natural) == ["f1a", "f9", "f10"]


def _text(folder):
    (folder / "a.mp4").write_text("this is no video")
    return "a.mp4"


def _truncated(folder):
    data = encode_mp4(np.zeros((30, 64, 64, 3), np.uint8), 10.0)
    (folder / "a.mp4").write_bytes(data[: len(data) // 2])
    return "a.mp4"


def _empty_folder(folder):
    (folder / "a").mkdir()
    return "a"


def _mixed(folder):
    (folder / "a").mkdir()
    for i, size in enumerate((8, 9)):
        Image.new("RGB", (size, 8)).save(folder / "a" / f"{i}.png")
    return "a"


def _broken_image(folder):
    (folder / "a").mkdir()
    (folder / "a" / "0.png").write_bytes(b"\x89PNG no")
    return "a"


def _saved(array):
    def save(folder):
        np.save(folder / "a.npy", array)
        return "a.npy"

    return save


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: "missing.mp4", "no such file"),
        (_text, "not a video"),
        (_truncated, "not a video|cut off"),
        (_empty_folder, "no image"),
        (_mixed, "9x8 pixels"),
        (_broken_image, "not an image"),
        (_saved(np.zeros((2, 8, 8, 3))), "float64"),
        (_saved(np.zeros((8, 8, 3), np.uint8)), "shape"),
        (_saved(np.zeros((0, 8, 8, 3), np.uint8)), "no frame"),
    ],
)
def test_bad_inputs_write_nothing(model, tmp_path, make, message):
    with pytest.raises(UserError, match=message) as error:
        score_inputs(model, [tmp_path / make(tmp_path)], TASK, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(task="  "), "task is empty"),
        (dict(heads=["progres"]), "did you mean 'progress'"),
        (dict(heads=[]), "at least one"),
        (dict(interval=0), "interval"),
        (dict(paths=[]), "nothing to score"),
        (dict(decode="open"), "decode: 'open' is unknown"),
        (dict(scaffold=True), "change nothing"),
        (dict(out="frames.npy/x"), "cannot be written"),
    ],
)
def test_bad_settings(model, frames, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    np.save("frames.npy", frames)
    arguments = dict(paths=["frames.npy"], task=TASK, out="out") | change
    with pytest.raises(UserError, match=message):
        score_inputs(model, **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--task=x", "--out=o", "missing.mp4"], "no such file"),
        (["--task=x", "--out=o"], "nothing to score"),
        (["--out=o", "a.mp4"], "task"),
        (["--task=x", "--out=o", "--model=lrm-nan", "a.mp4"], "no such model"),
        (["--task=x", "--out=o", "--adapter=progress", "a.mp4"], "HEAD=FOLDER"),
        (["--task=x", "--out=o", "--decode=open", "a.mp4"], "closed|generate"),
        (["--task=x", "--out=o", "--judge=robometer", "--interval=2", "a.mp4"], "with --judge"),
    ],
)
def test_the_door_exits_with_2_and_one_line(tmp_path, words, message):
    done = subprocess.run(
        [sys.executable, "-m", "lrm_jax.score", *words],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
