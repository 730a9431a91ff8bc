"""Training: it learns, it resumes bit for bit, it stops where it must."""

import dataclasses

import jax
import numpy as np
import pytest

import lrm_jax.reward_training.loop as loop
from lrm_jax.labels import HeldOut
from lrm_jax.qwen3_vl import Qwen3VL
from lrm_jax.reward_training import NanoSize, Optimiser, RewardTraining, resumable, train
from lrm_jax.rewards import load_reward_model
from lrm_jax.run import metrics
from lrm_jax.run.config import build
from lrm_jax.run.errors import UserError

from .toy import SIZE, settings, toy_clips


@pytest.fixture(scope="module")
def toy():
    return toy_clips()


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_it_learns_which_colour_is_meant(toy, tmp_path):
    """Two squares cross the picture in opposite directions; only the sentence says which one
    counts."""
    store, clips = toy
    config = settings(
        420,
        phase=dict(
            rows=12, frames_per_row=4, heads={"progress": 1.0, "object_x": 0.5}, pairs_per_row=0,
            kinds={"success": 6.0, "blank": 1.0},
        ),
        blanks=0.5,
        evaluate_every=420,
        light=0.0,
    )
    made = train(config, store, clips[:40], tmp_path, validation_clips=clips[40:], metrics=tmp_path)
    # Without the sentence the best guess is 0.5 wherever the two squares differ: an error of 0.27.
    assert made.validation["progress/mae"] < 0.1, made.validation
    lines = metrics.read(tmp_path, "reward")
    assert lines[0]["loss_progress"] > 3 * lines[-2]["loss_progress"]

    made.save(tmp_path / "model")
    model = load_reward_model(tmp_path / "model")
    clip = clips[44]
    scores = model.score(store.frames[clip.frames], clip.task, heads=["progress"])
    assert np.abs(scores.progress - clip.progress).mean() < 0.15  # weights rounded to bfloat16
    blank = np.full((2, 32, 32, 3), 128, np.uint8)
    assert model.score(blank, clip.task, heads=["progress"]).progress.max() < 0.2


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_killed_run_ends_as_an_uninterrupted_one(toy, tmp_path, monkeypatch):
    store, clips = toy
    config = settings(6, checkpoint_every=2)
    compiled = []
    real = loop.make_step
    with monkeypatch.context() as patched:
        patched.setattr(
            loop, "make_step", lambda *args: compiled.append(real(*args)) or compiled[-1]
        )
        whole = train(config, store, clips, tmp_path / "whole")
    assert [step._cache_size() for step in compiled] == [1]  # new batches do not recompile

    class Dying(resumable.StepLog):
        def add(self, step, numbers):
            if step == 4:
                raise Killed
            super().add(step, numbers)

    with monkeypatch.context() as patched:
        patched.setattr(resumable, "StepLog", Dying)
        with pytest.raises(Killed):
            train(config, store, clips, tmp_path / "killed")
    steps = []
    draw = loop.Sampler.batch
    with monkeypatch.context() as patched:
        patched.setattr(
            loop.Sampler, "batch", lambda self, step: steps.append(step) or draw(self, step)
        )
        resumed = train(config, store, clips, tmp_path / "killed")
    assert steps == [4, 5]
    equal(resumed.params, whole.params)
    # Finished: the same call trains no more.
    equal(train(config, store, clips, tmp_path / "killed").params, whole.params)


def test_a_loss_that_is_lost_stops_the_run(toy, tmp_path):
    short = settings(8, phase=dict(heads={"progress": 1.0}, pairs_per_row=0))
    config = dataclasses.replace(short, optimiser=Optimiser(learning_rate=1e30, warmup_steps=0))
    with pytest.raises(UserError, match=r"learning_rate.*bad_batch\.npz"):
        train(config, *toy, tmp_path)
    assert np.load(tmp_path / "bad_batch.npz")["frames"].shape == (4, 3)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(phase=dict(heads={"progres": 1.0})), "did you mean 'progress'"),
        (dict(phase=dict(heads={})), "at least one head"),
        (dict(phase=dict(steps=0)), "no steps"),
        (dict(size=NanoSize(image_size=64)), "image_size"),
    ],
)
def test_wrong_settings(toy, tmp_path, change, message):
    config = settings(**{k: v for k, v in change.items() if k == "phase"})
    config = dataclasses.replace(config, size=change.get("size", SIZE))
    with pytest.raises(UserError, match=message):
        train(config, *toy, tmp_path)


@pytest.mark.slow
def test_it_goes_on_from_another_model(toy, tmp_path):
    store, clips = toy
    first = train(settings(3), store, clips, tmp_path / "first")
    first.save(tmp_path / "model", dtype="float32")
    still = Optimiser(learning_rate=1e-12, warmup_steps=0)  # far below one ulp of a weight
    config = dataclasses.replace(
        settings(1), start=str(tmp_path / "model"), seed=7, optimiser=still
    )
    second = train(config, store, clips, tmp_path / "second").params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), second, first.params)
    # A mean of the start and of what was learnt: three parts of four, and one.
    moved = dataclasses.replace(config, optimiser=Optimiser(learning_rate=1e-2, warmup_steps=0))
    learnt = train(moved, store, clips, tmp_path / "moved").params
    mixed = train(
        dataclasses.replace(moved, start_share=0.75), store, clips, tmp_path / "mixed"
    ).params
    moves = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), learnt, first.params)
    assert max(jax.tree.leaves(moves)) > 1e-3
    jax.tree.map(
        lambda m, a, b: np.testing.assert_allclose(m, 0.75 * a + 0.25 * b, atol=1e-6),
        mixed, first.params, learnt,
    )  # fmt: skip
    other = dataclasses.replace(config, size=dataclasses.replace(SIZE, text_mlp=32))
    with pytest.raises(UserError, match="another size"):
        train(other, store, clips, tmp_path / "third")


def test_a_share_of_no_start():
    with pytest.raises(UserError, match="no start"):
        build(RewardTraining, {"start_share": 0.5})


def test_held_out_sentences_do_not_pass(toy, tmp_path):
    with pytest.raises(UserError, match="held-out"):
        train(settings(), *toy, tmp_path, held_out=HeldOut([toy[1][0].task]))


def test_the_nano_configuration_is_a_qwen3_vl():
    from lrm_jax.qwen3_vl import Config
    from lrm_jax.reward_training.nano import nano_config
    from lrm_jax.rewards.model import NANO_FOLDER
    from lrm_jax.rewards.tokenizer import Tokenizer

    config = nano_config(NanoSize(), Tokenizer.from_folder(NANO_FOLDER))
    assert Config.from_hf(config.to_hf()) == config
    model = Qwen3VL(config)
    shapes = jax.eval_shape(lambda k: loop.init_params(model, k), jax.random.key(0))
    count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))
    assert count * 2 < 20e6  # bytes in bfloat16; the package holds 20 MB at most
