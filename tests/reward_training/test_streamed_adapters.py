"""Adapters that learn from episodes as they are drawn: the right batches, the same through kills,
and never of the episodes that validate."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from lrm_jax.episodes import Episode, Quarantine
from lrm_jax.episodes.lrm_sim import write_lrm_sim
from lrm_jax.episodes.mixture import Mixture, View
from lrm_jax.labels import ClipSettings, ExampleSettings, FrameStore, make_clips
from lrm_jax.reward_training import AdapterTraining, Optimiser, lessons, stream
from lrm_jax.reward_training import adapters as training
from lrm_jax.reward_training.example_stream import ExampleStream, StreamBatches, Streamed
from lrm_jax.reward_training.lessons import Labelled
from lrm_jax.reward_training.written import Writer
from lrm_jax.rewards.heads import by_name
from lrm_jax.rewards.model import load_reward_model
from lrm_jax.run import config
from lrm_jax.run.errors import UserError

SIZE = (64, 64)
pytestmark = pytest.mark.usefixtures("one_program_a_loss")
SETTINGS = AdapterTraining(
    rank=4, alpha=8.0, targets=("q_proj", "v_proj"), rows=8, steps=5, remat="none",
    checkpoint_every=2, evaluate_every=2, clips=ClipSettings(rewinds=0.0),
    optimiser=Optimiser(learning_rate=3e-2, warmup_steps=1),
)  # fmt: skip


class Toy:
    """Episodes whose pixels say which they are and how far."""

    name = "toy"

    def __len__(self):
        return 9

    def id(self, i):
        return str(i)

    def __getitem__(self, i):
        frames = np.zeros((11, *SIZE, 3), np.uint8)
        frames[..., 0], frames[..., 1] = 20 * i, 20 * np.arange(11)[:, None, None]
        return Episode(frames, f"put thing {i} away", 10.0, success=True)


def streamed(model, names, **options):
    heads, found = by_name(model.heads), {}
    for name in names:
        mixture = Mixture([Quarantine(Toy())], view=View(0, SIZE), seed=3, **options)
        found[name] = ExampleStream(
            mixture, heads[name], SETTINGS.clips, ExampleSettings(), rows=8, per_episode=4
        )
    sentences = tuple(f"put thing {i} away" for i in range(9))
    return Streamed(found, sentences, SIZE, {"seed": 3})


@pytest.fixture(scope="module")
def model(peer):
    return load_reward_model(peer[0])


def train(model, names, folder, given, validation=(None, ()), **changes):
    heads = [by_name(model.heads)[n] for n in names]
    store, kept = validation
    return training.train_adapter(
        dataclasses.replace(SETTINGS, **changes), model, heads, store, (), folder,
        validation_clips=kept, streamed=given,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["written", "expected"])
def test_a_batch_of_a_stream_is_that_of_the_stored_examples(model, kind):
    head, sentences = by_name(model.heads)["progress"], ("a", "b", "c")
    rng = np.random.default_rng(0)
    store = FrameStore(rng.integers(0, 255, (12, *SIZE, 3), np.uint8), np.array([0, 12]))
    found = lessons.Examples(
        rng.integers(0, 12, (8, 2)), np.array([0, 2, 1, 1, 0, 2, 2, 0], np.int32),
        rng.uniform(size=8).astype(np.float32),
    )  # fmt: skip
    writer = Writer(head, model.tokenizer, model.config, SIZE, sentences)
    more = () if kind == "written" else ("crps", 0.0, 0.1)
    make = getattr(lessons, kind)
    stored, free = make(writer, (store, found), *more), make(writer, None, *more)
    assert free.rows is None and free.examples == 0

    def one(order, seed):
        return stored.rows(np.asarray(order), np.random.default_rng(seed))

    shown = Labelled(
        store.frames[found.images[[4, 1]]], [sentences[t] for t in found.task[[4, 1]]],
        found.label[[4, 1]],
    )  # fmt: skip
    jax.tree.map(
        np.testing.assert_array_equal, free.batch(shown, np.random.default_rng([5, 9, 7])),
        one([4, 1], [5, 9, 7]),
    )  # fmt: skip
    batches = StreamBatches(free, iter([shown]), seed=5)
    jax.tree.map(np.testing.assert_array_equal, batches(7), one([4, 1], [5, 9, 7]))


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 4])
def test_a_killed_run_ends_with_the_same_adapters(model, tmp_path, monkeypatch, threads):
    """Two heads with a stream each, killed between checkpoints; also if other numbers of threads
    decode."""
    names = ("completion", "contrastive")
    store = FrameStore.from_episodes([Toy()[8]])
    kept = store, make_clips([Toy()[8]], store, SETTINGS.clips, 0)
    seen, take = [], StreamBatches.__call__

    def watched(self, step):
        seen.append(step)
        batch = take(self, step)
        assert set(np.unique(batch.frames[..., 0])) <= {20 * i for i in range(8)}
        return batch

    monkeypatch.setattr(StreamBatches, "__call__", watched)
    own = dict(numbers=[range(8)])
    whole = train(model, names, tmp_path / "whole", streamed(model, names, **own), kept)
    reading = stream.Reading(threads=threads)

    def dying(self, step):
        if len(seen) == 7:  # both heads' draws count: within the fourth step
            seen.append(step)
            raise KeyboardInterrupt
        return watched(self, step)

    seen.clear()
    monkeypatch.setattr(StreamBatches, "__call__", dying)
    given = streamed(model, names, **own, reading=reading)
    with pytest.raises(KeyboardInterrupt):
        train(model, names, tmp_path / "killed", given, kept)
    given = streamed(model, names, **own, reading=reading)
    again = train(model, names, tmp_path / "killed", given, kept)
    assert seen == [0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3, 4, 4]
    jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_what_a_stream_does_not_allow(model, tmp_path):
    names = ("completion",)
    with pytest.raises(UserError, match="a stream has no epochs"):
        train(model, names, tmp_path, streamed(model, names), steps=0)
    with pytest.raises(UserError, match="dpo asks its reference"):
        train(model, names, tmp_path, streamed(model, names), objective="dpo")
    for settings, says in (
        ({"stream": True}, "name the data sets"),
        ({"stream": True, "source": {"name": "a", "path": "b"}, "episodes": 3}, "no end"),
    ):
        with pytest.raises(UserError, match=says):
            config.build(stream.DataSettings, settings, key="config.data")


@pytest.mark.parametrize("validation", [0, 2])
def test_only_validation_episodes_and_sentences_are_stored(tmp_path, validation):
    episodes = [
        dataclasses.replace(Toy()[i], meta={"progress_by_task": {f"other {i}": np.zeros(11)}})
        for i in range(5)
    ]
    write_lrm_sim(tmp_path / "data", {"train": episodes})
    settings = config.build(
        stream.DataSettings,
        {"stream": True, "source": {"name": "sim", "path": str(tmp_path / "data")}, "frames": 5},
        key="config.data",
    )
    out = tmp_path / "out"
    out.mkdir()
    stream.store_episodes(out, settings, (16, 16), validation)
    store, kept, count = stream.load_episodes(out)
    assert count == len(kept) == validation and store.frames.shape == (5 * validation, 16, 16, 3)
    sentences = {*stream.load_sentences(out)}
    learnt = {f"put thing {i} away" for i in range(5)} - {e.task for e in kept}
    assert len(sentences) == 2 * len(learnt) and learnt < sentences
    sources, weights = stream.open_sources(settings)
    drawn = stream.mixture(
        settings, sources, weights, (16, 16), numbers=stream.apart(sources, validation)[0]
    )
    assert {d.episode.task for d, _ in zip(drawn, range(20), strict=False)} == learnt
    assert json.loads((out / "episodes.json").read_text())["size"] == [16, 16]
