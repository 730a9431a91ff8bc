"""Labelled examples from a stream of episodes: right, restartable, and never of held-out ones."""

import itertools
import json

import numpy as np
import pytest

from lrm_jax.episodes import Episode, Quarantine
from lrm_jax.episodes.mixture import Mixture, View
from lrm_jax.labels import ClipSettings, ExampleSettings, HeldOut
from lrm_jax.reward_training import example_stream
from lrm_jax.reward_training.example_stream import ExampleStream
from lrm_jax.rewards.heads import by_name, default_heads
from lrm_jax.run.errors import UserError

HEADS = by_name(default_heads())


class Toy:
    """Episodes whose pixels say which they are and how far: progress is (pixel - 1) / 20."""

    name = "toy"

    def __init__(self, count=9, success=True):
        self.count, self.success = count, success

    def __len__(self):
        return self.count

    def id(self, i):
        return str(i)

    def __getitem__(self, i):
        frames = np.zeros((21, 4, 4, 3), np.uint8)
        frames[..., 0] = i
        frames[..., 1] = np.arange(21)[:, None, None] + 1
        return Episode(frames, f"task {i}", 10.0, success=self.success)


def stream(head, source=None, held_out=(), **options):
    mixture = Mixture([Quarantine(source or Toy())], view=View(0, (4, 4)), **options)
    return ExampleStream(
        mixture, HEADS[head], ClipSettings(rewinds=0.0), ExampleSettings(), rows=12, per_episode=4,
        held_out=HeldOut(held_out),
    )  # fmt: skip


def equal(one, other):
    return one.sentences == other.sentences and all(
        np.array_equal(getattr(one, k), getattr(other, k)) for k in ("frames", "label")
    )


def test_examples_are_labelled_right():
    for batch in itertools.islice(stream("progress"), 5):
        assert batch.frames.shape[:1] == (12,) and len({*batch.sentences}) == 3
        shown = batch.frames[:, -1, 0, 0]
        np.testing.assert_allclose(batch.label, (shown[:, 1] - 1) / 20, atol=1e-6)
        assert [f"task {i}" for i in shown[:, 0]] == batch.sentences
    place = HEADS["contrastive"].images.index
    for batch in itertools.islice(stream("contrastive"), 5):
        before, now = (
            batch.frames[:, place(n), 0, 0, 1].astype(int) for n in ("previous", "current")
        )
        np.testing.assert_array_equal(np.sign(now - before), batch.label)


@pytest.mark.parametrize("head", ["progress", "contrastive"])
def test_it_goes_on_where_it_was(head):
    first = stream(head, seed=5)
    before = list(itertools.islice(first, 3))
    state = json.loads(json.dumps(first.get_state()))
    rest = list(itertools.islice(first, 4))
    again = stream(head, seed=5)
    again.set_state(state)
    assert all(map(equal, itertools.islice(again, 4), rest))
    assert all(map(equal, itertools.islice(stream(head, seed=5), 7), before + rest))
    assert not equal(next(stream(head, seed=6)), before[0])
    assert not equal(next(stream(head, seed=5, process=1, processes=2)), before[0])


def test_held_out_sentences_never_come():
    held = [f"task {i}" for i in range(0, 9, 2)]
    batches = itertools.islice(stream("completion", held_out=held), 20)
    seen = {s for b in batches for s in b.sentences}
    assert seen == {f"task {i}" for i in range(1, 9, 2)}


def test_a_stream_that_teaches_nothing_says_so(monkeypatch):
    monkeypatch.setattr(example_stream, "_PATIENCE", 40)
    with pytest.raises(UserError, match="known progress"):
        next(stream("contrastive", Toy(success=False)))
    with pytest.raises(UserError, match="held out"):
        next(stream("progress", held_out=[f"task {i}" for i in range(9)]))
    with pytest.raises(UserError, match="divide"):
        mixture = Mixture([Quarantine(Toy())])
        ExampleStream(mixture, HEADS["progress"], ClipSettings(), ExampleSettings(), 10, 4)
