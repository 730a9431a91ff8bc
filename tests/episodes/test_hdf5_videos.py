"""HDF5 files written by h5py in the ways of LIBERO, robomimic and RoboCasa, and indexed videos."""

import json

import h5py
import numpy as np
import pytest
from PIL import Image

from lrm_jax.episodes import Limit, SourceSettings, open_source
from lrm_jax.run.errors import UserError

from .files import pictures, write_hdf5, write_video


def settings(path, **changes):
    return SourceSettings(**({"name": "s", "path": str(path)} | changes))


def test_libero(tmp_path):
    write_hdf5(tmp_path / "open_the_drawer_demo.hdf5", (6, 9))
    source = open_source(settings(tmp_path, success="dones"))
    assert [source.id(i) for i in range(2)] == [
        "open_the_drawer_demo.hdf5/demo_0", "open_the_drawer_demo.hdf5/demo_1",
    ]  # fmt: skip
    for i, count in enumerate((6, 9)):
        episode = source[i]
        assert (episode.task, episode.fps, episode.success) == ("open the drawer", 20.0, True)
        assert episode.camera == "agentview_rgb"
        np.testing.assert_array_equal(np.asarray(episode.frames), pictures(i, count))
        np.testing.assert_array_equal(episode.frames[[4, 1, 4]], pictures(i, count)[[4, 1, 4]])
        np.testing.assert_array_equal(episode.actions, np.full((count - 1, 7), i, np.float32))
    file = tmp_path / "open_the_drawer_demo.hdf5"
    with h5py.File(file, "a") as h5:  # a sparse reward says when
        h5["data/demo_1/rewards"] = (np.arange(9) >= 6).astype(np.float32)
        h5["data/demo_0/rewards"] = np.zeros(6, np.float32)
    failed, done = open_source(settings(tmp_path, success="rewards")).good()
    assert failed.success is False and done.success is True and done.meta["success_frame"] == 6
    upside_down = open_source(settings(tmp_path, flip=True))[1]
    np.testing.assert_array_equal(np.asarray(upside_down.frames), pictures(1, 9)[:, ::-1])


def test_robocasa_and_robomimic(tmp_path):
    file = tmp_path / "demo.hdf5"
    write_hdf5(file, (6, 5, 7), "robocasa", camera="robot0_agentview_left_image")
    assert [e.task for e in open_source(settings(file)).good()] == [
        "pick thing 0", "pick thing 1", "pick thing 2",
    ]  # fmt: skip
    write_hdf5(file, [4] * 12, "robomimic", camera="agentview_image")
    with h5py.File(file, "a") as h5:
        h5["mask/valid"] = np.array([b"demo_2", b"demo_10"])
    source = open_source(settings(file, task="lift the cube", split="valid"))
    assert [source.id(i) for i in range(2)] == ["demo.hdf5/demo_2", "demo.hdf5/demo_10"]
    assert source[1].task == "lift the cube" and source[1].camera == "agentview_image"
    everything = open_source(settings(file, task="lift the cube"))
    assert everything.id(10) == "demo.hdf5/demo_10"  # in natural order
    with pytest.raises(UserError, match="valid"):
        open_source(settings(file, split="test"))


def test_what_is_not_clear_is_an_error_that_lists_what_is_there(tmp_path):
    write_hdf5(tmp_path / "a.hdf5", camera="sideview_rgb")
    with pytest.raises(UserError, match="eye_in_hand_rgb, sideview_rgb"):
        open_source(settings(tmp_path))
    assert open_source(settings(tmp_path, camera="sideview_rgb"))[0].camera == "sideview_rgb"
    with pytest.raises(UserError, match="sideview_rgb"):
        open_source(settings(tmp_path, camera="sideview"))
    with pytest.raises(UserError, match="30"):
        open_source(settings(tmp_path, camera="sideview_rgb", fps=30.0))[0]


