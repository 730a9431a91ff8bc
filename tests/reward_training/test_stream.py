"""Data sets on disk to stored frames, labels and examples."""

import json

import h5py
import numpy as np
import pytest
from PIL import Image

from lrm_jax.episodes import Episode
from lrm_jax.episodes.lerobot_writer import write_lerobot
from lrm_jax.episodes.lrm_sim import write_lrm_sim
from lrm_jax.labels import ClipSettings, ExampleSettings, make_clips
from lrm_jax.reward_training import stream
from lrm_jax.reward_training.lessons import examples_of
from lrm_jax.rewards.heads import default_heads
from lrm_jax.run import config
from lrm_jax.run.errors import UserError

SIZE = (16, 24)


def frames(episode, count):
    made = np.zeros((count, 32, 48, 3), np.uint8)
    made[..., 0], made[..., 1] = 40 * episode, 6 * np.arange(count)[:, None, None]
    made[:, :16, :, 2] = 200
    return made


def episode(number, count, success=True):
    return Episode(
        frames(number, count), f"put thing {number} away", 10.0, success=success, camera="front",
        progress=np.linspace(0, 1.0 if success else 0.4, count, dtype=np.float32),
        meta={"progress_by_task": {"another": np.zeros(count, np.float32)}},
    )  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """An RLDS, a LeRobot and an HDF5 data set, and a mixture of them and of one that is not there.

    One demonstration of the HDF5 file is broken.
    """
    folder = tmp_path_factory.mktemp("data")
    write_lrm_sim(folder / "rlds", {"train": [episode(0, 20), episode(1, 31, False)]})
    write_lerobot(folder / "lerobot", [episode(2, 12), episode(3, 15)])
    with h5py.File(folder / "demos.hdf5", "w") as file:
        file["data/demo_0/obs/agentview_rgb"] = frames(4, 25)
        file["data/demo_1/obs/agentview_rgb"] = frames(5, 1)
        file["data/demo_2/obs/agentview_rgb"] = frames(6, 25)
    sources = [
        {"name": "sim", "path": "rlds", "weight": 2.0},
        {"name": "lr", "path": "lerobot"},
        {"name": "demos", "path": "demos.hdf5", "task": "lift", "fps": 20.0, "trim_end": 0.2},
        {"name": "absent", "path": "nowhere"},
    ]
    (folder / "mix.py").write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict({{'sources': {sources!r}}})\n"
    )
    return folder


def settings(root, **changes):
    given = {"mixture": str(root / "mix.py"), "root": str(root), "absent": "skip", "frames": 11}
    return config.build(stream.DataSettings, given | changes, key="config.data")


def test_every_episode_once_as_labels_take_them(root, tmp_path):
    counts = stream.store_episodes(tmp_path, settings(root), SIZE)
    assert {k: (v["episodes"], v["broken"], v["drawn"]) for k, v in counts.items()} == {
        "sim": (2, 0, 2), "lr": (2, 0, 2), "demos": (3, 1, 2),
    }  # fmt: skip
    report = json.loads((tmp_path / "quarantine" / "demos.json").read_text())
    assert report["quarantined"][0]["episode"] == "demos.hdf5/demo_1"
    store, episodes, kept = stream.load_episodes(tmp_path)
    assert kept == 0
    assert store.frames.shape == (6 * 11, *SIZE, 3) and len(episodes) == 6
    assert isinstance(store.frames, np.memmap)
    by_task = {e.task: e for e in episodes[:2]}
    failed = by_task["put thing 1 away"]
    assert failed.success is False and failed.progress[-1] == np.float32(0.4)
    places = np.arange(0, 31, 3)
    expected = [
        np.asarray(Image.fromarray(f).resize(SIZE[::-1], Image.Resampling.BICUBIC))
        for f in frames(1, 31)[places]
    ]
    np.testing.assert_array_equal(failed.frames, expected)
    # A fifth of the demonstrations' frames is cut off: the last that is kept is number 19.
    assert episodes[4].frames[-1, 0, 0, 1] == 6 * 19 and episodes[4].task == "lift"
    clips = make_clips(episodes, store, ClipSettings(rewinds=0.0), 0)
    sentences = tuple(sorted({c.task for c in clips}))
    for head in default_heads():
        found = examples_of(head, clips, sentences, ExampleSettings(), 0)
        assert len(found) > 20 and found.images.max() < len(store.frames)


