"""Draws by weight that are the same for the same seed, wherever they go on, and whoever decodes."""

import dataclasses
import itertools
import json
import time
from collections import Counter

import numpy as np
import pytest

from lrm_jax.episodes import BrokenEpisode, Episode, Limit, Quarantine
from lrm_jax.episodes.frames import ReadFrames
from lrm_jax.episodes.mixture import Mixture, Reading, View
from lrm_jax.run.errors import UserError


class Toy:
    def __init__(self, name, count, bad=(), wait=0.0):
        self.name, self.count, self.bad, self.wait = name, count, set(bad), wait

    def __len__(self):
        return self.count

    def id(self, i):
        return f"{i}"

    def __getitem__(self, i):
        def read(places):
            time.sleep(self.wait)
            if i in self.bad:
                raise BrokenEpisode("video", "cut off")
            frames = np.zeros((len(places), 4, 4, 3), np.uint8)
            frames[..., 0], frames[..., 1] = i, places[:, None, None]
            return frames

        return Episode(ReadFrames(21, 4, 4, read), f"{self.name} {i}", 10.0, success=True)


def mixture(sizes=(5, 40, 12), weights=(1, 2, 1), bad=(), wait=0.0, limit=100, **options):
    toys = [Toy(f"s{k}", n, bad if k == 1 else (), wait) for k, n in enumerate(sizes)]
    return Mixture([Quarantine(t, Limit(limit)) for t in toys], weights, **options)


def draws(iterator, count):
    return [(d.source, d.number) for d in itertools.islice(iterator, count)]


def test_the_shares_are_the_weights_and_every_pass_has_every_episode():
    found = draws(iter(mixture()), 160)
    assert Counter(s for s, _ in found) == {0: 40, 1: 80, 2: 40}
    for source, size in ((0, 5), (1, 40), (2, 12)):
        own = [n for s, n in found if s == source]
        passes = [own[i : i + size] for i in range(0, len(own) - size + 1, size)]
        assert all(sorted(p) == list(range(size)) for p in passes)
        assert len(passes) < 2 or passes[0] != passes[1]  # shuffled anew


def test_the_order_depends_on_the_seed_alone():
    one = draws(iter(mixture(seed=3)), 50)
    slow = mixture(seed=3, wait=0.002, reading=Reading(threads=8, ahead=3))
    assert draws(iter(slow), 50) == one
    assert draws(iter(mixture(seed=4)), 50) != one


@pytest.mark.parametrize("at", [0, 1, 17, 60])
def test_it_goes_on_where_it_was(at):
    """With broken episodes on the way, through JSON, in another object."""
    bad = (3, 9, 20)
    first = iter(mixture(seed=1, bad=bad))
    before = draws(first, at)
    state = json.loads(json.dumps(first.get_state()))
    rest = draws(first, 40)
    again = iter(mixture(seed=1, bad=bad))
    again.set_state(state)
    assert draws(again, 40) == rest
    assert draws(iter(mixture(seed=1, bad=bad)), at + 40) == before + rest
    assert not any(s == 1 and n in bad for s, n in before + rest)


def test_processes_share_the_draws():
    """Each pass over a source is divided: no draw twice, none lost; all have the same shares."""
    parts = [draws(iter(mixture(process=p, processes=3)), 120) for p in range(3)]
    for part in parts:
        assert Counter(s for s, _ in part) == {0: 30, 1: 60, 2: 30}
    for source, size in ((0, 5), (1, 40), (2, 12)):
        own = [n for part in parts for s, n in part if s == source]
        counts = Counter(own)
        assert set(counts) == set(range(size))
        assert max(counts.values()) - min(counts.values()) <= 2


def test_decoding_goes_on_while_the_step_computes():
    """32 episodes that take 30 ms each, 4 threads, a step of 15 ms: alone 0.96 s, and 0.48 s of
    steps; overlapped not much more than the steps."""
    stream = iter(mixture(wait=0.03, reading=Reading(threads=4, ahead=8)))
    next(stream)
    started = time.monotonic()
    for _ in range(32):
        time.sleep(0.015)
        next(stream)
    assert time.monotonic() - started < 1.1


def test_too_many_broken_ones_stop_the_stream():
    with pytest.raises(UserError, match="limit of 2"):
        draws(iter(mixture(bad=range(40), limit=2)), 50)
    with pytest.raises(UserError, match="weights"):
        mixture(weights=(1, 2))


def test_every_episode_once():
    stream = mixture(bad=(3, 4))
    found = [(d.source, d.number) for d in stream.once()]
    whole = [(k, n) for k, size in enumerate((5, 40, 12)) for n in range(size)]
    assert found == [pair for pair in whole if pair not in ((1, 3), (1, 4))]


def test_what_is_kept_of_an_episode():
    episode = Toy("s", 3)[2]
    seen = View(frames=11, size=(8, 6))(episode)
    assert seen.frames.shape == (11, 8, 6, 3) and seen.fps == pytest.approx(5.0)
    np.testing.assert_array_equal(np.asarray(seen.frames)[:, 0, 0, 1], np.arange(0, 21, 2))
    assert View()(episode) is episode and View(frames=99)(episode).frames.shape[0] == 21
    trimmed = Episode(
        episode.frames, "t", 10.0, success=True,
        proprio=np.arange(41, dtype=np.float32)[:, None],
        meta={"trim_end": 0.2, "stride": 2, "progress_by_task": {"u": np.arange(21)}},
    )  # fmt: skip
    seen = View(frames=5)(trimmed)
    np.testing.assert_array_equal(np.asarray(seen.frames)[:, 0, 0, 1], [0, 4, 8, 12, 16])
    np.testing.assert_array_equal(seen.meta["progress_by_task"]["u"], [0, 4, 8, 12, 16])
    np.testing.assert_array_equal(seen.proprio[:, 0], [0, 8, 16, 24, 32])
    assert seen.meta["stride"] == 1
    # Where the data set says when it was done, the end stays.
    meta = {"trim_end": 0.2, "success_frame": 13}
    known = View(frames=5)(dataclasses.replace(trimmed, proprio=None, meta=meta))
    np.testing.assert_array_equal(np.asarray(known.frames)[:, 0, 0, 1], [0, 5, 10, 15, 20])
    assert known.meta["success_frame"] == 3