def test_broken_demonstrations_are_named(tmp_path):
    file = tmp_path / "a.hdf5"
    write_hdf5(file, (6, 6, 6, 6, 6, 6), "robocasa")
    with h5py.File(file, "a") as h5:
        data = h5["data"]
        del data["demo_0/obs/agentview_rgb"]
        for demo, array in (
            ("demo_1", np.zeros((0, 8, 8, 3), np.uint8)),
            ("demo_2", np.zeros((6, 8, 8, 3), np.float32)),
        ):
            del data[f"{demo}/obs/agentview_rgb"]
            data[f"{demo}/obs/agentview_rgb"] = array
        data["demo_3"].attrs["ep_meta"] = np.bytes_(b'{"lang": "\xff\xfe"}')
        del data["demo_4/actions"]
        data["demo_4/actions"] = np.zeros((9, 7))
    (tmp_path / "b.hdf5").write_bytes(file.read_bytes()[:2000])
    source = open_source(settings(tmp_path))
    assert [e.task for e in source.good()] == ["pick thing 5"]
    found = {b["episode"]: b["kind"] for b in source.summary()["quarantined"]}
    assert found == {
        "a.hdf5/demo_0": "column", "a.hdf5/demo_1": "empty", "a.hdf5/demo_2": "dtype",
        "a.hdf5/demo_3": "sentence", "a.hdf5/demo_4": "length", "b.hdf5/?": "record",
    }  # fmt: skip


@pytest.fixture
def videos(tmp_path):
    """A folder of videos, and a function that writes its index."""
    write_video(tmp_path / "a.mp4", pictures(0, 20))
    write_video(tmp_path / "b.mp4", pictures(1, 12))
    (tmp_path / "pics").mkdir()
    for i, frame in enumerate(pictures(2, 11)):
        Image.fromarray(frame).save(tmp_path / "pics" / f"{i}.png")

    def index(*rows):
        lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows]
        (tmp_path / "index.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        return tmp_path

    return index


def test_indexed_videos(videos):
    folder = videos(
        {"video": "a.mp4", "task": "one", "success": False, "fps": 10},
        {"video": "a.mp4", "instruction": "two", "begin": 0.5, "end": 1.2, "success_at": 0.4},
        {"video": "pics", "task": "three", "fps": 5},
        {"video": "b.mp4", "task": "four", "split": "val"},
    )
    source = open_source(settings(folder))
    one, two, three = (source[i] for i in range(3))
    assert [(e.task, e.fps, e.success) for e in (one, two, three)] == [
        ("one", 10.0, False), ("two", 10.0, True), ("three", 5.0, True),
    ]  # fmt: skip
    assert two.meta["success_frame"] == 4
    assert one.frames.shape == (20, 32, 32, 3) and two.frames.shape == (7, 32, 32, 3)
    np.testing.assert_array_equal(np.asarray(two.frames), one.frames[5:12])
    np.testing.assert_array_equal(np.asarray(three.frames), pictures(2, 11))
    val = open_source(settings(folder / "index.jsonl", split="val", demonstrations=False))
    assert len(val) == 1 and val[0].success is None and val.id(0) == "index.jsonl:4"


def test_broken_videos_are_named(videos, tmp_path):
    folder = videos(
        {"video": "absent.mp4", "task": "t"},
        {"video": "a.mp4", "task": "t", "fps": 25},
        {"video": "a.mp4"},
        b'{"video": "a.mp4", "task": "\xff"}',
        {"task": "t"},
        {"video": "a.mp4", "task": "t", "begin": 1.0, "end": 9.0},
        {"video": "a.mp4", "task": "t", "begin": 1.0, "end": 1.0},
        {"video": "pics", "task": "t"},
        {"video": "a.mp4", "task": "  "},
        {"video": "b.mp4", "task": "fine"},
        b"{no json",
        b"[1]",
    )
    source = open_source(settings(folder), Limit(20))
    assert [e.task for e in source.good()] == ["fine"]
    assert [b["kind"] for b in source.summary()["quarantined"]] == [
        "video", "fps", "sentence", "sentence", "column", "video", "empty", "fps", "sentence",
        "record", "record",
    ]  # fmt: skip
    with pytest.raises(UserError, match="empty"):
        open_source(settings(videos()))
    with pytest.raises(UserError, match="known format"):
        open_source(settings(tmp_path / "pics"))
