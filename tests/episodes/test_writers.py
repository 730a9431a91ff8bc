"""What is written here is read back by the formats' own libraries and by our readers."""

import json

import numpy as np
import pytest

from lrm_jax.episodes import Episode, SourceSettings, open_source
from lrm_jax.episodes.lerobot_writer import write_lerobot
from lrm_jax.episodes.lrm_sim import write_lrm_sim
from lrm_jax.run.errors import UserError

from .files import pictures


def demonstrations(stride=2):
    made = []
    for e, (count, success) in enumerate(((7, True), (5, False), (9, True))):
        rng = np.random.default_rng(e)
        steps = (count - 1) * stride
        made.append(
            Episode(
                frames=pictures(e, count),
                task=f"put cube {e % 2} on the plate",
                fps=10.0,
                success=success,
                proprio=rng.normal(size=(steps + 1, 4)).astype(np.float32),
                actions=rng.normal(size=(steps, 7)).astype(np.float32),
                progress=np.linspace(0, 1, count).astype(np.float32),
                source="lrm_sim",
                camera="front",
                meta={
                    "stride": stride,
                    "mode": "success",
                    "progress_by_task": {"another": np.zeros(count, np.float32)},
                },
            )
        )
    return made


def same(ours, given, exact=True):
    for what in ("task", "fps", "success"):
        assert getattr(ours, what) == getattr(given, what)
    if exact:
        np.testing.assert_array_equal(np.asarray(ours.frames), given.frames)
        for what in ("proprio", "actions", "progress"):
            np.testing.assert_array_equal(getattr(ours, what), getattr(given, what))


@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
def test_lrm_sim(kind, tmp_path):
    import tensorflow_datasets as tfds

    given = demonstrations()
    folder = write_lrm_sim(tmp_path, {"train": given, "val": given[:1]}, kind)
    source = open_source(SourceSettings(name="sim", path=str(tmp_path)))
    assert len(source) == 3
    # The files hold them in tensorflow-datasets' own order.
    read = {len(e.frames): e for e in source.good()}
    for episode in given:
        ours = read[len(episode.frames)]
        same(ours, episode)
        assert ours.meta["mode"] == "success" and ours.meta["stride"] == 2
        np.testing.assert_array_equal(ours.meta["progress_by_task"]["another"], 0)
    builder = tfds.builder_from_directory(folder)
    assert builder.info.splits["val"].num_examples == 1
    if kind == "tfrecord":
        theirs = next(iter(tfds.as_numpy(builder.as_dataset("val"))))
    else:
        theirs = builder.as_data_source("val")[0]
    steps = list(theirs["steps"])
    np.testing.assert_array_equal(
        np.stack([s["observation"]["image"] for s in steps]), given[0].frames
    )
    assert [bool(s["is_last"]) for s in steps] == [False] * 6 + [True]
    assert [float(s["reward"]) for s in steps] == [0.0] * 6 + [1.0]


def test_lerobot(tmp_path):
    given = demonstrations()
    write_lerobot(tmp_path / "d", given)
    source = open_source(SourceSettings(name="lr", path=str(tmp_path / "d")))
    assert len(source) == 3
    for i, episode in enumerate(given):
        ours = source.load(i)
        same(ours, episode, exact=False)
        assert ours.camera == "observation.images.front"
        assert np.abs(ours.frames.astype(int) - episode.frames).mean() < 4
        np.testing.assert_array_equal(ours.proprio, episode.proprio[::2])
        np.testing.assert_array_equal(ours.actions.reshape(-1, 7), episode.actions)
    statistics = json.loads((tmp_path / "d/meta/stats.json").read_text())
    states = np.concatenate([e.proprio[::2] for e in given])
    np.testing.assert_allclose(statistics["observation.state"]["mean"], states.mean(0), atol=1e-6)
    assert np.shape(statistics["observation.images.front"]["std"]) == (3, 1, 1)


def test_lerobots_own_loader_reads_what_we_write(tmp_path):
    """Where lerobot is installed, which is not in the tests' own environment."""
    module = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    given = demonstrations()
    write_lerobot(tmp_path / "d", given)
    read = module.LeRobotDataset("a/b", root=tmp_path / "d", video_backend="pyav")
    assert read.num_episodes == 3 and len(read) == sum(len(e.frames) for e in given)
    source = open_source(SourceSettings(name="lr", path=str(tmp_path / "d")))
    at = 0
    for i, episode in enumerate(given):
        ours = source.load(i).frames
        for t in range(len(ours)):
            item = read[at]
            picture = item["observation.images.front"].numpy().transpose(1, 2, 0)
            np.testing.assert_array_equal(np.round(picture * 255).astype(np.uint8), ours[t])
            assert item["task"] == episode.task and int(item["frame_index"]) == t
            np.testing.assert_array_equal(item["observation.state"], episode.proprio[2 * t])
            at += 1
    assert bool(item["next.success"])


def test_episodes_that_cannot_be_written(tmp_path):
    given = demonstrations()
    other = demonstrations(stride=1)
    with pytest.raises(UserError, match="no episodes"):
        write_lerobot(tmp_path / "a", [])
    with pytest.raises(UserError, match="no episodes"):
        write_lrm_sim(tmp_path / "a", {"train": []})
    with pytest.raises(UserError, match="differ"):
        write_lerobot(tmp_path / "b", [given[0], other[0]])
    with pytest.raises(UserError, match="differ"):
        write_lrm_sim(tmp_path / "c", {"train": [given[0], other[0]]})
    with pytest.raises(UserError, match="exists"):
        write_lerobot(tmp_path, given)
    with pytest.raises(UserError, match="zip"):
        write_lrm_sim(tmp_path / "d", {"train": given}, "zip")
