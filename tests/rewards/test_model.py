"""Loading, saving and calling reward models; wrong folders and wrong frames."""

import json
import shutil

import jax
import numpy as np
import pytest

from lrm_jax.rewards import heads as heads_file
from lrm_jax.rewards.heads import default_heads, load_heads, nano_heads, save_heads
from lrm_jax.rewards.model import NANO_FOLDER, load_reward_model
from lrm_jax.rewards.scores import NAMES
from lrm_jax.run.errors import UserError

TASK = "put the red cube on the blue plate"


@pytest.fixture(scope="module")
def model(folder):
    return load_reward_model(folder)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def one(model, frames):
    return model.score(frames[:, 0], TASK, interval=2)


def test_round_trip(model, tiny):
    assert model.heads == nano_heads() and model.image_size == (32, 32)
    for a, b in zip(jax.tree.leaves(model.params), jax.tree.leaves(tiny[1]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(model.facts["prompt_sha256"]) == 64 and set(model.facts["model_sha256"]) == {
        "model.safetensors"
    }


def test_one_video(one):
    assert isinstance(one.progress, np.ndarray)
    for name in NAMES:
        value, valid = getattr(one, name), one.valid[name]
        assert value.shape == valid.shape == (7,)
        assert (np.isfinite(value) == valid).all()
    assert one.distribution.shape == (7, 11)
    np.testing.assert_allclose(one.distribution.sum(-1), 1, atol=1e-5)
    assert one.valid["contrastive"].tolist() == [False] * 2 + [True] * 5


def test_many_videos_are_scored_as_each_alone(model, frames, one):
    both = model.score(
        np.moveaxis(frames[:, :2], 1, 0), [TASK, "put the green cube on the red plate"], interval=2
    )
    for name in NAMES:
        assert getattr(both, name).shape == (2, 7)
        np.testing.assert_allclose(getattr(both, name)[0], getattr(one, name), atol=1e-5)
    assert abs(both.progress[1] - one.progress).max() > 1e-3


def test_other_lengths_and_sentences_use_the_same_program(model, frames, one):
    engine = model._engines[32, 32]
    before = engine.compilations
    model.score(frames[:5, 1], "place the purple ball on the white dish", interval=2)
    assert engine.compilations == before


def test_frames_of_another_size_are_resized(model, frames, one):
    big = frames[:, 0].repeat(2, axis=1).repeat(2, axis=2)
    got = model.score(big, TASK, interval=2)
    # Antialiasing mixes neighbours at the edges of the doubled pixels; the picture stays the same.
    assert abs(got.progress - one.progress).max() < 0.1


def test_a_checkpoint_without_heads_gets_the_default_ones(copy, frames):
    (copy / heads_file.FILE).unlink()
    plain = load_reward_model(copy)
    assert plain.heads == default_heads() and plain.image_size is None
    got = plain.score(frames[:2, 0, :, :20], TASK, heads=["completion"])  # 32 x 20 becomes 32 x 16
    assert got.valid["completion"].all() and (16 in next(iter(plain._engines)))


def test_heads_survive_json(tmp_path):
    for heads in (nano_heads(), default_heads()):
        save_heads(tmp_path, heads, {"image_size": [64, 64]})
        assert load_heads(tmp_path) == (heads, {"image_size": [64, 64]})
    assert heads_file.fingerprint(nano_heads()) != heads_file.fingerprint(default_heads())


@pytest.mark.parametrize(
    "frames, task, message",
    [
        (np.zeros((2, 32, 32, 3), np.float32), TASK, "uint8"),
        (np.zeros((2, 32, 32), np.uint8), TASK, "shape"),
        (np.zeros((2, 32, 32, 4), np.uint8), TASK, "shape"),
        (np.zeros((0, 32, 32, 3), np.uint8), TASK, "nothing to score"),
        (np.zeros((2, 32, 32, 3), np.uint8), " ", "task is empty"),
        (np.zeros((2, 3, 32, 32, 3), np.uint8), [TASK], "2 videos but 1 tasks"),
    ],
)
def test_wrong_frames_and_tasks(model, frames, task, message):
    with pytest.raises(UserError, match=message):
        model.score(frames, task)


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: shutil.rmtree(f), "no such model"),
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (lambda f: (f / "config.json").write_text(json.dumps({"model_type": "llama"})), "llama"),
        (lambda f: _truncate(f / "model.safetensors"), "truncated"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
        (lambda f: _truncate(f / "tokenizer.json"), "damaged"),
        (lambda f: _truncate(f / heads_file.FILE), "damaged"),
        (lambda f: (f / heads_file.FILE).write_text('{"format": 2, "heads": []}'), "format 1"),
        (
            lambda f: (f / heads_file.FILE).write_text('{"format": 1, "heads": [{"name": "x"}]}'),
            "exactly",
        ),
    ],
)
def test_wrong_folders(copy, damage, message):
    damage(copy)
    with pytest.raises(UserError, match=message):
        load_reward_model(copy)


def test_the_nano_tokenizer_is_what_the_package_trains(tmp_path):
    from lrm_jax.reward_training.tokenizer import train

    train(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (NANO_FOLDER / name).read_bytes()


def test_transformers_reads_the_nano_tokenizer(tokenizer):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(NANO_FOLDER)
    texts = [
        h.prompt.replace("<task>", TASK).replace("<answer>", h.answers[0]) for h in nano_heads()
    ]
    for text in (*texts, "note: yes, no 0.35 é"):
        ids, _ = tokenizer.encode(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids
        assert theirs.decode(ids) == text
    assert len(tokenizer.encode(TASK)[0]) == 8
