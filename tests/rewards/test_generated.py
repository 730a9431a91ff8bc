"""Scores from generated text: right values, unreadable ones counted, one program for all calls."""

import gc
import json

import jax
import numpy as np
import pytest

from lrm_jax import lora, qwen3_vl
from lrm_jax.lora.transform import factors_of
from lrm_jax.qwen3_vl import generate
from lrm_jax.rewards import generated
from lrm_jax.rewards.heads import nano_heads
from lrm_jax.rewards.model import load_reward_model
from lrm_jax.rewards.saving import save_reward_model
from lrm_jax.rewards.scores import NAMES
from lrm_jax.run.errors import UserError

TASKS = ["put the red cube on the blue plate", "put the green cube on the yellow plate"]


@pytest.fixture(scope="module")
def folder(tiny, tokenizer, tmp_path_factory):
    network, params = tiny
    path = tmp_path_factory.mktemp("base")
    save_reward_model(path, network.config, params, nano_heads(), tokenizer, (32, 32), "float32")
    return path


@pytest.fixture(scope="module")
def model(folder):
    return load_reward_model(folder)


@pytest.fixture
def videos(frames):
    """uint8 [2, 4, 32, 32, 3]."""
    return np.moveaxis(frames[:4, :2], 1, 0)


def speaks(monkeypatch, tokenizer, say):
    """In place of the model's tokens: say(text of the prompt, number of the row) for each row."""
    count = iter(range(10**6))

    def greedy(model, params, lora, batch, ids, limit, *, slots, stops, pad):
        out = np.full((len(batch.real), slots), pad, np.int32)
        for b in range(len(batch.real)):
            prompt = tokenizer.inner.decode(batch.tokens[b][batch.valid[b]].tolist())
            row = [*tokenizer.encode(say(prompt, next(count)))[0], stops[0]][:limit]
            out[b, : len(row)] = row
        return out, limit

    monkeypatch.setattr(generate, "greedy", greedy)


def test_a_random_models_texts_are_invalid_and_counted(model, videos):
    got = model.generate(videos, TASKS, interval=1, max_new_tokens=8)
    assert got.unreadable == got.answers == {"progress": 8, "completion": 8, "contrastive": 12}
    for name in NAMES:
        value = getattr(got.scores, name)
        assert value.shape == (2, 4) and np.isnan(value).all()
        assert not got.scores.valid[name].any()
    assert np.isnan(got.scores.distribution).all() and np.isnan(got.scores.entropy).all()
    assert got.scores.distribution.shape == (2, 4, 11)
    said = got.texts["contrastive"]
    assert said.shape == (2, 4, 2) and (said[:, 0] == None).all()  # noqa: E711
    assert all(isinstance(t, str) for t in said[:, 1:].flat)


def test_a_second_call_compiles_nothing(model, videos):
    model.generate(videos, TASKS, max_new_tokens=8, heads=["progress"])
    gc.collect()  # entries of models that are gone leave the caches now, not below
    before = generate.greedy._cache_size(), generated._patches._cache_size()
    other = ["place the red cube on the blue plate", "put the purple ball on the white dish"]
    model.generate(videos[:, ::-1], other, max_new_tokens=7, heads=["progress"])
    assert (generate.greedy._cache_size(), generated._patches._cache_size()) == before


