"""Broken episodes are counted and reported, and too many of them stop the run."""

import json
import threading

import numpy as np
import pytest

from lrm_jax.episodes import BrokenEpisode, Episode, Limit, Quarantine
from lrm_jax.episodes.frames import ReadFrames
from lrm_jax.run.errors import UserError


class Toy:
    """Episodes of which those in `bad` are broken, those in `late` only when decoded."""

    name = "toy"

    def __init__(self, count, bad=(), late=()):
        self.count, self.bad, self.late = count, set(bad), set(late)

    def __len__(self):
        return self.count

    def id(self, i):
        return f"e{i}"

    def __getitem__(self, i):
        if i in self.bad:
            raise BrokenEpisode("column", f"no picture in {i}")

        def read(places):
            if i in self.late:
                raise BrokenEpisode("video", "cut off")
            return np.full((len(places), 4, 4, 3), i, np.uint8)

        return Episode(ReadFrames(5, 4, 4, read), "t", 10.0)


def test_each_broken_episode_is_in_the_report_once(tmp_path):
    path = tmp_path / "deep" / "report.json"
    source = Quarantine(Toy(20, bad=[3, 7], late=[5]), Limit(5), path)
    assert len(list(source.good())) == 18 and len(list(source.good())) == 18
    with pytest.raises(BrokenEpisode, match="cut off"):
        source.load(5)
    assert source.load(6).frames.dtype == np.uint8
    report = json.loads(path.read_text())
    assert report["broken"] == 3 and report["by_kind"] == {"column": 2, "video": 1}
    assert report["episodes"] == 20 and report["limit"] == 5
    assert report["quarantined"][1] == {
        "source": "toy", "episode": "e5", "kind": "video", "reason": "cut off",
    }  # fmt: skip


def test_one_more_than_the_limit_stops(tmp_path):
    path = tmp_path / "report.json"
    source = Quarantine(Toy(20, bad=range(10, 14)), Limit(3, 0.0), path)
    with pytest.raises(UserError, match="limit of 3") as caught:
        list(source.good())
    assert not isinstance(caught.value, BrokenEpisode) and str(path) in str(caught.value)
    assert json.loads(path.read_text())["broken"] == 4
    assert Limit(3, 0.1).of(100) == 10 and Limit(3, 0.1).of(5) == 3


def test_what_every_episode_must_have():
    frames = np.zeros((5, 4, 4, 3), np.uint8)
    for kind, episode in (
        ("dtype", Episode(frames.astype(np.float32), "t", 10.0)),
        ("size", Episode(frames[..., :1], "t", 10.0)),
        ("empty", Episode(frames[:1], "t", 10.0)),
        ("fps", Episode(frames, "t", float("nan"))),
        ("sentence", Episode(frames, " ", 10.0)),
        ("length", Episode(frames, "t", 10.0, progress=np.zeros(4, np.float32))),
    ):
        toy = Toy(1)
        toy.__class__ = type("One", (Toy,), {"__getitem__": lambda self, i, e=episode: e})
        with pytest.raises(BrokenEpisode) as caught:
            Quarantine(toy)[0]
        assert caught.value.kind == kind


def test_threads_count_right():
    source = Quarantine(Toy(200, bad=range(0, 200, 2)), Limit(200))

    def read(begin):
        for i in range(begin, 200, 3):
            try:
                source[i]
            except BrokenEpisode:
                pass

    threads = [threading.Thread(target=read, args=(b,)) for b in (0, 1, 2, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert source.broken == 100 and source.summary()["read"] == 200