def test_draws_of_a_mixture_are_by_weight_and_the_same_again(root, tmp_path):
    counts = stream.store_episodes(tmp_path, settings(root, episodes=16), SIZE)
    sim, lr, demos = (counts[n]["drawn"] for n in ("sim", "lr", "demos"))
    assert sim + lr + demos == 16 and abs(sim - 2 * lr) <= 2  # a third of demos is broken
    again = tmp_path / "again"
    again.mkdir()
    stream.store_episodes(again, settings(root, episodes=16, reading={"threads": 1}), SIZE)
    for name in ("frames.uint8", "episodes.json"):
        assert (tmp_path / name).read_bytes() == (again / name).read_bytes()


@pytest.mark.parametrize("draws", [0, 16])
def test_validation_episodes_are_never_trained_on(root, tmp_path, draws):
    """Of every data set the last ones, once each behind the others; draws never meet them."""
    sources, _ = stream.open_sources(settings(root))
    learnt, kept = stream.apart(sources, 3)
    assert [(len(a), len(b)) for a, b in zip(learnt, kept, strict=True)] == [(1, 1), (1, 1), (2, 1)]
    stream.store_episodes(tmp_path, settings(root, episodes=draws), SIZE, validation=3)
    rows = json.loads((tmp_path / "episodes.json").read_text())
    first, last = rows["episodes"][: -rows["validation"]], rows["episodes"][-rows["validation"] :]
    assert rows["validation"] == 3 and len(first) == (draws or 3)
    names = [{(r["source"], r["id"]) for r in part} for part in (first, last)]
    assert not names[0] & names[1] and len(names[1]) == 3
    assert {name for name, _ in names[0]} == {name for name, _ in names[1]}
    store, episodes, count = stream.load_episodes(tmp_path)
    assert count == 3 and len(store.starts) == len(episodes) + 1
    # The last demonstration of the file that is not broken; its pixels say which it is.
    assert episodes[-1].source == "demos" and (episodes[-1].frames[..., 0] == 240).all()


def test_validation_takes_a_share_of_each_data_set():
    sources = [range(1000), range(1), range(10), range(489)]
    learnt, kept = stream.apart(sources, 150)
    assert [len(k) for k in kept] == [100, 0, 1, 49]
    for source, a, b in zip(sources, learnt, kept, strict=True):
        assert [*a, *b] == [*source] and len(a) >= 1
    assert [len(k) for k in stream.apart(sources, 0)[1]] == [0, 0, 0, 0]
    with pytest.raises(UserError, match="too many of the 1500 episodes"):
        stream.apart(sources, 1498)


def test_processes_draw_different_episodes(root):
    given = settings(root)
    sources, weights = stream.open_sources(given)
    drawn = []
    for process in range(2):
        own = iter(stream.mixture(given, sources[:2], weights[:2], SIZE, process, 2))
        drawn.append([(d.source, d.number) for d, _ in zip(own, range(3), strict=False)])
    assert drawn[0] != drawn[1]
    assert sorted({*drawn[0], *drawn[1]}) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_what_is_wrong_with_the_settings_is_said(root, tmp_path):
    for changes, says in (
        ({"absent": "error"}, "nowhere"),
        ({"limit": {"count": 0, "share": 0.0}}, "limit of 0"),
        ({"mixture": str(root / "no.py")}, "no.py"),
        ({"source": {"name": "a", "path": "b"}}, "not both"),
        ({"frames": 1}, "at least 2"),
    ):
        with pytest.raises(UserError, match=says):
            stream.store_episodes(tmp_path, settings(root, **changes), SIZE)
    assert not stream.DataSettings().used


def test_the_papers_mixture_is_24_sources():
    from pathlib import Path

    path = Path(__file__).resolve().parents[2] / "configs" / "data" / "lrm24.py"
    sources = stream.load_mixture(path)
    assert len(sources) == 24
    assert {"hoi4d", "egodex", "libero", "robocasa"} <= {s.name for s in sources}
    assert all(s.camera or s.format == "videos" for s in sources) and all(s.note for s in sources)
    with pytest.raises(UserError, match="on the disk"):
        stream.open_sources(
            stream.DataSettings(mixture=str(path), root="/no/such/folder", absent="skip")
        )
