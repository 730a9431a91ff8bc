"""Validation while adapters train: its numbers against the scoring engine and a plain loss, the
best parameters through kills, heads together as alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrm_jax.labels import ExampleSettings, sentences_of
from lrm_jax.reward_training import AdapterTraining, Optimiser, lessons, resumable
from lrm_jax.reward_training import adapters as training
from lrm_jax.reward_training.adapter_validation import fixed_examples
from lrm_jax.reward_training.course import make_course
from lrm_jax.reward_training.validation import closed_numbers
from lrm_jax.reward_training.written import Writer, total_loss
from lrm_jax.rewards.heads import by_name
from lrm_jax.rewards.model import load_reward_model
from lrm_jax.run import config, metrics
from lrm_jax.run.errors import UserError

from . import toy

pytestmark = pytest.mark.usefixtures("one_program_a_loss")
SETTINGS = AdapterTraining(
    rank=4, alpha=8.0, targets=("q_proj", "v_proj"), rows=8, steps=6, remat="none",
    checkpoint_every=4, evaluate_every=2, examples=ExampleSettings(pairs_per_clip=8),
    optimiser=Optimiser(learning_rate=3e-2, warmup_steps=1),
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def every_step_is_logged():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resumable, "LOG_EVERY", 1)
        yield


@pytest.fixture(scope="module")
def model(peer):
    return load_reward_model(peer[0])


@pytest.fixture(scope="module")
def world():
    """Frames, clips to train on, clips to validate on."""
    store, clips = toy.toy_clips(count=10, length=6)
    frames = np.repeat(np.repeat(store.frames, 2, axis=1), 2, axis=2)
    return dataclasses.replace(store, frames=frames), clips[:7], clips[7:]


def train(model, names, world, folder, **changes):
    """One head by its name, or several in one run."""
    store, clips, kept = world
    heads = by_name(model.heads)
    head = heads[names] if isinstance(names, str) else [heads[n] for n in names]
    settings = dataclasses.replace(SETTINGS, **changes)
    folder.mkdir(exist_ok=True)
    return training.train_adapter(
        settings, model, head, store, clips, folder, validation_clips=kept, metrics=folder
    )


def validations(folder, series):
    rows = [r for r in metrics.read(folder, series) if any("validation/" in k for k in r)]
    return {
        r["step"]: {k.removeprefix("validation/"): v for k, v in r.items() if "validation/" in k}
        for r in rows
    }


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def alone(model, world, tmp_path_factory):
    """{head: (its best adapter, its validations)}, one head after the other."""
    found = {}
    for name in ("completion", "contrastive"):
        folder = tmp_path_factory.mktemp(name)
        best = train(model, name, world, folder, best="{head}/loss", final="best")
        found[name] = best, validations(folder, f"adapter_{name}"), folder
    return found


@pytest.mark.parametrize(
    "name",
    [
        "completion",
        pytest.param("progress", marks=pytest.mark.slow),
        pytest.param("contrastive", marks=pytest.mark.slow),
    ],
)
def test_its_numbers_are_those_of_the_scoring_engine(model, world, tmp_path, name):
    """Closed answers as `score` gives them for the same two frames, and the loss of all examples
    at once."""
    store, clips, kept = world
    head, settings = by_name(model.heads)[name], dataclasses.replace(SETTINGS, accumulate=2)
    course = make_course(
        settings, model, head, store, clips, tmp_path, training.make_step, kept
    )
    adapter = jax.tree.map(
        lambda x: x + 0.1 * np.random.default_rng(0).normal(size=x.shape).astype(np.float32),
        course.state.params,
    )
    found = course.validate(adapter, model.params)
    sentences = sentences_of([*clips, *kept])
    every = lessons.examples_of(head, kept, sentences, settings.examples, settings.seed)
    own = fixed_examples(name, every, settings.rows, 4, settings.seed)
    assert len(own) == min(len(every), 64) // 4 * 4 == course.facts["validation"][name] > 8
    assert found == course.validate(adapter, model.params)  # the same examples every time

    scored = dataclasses.replace(model, adapters={name: adapter}, _engines={})
    pairs = own.images if len(own.images[0]) == 2 else own.images[:, [-1, -1]]
    if head.images[0] == "current":
        pairs = pairs[:, ::-1]
    answers = scored.score(
        store.frames[pairs], [sentences[t] for t in own.task], heads=[name]
    )
    got = np.asarray(getattr(answers, name))[:, 1]
    # Where an answer lies on the edge of a class float32 may decide otherwise: none does here.
    for key, value in closed_numbers(head, got, own.label).items():
        assert abs(found[key] - value) < 1e-5, key
    error = np.abs(got - own.label)
    if name == "progress":
        assert abs(found["progress/mae"] - error.mean()) < 1e-5 and error.std() > 0.1
    assert found["loss"] == found[f"{name}/loss"]

    size = tuple(store.frames.shape[1:3])
    writer = Writer(head, model.tokenizer, model.config, size, sentences)
    lesson = lessons.written(writer, (store, own))
    parts = [
        lesson.rows(np.arange(b, b + 4), np.random.default_rng([settings.seed, 12, b]))
        for b in range(0, len(own), 4)
    ]
    whole = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    variables = training.lora.variables(model.params, adapter)
    total, count = jax.jit(lambda b: total_loss(model.model, variables, b))(whole)
    assert abs(found["loss"] - float(total / count)) < 2e-5 * found["loss"]


@pytest.mark.slow
def test_the_best_is_the_lowest_and_learning_is_untouched(model, world, alone, tmp_path):
    best, seen, _ = alone["completion"]
    assert list(seen) == [2, 4, 6]
    assert set(seen[2]) == {"loss", "completion/loss", "completion/accuracy"}
    losses = {step: row["completion/loss"] for step, row in seen.items()}
    assert len(set(losses.values())) == 3
    # Training that ends at the best step, if that is not the last, has these very parameters: the
    # schedule is that of six steps, so it is stopped, not shortened.
    first = min(losses, key=losses.get)
    last = train(model, "completion", world, tmp_path / "last")
    if first == 6:
        equal(best, last)
    else:
        both = zip(jax.tree.leaves(best), jax.tree.leaves(last), strict=True)
        assert any((np.asarray(a) != b).any() for a, b in both)
    store, clips, kept = world
    course = make_course(
        SETTINGS, model, by_name(model.heads)["completion"], store, clips, tmp_path,
        training.make_step, kept,
    )  # fmt: skip
    again = course.validate(best, model.params)
    assert again == seen[first]
    # Without validation the same is learnt; the sentences are the same.
    assert sentences_of(clips) == sentences_of([*clips, *kept])
    plain = train(model, "completion", (store, clips, ()), tmp_path / "plain")
    equal(plain, last)
    assert not validations(tmp_path / "plain", "adapter_completion")


@pytest.mark.slow
@pytest.mark.parametrize("moments", [(3,), (5, 2)])
def test_a_killed_run_keeps_the_same_best(model, world, alone, tmp_path, monkeypatch, moments):
    """Killed between checkpoints, before and after the best was met; evaluations too."""
    want, seen, _ = alone["completion"]
    draw, calls = lessons.Batches.__call__, []
    deaths = list(moments)

    def dying(self, step):
        calls.append(step)
        if deaths and len(calls) == deaths[0]:
            deaths.pop(0)
            calls.clear()
            raise KeyboardInterrupt
        return draw(self, step)

    monkeypatch.setattr(lessons.Batches, "__call__", dying)
    options = dict(best="{head}/loss", final="best")
    for _ in moments:
        with pytest.raises(KeyboardInterrupt):
            train(model, "completion", world, tmp_path, **options)
    equal(train(model, "completion", world, tmp_path, **options), want)
    assert validations(tmp_path, "adapter_completion") == seen
    equal(train(model, "completion", world, tmp_path, **options), want)  # from the disk alone


@pytest.mark.slow
def test_heads_together_have_the_bests_that_they_have_alone(model, world, alone, tmp_path):
    both = train(
        model, tuple(alone), world, tmp_path, together=True, best="{head}/loss", final="best"
    )
    for name, (best, seen, _) in alone.items():
        equal(both[name], best)
        rows = validations(tmp_path, "adapters")
        for step, row in seen.items():
            for key in set(row) - {"loss"}:
                assert rows[step][key] == row[key]
    mean = np.mean([rows[6][f"{n}/loss"] for n in alone])
    assert abs(rows[6]["loss"] - mean) < 1e-6


@pytest.mark.slow
def test_all_weights_and_other_lessons_validate(model, world, tmp_path):
    names = ("completion", "contrastive")
    train(model, names, world, tmp_path / "full", method="full", steps=2, best="loss")
    (row,) = validations(tmp_path / "full", "model").values()
    assert set(row) == {
        "loss", *(f"{n}/{k}" for n in names for k in ("loss", "accuracy"))
    }  # fmt: skip
    for objective, more in (("dpo", "preference_accuracy"), ("expectation", "mae")):
        folder = tmp_path / objective
        train(model, "completion", world, folder, objective=objective, steps=2)
        (row,) = validations(folder, "adapter_completion").values()
        assert {"completion/accuracy", f"completion/{more}", "loss"} <= set(row)
        if objective == "dpo":  # the first update has a learning rate of 0, the second has moved
            assert 0 < abs(row["loss"] - np.log(2)) < 0.3


def test_numbers_of_closed_answers(model):
    heads = by_name(model.heads)
    found = closed_numbers(
        heads["progress"], np.array([0.1, 0.5, 0.9]), np.array([0.0, np.nan, 0.5])
    )
    assert found["progress/mae"] == pytest.approx(0.25)
    assert found["progress/within_0.2"] == 0.5
    got = np.array([0.3, -0.2, 0.9])
    assert closed_numbers(heads["contrastive"], got, np.array([1.0, 1.0, 0.0])) == {
        "contrastive/accuracy": 0.5
    }
    found = closed_numbers(heads["completion"], got, np.array([0.0, 0.0, 1.0]))
    assert found == {"completion/accuracy": 1.0}
    assert closed_numbers(heads["completion"], got, np.full(3, np.nan)) == {}


def test_a_number_that_is_lost_is_never_the_best(tmp_path):
    with resumable._Best(tmp_path, {}, "loss") as best:
        best.offer(1, {"w": jnp.ones(2)}, {"loss": float("nan")})
        assert not best.values
        best.offer(2, {"w": jnp.zeros(2)}, {"loss": 1.0})
        best.offer(3, {"w": jnp.ones(2)}, {"loss": float("nan")})
        params, found = best.read({"w": jnp.ones(2)})
    assert found == {"loss": 1.0} and not np.asarray(params["w"]).any()


def test_what_cannot_be_is_said(model, world, tmp_path):
    store, clips, kept = world
    with pytest.raises(UserError, match="a batch takes 64: keep more episodes"):
        train(model, "completion", (store, clips * 4, kept[:1]), tmp_path, rows=64)
    with pytest.raises(UserError, match="did you mean 'completion/loss'"):
        train(model, "completion", world, tmp_path, best="completion/los")
    with pytest.raises(UserError, match="no episodes to evaluate"):
        train(model, "completion", (store, clips, ()), tmp_path, best="loss")
    unknown = dataclasses.replace(kept[0], progress=np.full(6, np.nan, np.float32))
    with pytest.raises(UserError, match="validation episodes: no clip has known progress"):
        train(model, "contrastive", (store, clips, [unknown]), tmp_path)
    for settings, says in (
        ({"final": "best"}, "name the number"),
        ({"method": "full", "best": "{head}/loss"}, "share all weights"),
        ({"final": "first"}, "final"),
        ({"evaluate_every": 0}, "evaluate_every"),
    ):
        with pytest.raises(UserError, match=says):
            config.build(AdapterTraining, settings, key="config.training")