@pytest.mark.parametrize("scaffold", [False, True])
def test_what_is_said_is_scored(model, tokenizer, videos, monkeypatch, scaffold):
    """Rows come head by head, then frame, video and order."""
    keys = ["completion_progress"] * 8 + ["task_completed"] * 8 + ["more_complete_image"] * 12
    answers = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0]
    answers += ["yes", "no"] * 4 + ["ImageB", "ImageA", "ImageA", "ImageA"] * 3

    def say(prompt, row):
        text = json.dumps({keys[row]: answers[row]})
        # The engine may have begun the answer ("Image", "0."): go on from there.
        return text if not scaffold else text[len(begun[keys[row]]) :]

    heads = {h.name: h for h in nano_heads()}
    names = dict(zip(dict.fromkeys(keys), heads, strict=True))
    begun = {
        key: generated.prompt(heads[name], TASKS[0], tokenizer, 4, True).begun
        for key, name in names.items()
    }
    speaks(monkeypatch, tokenizer, say)
    got = model.generate(videos, TASKS, scaffold=scaffold, max_new_tokens=32)
    assert sum(got.unreadable.values()) == 0
    np.testing.assert_allclose(got.scores.progress, np.reshape(answers[:8], (4, 2)).T)
    np.testing.assert_array_equal(got.scores.completion, [[1] * 4, [0] * 4])
    # (B, A): both orders name the newer frame. (A, A): a preference for a place, which cancels.
    want = [[np.nan, 1, 1, 1], [np.nan, 0, 0, 0]]
    np.testing.assert_array_equal(got.scores.contrastive, want)
    assert not got.scores.valid["contrastive"][:, 0].any()
    tri = (got.scores.progress + got.scores.completion + (np.array(want) + 1) / 2) / 3
    np.testing.assert_allclose(got.scores.tri, tri, atol=1e-6)
    speaks(monkeypatch, tokenizer, say)  # the same through the public call
    scores = model.score(videos, TASKS, decode="generate", scaffold=scaffold, max_new_tokens=32)
    np.testing.assert_array_equal(scores.tri, got.scores.tri)


def test_one_unreadable_order_spoils_a_comparison(model, tokenizer, frames, monkeypatch):
    first, second = (json.dumps({"more_complete_image": f"Image{i}"}) for i in "AB")
    said = [second, "both", second, first]
    speaks(monkeypatch, tokenizer, lambda prompt, row: said[row % 4])
    got = model.generate(frames[:3, 0], TASKS[0], heads=["contrastive"], max_new_tokens=32)
    np.testing.assert_array_equal(got.scores.contrastive, [np.nan, np.nan, 1])
    assert got.scores.valid["contrastive"].tolist() == [False, False, True]
    assert got.unreadable == {"contrastive": 1} and got.answers == {"contrastive": 4}
    assert not got.scores.valid["progress"].any() and not got.scores.valid["tri"].any()


def test_each_head_speaks_with_its_adapter(folder, model, tiny, frames, tmp_path):
    (network, params), leaves = tiny, qwen3_vl.leaves(tiny[0].config)
    config = lora.LoraConfig(rank=2, alpha=4, targets=("q_proj", "v_proj", "o_proj"))
    tree = lora.init(jax.random.key(3), params, config, leaves)
    rng = np.random.default_rng(3)
    for _, pair in factors_of(tree["lora"]):
        pair["b"] = np.float32(rng.normal(0, 0.5, pair["b"].shape))
    lora.save_peft(tmp_path / "a", tree, config, leaves)
    adapted = load_reward_model(folder, adapters={"completion": tmp_path / "a"})
    merged = tmp_path / "merged"
    save_reward_model(
        merged, network.config, lora.merge(params, tree), nano_heads(), model.tokenizer, (32, 32),
        "float32",
    )  # fmt: skip
    heads = ["progress", "completion"]
    texts = [
        m.generate(frames[:4, 0], TASKS[0], heads=heads, max_new_tokens=8).texts
        for m in (model, adapted, load_reward_model(merged))
    ]
    base, own, whole = texts
    assert own["progress"].tolist() == base["progress"].tolist()
    assert own["completion"].tolist() == whole["completion"].tolist()
    assert own["completion"].tolist() != base["completion"].tolist()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(decode="generat"), "did you mean 'generate'"),
        (dict(decode="closed", scaffold=True), "change nothing"),
        (dict(max_new_tokens=0), "max_new_tokens is 0"),
        (dict(heads=["progres"]), "did you mean 'progress'"),
        (dict(interval=0), "interval"),
        (dict(task=" "), "task is empty"),
    ],
)
def test_wrong_settings(model, frames, change, message):
    with pytest.raises(UserError, match=message):
        model.score(**(dict(frames=frames[:, 0], task=TASKS[0], decode="generate") | change))
