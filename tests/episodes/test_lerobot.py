"""LeRobot data sets written by the lerobot package (`make_lerobot.py`), whole and broken."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lrm_jax.episodes import SourceSettings, open_source
from lrm_jax.run.errors import UserError

from . import make_lerobot
from .make_lerobot import CAMERA, EPISODES

DATA = Path(__file__).parent / "data"
VERSIONS = ("lerobot_v21", "lerobot_v3")


def settings(folder, **changes):
    return SourceSettings(**({"name": "lr", "path": str(folder)} | changes))


@pytest.fixture(params=VERSIONS)
def copy(request, tmp_path):
    folder = tmp_path / request.param
    shutil.copytree(DATA / request.param, folder)
    return folder


@pytest.mark.parametrize("version", VERSIONS)
def test_episodes_are_what_lerobot_was_given(version):
    source = open_source(settings(DATA / version))
    assert len(source) == len(EPISODES)
    for i, (count, task, success) in enumerate(EPISODES):
        episode = source[i]
        assert (episode.task, episode.success, episode.fps) == (task, success, 10.0)
        assert episode.camera == CAMERA and source.id(i) == f"episode_{i:06d}"
        given = np.stack([make_lerobot.frame(i, p) for p in range(count)])
        seen = np.asarray(episode.frames)
        # Colours pass through chroma subsampling and the codec: neighbours in time differ by 18.
        assert np.abs(seen[:, 60, :, :2].astype(int) - given[:, 60, :, :2]).mean() < 6
        np.testing.assert_array_equal(episode.frames[[count - 1, 2]], seen[[count - 1, 2]])
        np.testing.assert_array_equal(
            episode.proprio, [[i, p] for p in range(count)]
        )
        np.testing.assert_array_equal(episode.actions, [[p, i] for p in range(count - 1)])


def test_frames_are_bit_for_bit_what_lerobots_own_loader_gives():
    """Episodes 1 and 2 begin in the middle of the file."""
    expected = np.load(DATA / "lerobot_v3.npz")
    source = open_source(settings(DATA / "lerobot_v3"))
    for i in range(len(source)):
        own = expected["episode"] == i
        np.testing.assert_array_equal(np.asarray(source[i].frames), expected["frames"][own])
        assert {source[i].task} == set(expected["task"][own].tolist())


def test_pictures_in_the_tables():
    """Without video; PNG loses nothing."""
    source = open_source(settings(DATA / "lerobot_images"))
    for i, (count, task, success) in enumerate(EPISODES):
        assert (source[i].task, source[i].success) == (task, success)
        given = np.stack([make_lerobot.frame(i, p) for p in range(count)])
        np.testing.assert_array_equal(np.asarray(source[i].frames), given)


def test_keys_splits_and_rates_that_are_not_there(copy):
    with pytest.raises(UserError, match=CAMERA):
        open_source(settings(copy, camera="observation.images.wrist"))
    with pytest.raises(UserError, match="30"):
        open_source(settings(copy, fps=30.0))
    with pytest.raises(UserError, match="train"):
        open_source(settings(copy, split="test"))
    assert len(open_source(settings(copy, split="train[1:]", camera="front"))) == 2
    info = json.loads((copy / "meta/info.json").read_text())
    (copy / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v1.6"}))
    with pytest.raises(UserError, match=r"1\.6"):
        open_source(settings(copy))


def kinds(folder):
    source = open_source(settings(folder))
    for i in range(len(source)):
        try:
            source.load(i)
        except UserError:
            continue
    return source.summary()["by_kind"]


def rewrite_table(folder, change):
    """Passes each data table through `change`."""
    for path in sorted((folder / "data").rglob("*.parquet")):
        pq.write_table(change(pq.read_table(path)), path)


def test_a_missing_column(copy):
    rewrite_table(copy, lambda t: t.drop_columns(["timestamp"]))
    assert kinds(copy) == {"column": 3}


def test_a_video_that_is_cut_off(copy):
    path = sorted((copy / "videos").rglob("*.mp4"))[-1]
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.85)])
    # All episodes of v3 lie in this one; the front of it can still be read.
    found = kinds(copy)
    assert set(found) == {"video"} and 1 <= found["video"] <= 2
    path.unlink()
    assert kinds(copy) == {"video": 1 if "v21" in copy.name else 3}


def test_times_that_are_not_those_of_the_stated_rate(copy):
    def twice(table):
        at = table.schema.get_field_index("timestamp")
        return table.set_column(at, "timestamp", pa.array(table["timestamp"].to_numpy() * 2))

    rewrite_table(copy, twice)
    assert kinds(copy) == {"fps": 3}


def test_a_stated_rate_that_is_not_the_videos(copy):
    info = json.loads((copy / "meta/info.json").read_text())
    (copy / "meta/info.json").write_text(json.dumps(info | {"fps": 20}))

    def half(table):
        at = table.schema.get_field_index("timestamp")
        return table.set_column(at, "timestamp", pa.array(table["timestamp"].to_numpy() / 2))

    rewrite_table(copy, half)
    assert kinds(copy) == {"fps": 3}


def test_rows_that_are_missing(copy):
    rewrite_table(copy, lambda t: t.filter(pa.compute.less(t["frame_index"], 8)))
    assert kinds(copy) == {"length": 2}


def test_a_damaged_table(copy):
    path = sorted((copy / "data").rglob("*.parquet"))[0]
    path.write_bytes(path.read_bytes()[:300])
    assert kinds(copy) == {"record": 1 if "v21" in copy.name else 3}


def test_a_sentence_that_is_not_utf8_and_an_empty_episode(copy):
    if "v21" in copy.name:
        path = copy / "meta/episodes.jsonl"
        lines = path.read_bytes().splitlines()
        lines[1] = lines[1].replace("öffne".encode(), b"\xf6ffne").replace(b"\\u00f6", b"\xf6")
        lines[2] = lines[2].replace(b'"length": 9', b'"length": 0')
        path.write_bytes(b"\n".join(lines))
    else:
        path = next((copy / "meta/episodes").rglob("*.parquet"))
        table = pq.read_table(path)
        names = [["put"], [b"\xf6ffne"], ["put"]]
        raw = pa.array([[t.encode() if isinstance(t, str) else t for t in n] for n in names])
        strings = pa.ListArray.from_arrays(
            raw.offsets, pa.StringArray.from_buffers(3, *raw.values.buffers()[1:])
        )
        table = table.set_column(table.schema.get_field_index("tasks"), "tasks", strings)
        lengths = pa.array([12, 7, 0])
        table = table.set_column(table.schema.get_field_index("length"), "length", lengths)
        pq.write_table(table, path)
    assert kinds(copy) == {"sentence": 1, "empty": 1}
