"""Heads with LoRA adapters of their own: the same scores as from merged checkpoints, head by
head."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from lrm_jax import load_reward_model, lora, qwen3_vl
from lrm_jax.lora.transform import factors_of
from lrm_jax.rewards.adapters import eyes, groups
from lrm_jax.rewards.engine import RewardEngine
from lrm_jax.rewards.heads import nano_heads
from lrm_jax.rewards.model import RewardModel
from lrm_jax.rewards.saving import save_reward_model
from lrm_jax.run.errors import UserError

TASK = "put the red cube on the blue plate"
# Probabilities; float32 sums of some hundred terms, W + d in one product or in two.
TOLERANCE = 1e-5
HEADS = ("contrastive", "progress", "completion")
CONFIGS = {
    "contrastive": lora.LoraConfig(rank=2, alpha=4, targets=("q_proj", "v_proj")),
    "progress": lora.LoraConfig(
        rank=3, alpha=3, targets=("o_proj",), modules_to_save=("visual", "merger")
    ),
    "completion": lora.LoraConfig(rank=1, alpha=2, targets="all-linear", rslora=True),
}


@pytest.fixture(scope="module")
def made(tiny, tokenizer, tmp_path_factory):
    """(the base's folder, adapter folders by head, the same adapters as trees)."""
    (network, params), root = tiny, tmp_path_factory.mktemp("adapters")
    save_reward_model(
        root / "base", network.config, params, nano_heads(), tokenizer, (32, 32), "float32"
    )
    leaves, trees = qwen3_vl.leaves(network.config), {}
    for seed, (head, config) in enumerate(CONFIGS.items()):
        tree = lora.init(jax.random.key(seed), params, config, leaves)
        rng = np.random.default_rng(seed)
        for _, pair in factors_of(tree["lora"]):
            pair["b"] = np.float32(rng.normal(0, 0.3, pair["b"].shape))
        if "params" in tree:
            tree["params"] = jax.tree.map(
                lambda x, rng=rng: np.float32(x + rng.normal(0, 0.1, x.shape)), tree["params"]
            )
        trees[head] = tree
        lora.save_peft(root / head, tree, config, leaves)
    return root / "base", {head: root / head for head in CONFIGS}, trees


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Compiling dominates these tests, and LLVM's optimisation is not what they test."""
    jit, options = jax.jit, {"xla_backend_optimization_level": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", lambda f, **more: jit(f, compiler_options=options, **more))
        yield


@pytest.fixture(scope="module")
def base(made):
    return load_reward_model(made[0])


@pytest.fixture(scope="module")
def model(made):
    return load_reward_model(made[0], adapters=made[1])


@pytest.fixture(scope="module")
def scores(model, frames):
    return model.score(frames[:, 0], TASK, interval=2)


@pytest.fixture(scope="module")
def plain(base, frames):
    return base.score(frames[:, 0], TASK, interval=2)


@pytest.mark.parametrize("head", HEADS)
def test_each_head_scores_as_its_merged_checkpoint(base, made, frames, scores, plain, head):
    # The same engine, that is the same program, with other weights.
    merged = dataclasses.replace(base, params=lora.merge(base.params, made[2][head]))
    want = merged.score(frames[:, 0], TASK, interval=2)
    np.testing.assert_allclose(getattr(scores, head), getattr(want, head), atol=TOLERANCE)
    np.testing.assert_array_equal(scores.valid[head], want.valid[head])
    # The adapter matters, and it is not another head's that is at work.
    moved = np.abs(getattr(want, head) - getattr(plain, head))
    assert np.nanmax(moved) > 100 * TOLERANCE
    if head == "progress":
        np.testing.assert_allclose(scores.distribution, want.distribution, atol=TOLERANCE)


def test_tri_is_the_mean_of_the_three(scores):
    want = (scores.progress + scores.completion + (scores.contrastive + 1) / 2) / 3
    np.testing.assert_allclose(scores.tri, want, atol=1e-6)
    assert scores.valid["tri"].tolist() == [False] * 2 + [True] * 5


def test_a_head_without_an_adapter_asks_the_base(made, frames, scores, plain):
    some = load_reward_model(made[0], adapters={"completion": made[1]["completion"]})
    got = some.score(frames[:, 0], TASK, interval=2)
    np.testing.assert_allclose(got.progress, plain.progress, atol=TOLERANCE)
    np.testing.assert_allclose(got.contrastive, plain.contrastive, atol=TOLERANCE)
    np.testing.assert_allclose(got.completion, scores.completion, atol=TOLERANCE)


def test_frames_are_encoded_once_for_each_vision_tower(model, frames, sentences, monkeypatch):
    """contrastive reaches no image, progress has a tower, completion factors in the tower."""
    calls = []
    encode = RewardEngine._encode
    monkeypatch.setattr(
        RewardEngine, "_encode", lambda self, *given: calls.append(1) or encode(self, *given)
    )
    engine = model.engine(sentences)
    engine._score = engine._score_program
    jax.eval_shape(lambda v, f: engine.score(v, f, np.zeros(3, int)), model.variables, frames)
    assert len(calls) == 3
    assert [eyes(model.variables, i) for i in range(-1, 3)] == [-1, -1, 1, 2]
    calls.clear()
    jax.eval_shape(
        lambda v, f: engine.score(v, f, np.zeros(3, int), heads=["contrastive"]),
        model.variables, frames,
    )  # fmt: skip
    assert len(calls) == 1


def test_heads_of_one_adapter_share_rows():
    adapters = {"progress": 0, "completion": 0}
    assert groups(("progress", "contrastive", "completion"), adapters) == {
        0: ("progress", "completion"),
        -1: ("contrastive",),
    }


def test_new_frames_do_not_recompile(model, frames, scores):
    (engine,) = model._engines.values()
    before = engine.compilations
    model.score(frames[::-1, 1], "place the purple ball on the white dish", interval=2)
    assert engine.compilations == before > 0


def test_rows_are_counted_for_each_adapter(base, model, sentences):
    one = base.engine(sentences).cost(8)["tokens"]
    assert model.engine(sentences).cost(8)["tokens"] > one


def test_bfloat16_keeps_the_factors_wide(made):
    model = load_reward_model(made[0], adapters=made[1], dtype="bfloat16")
    for tree in model.adapters.values():
        assert {x.dtype for x in jax.tree.leaves(tree["lora"])} == {jnp.dtype("float32")}
        assert {x.dtype for x in jax.tree.leaves(tree.get("params", ()))} <= {jnp.dtype("bfloat16")}


def test_the_manifest_names_the_adapters(base, made, model):
    found = model.facts["adapter_sha256"]
    assert set(found) == set(HEADS) and "adapter_sha256" not in base.facts
    assert len({v["adapter_model.safetensors"] for v in found.values()}) == 3


def test_wrong_adapters(made, model, tmp_path):
    folder, adapters, _ = made
    with pytest.raises(UserError, match="no head 'progres'; did you mean 'progress'"):
        load_reward_model(folder, adapters={"progres": adapters["progress"]})
    with pytest.raises(UserError, match="no such folder"):
        load_reward_model(folder, adapters={"progress": tmp_path / "nowhere"})
    with pytest.raises(UserError, match="its heads have adapters"):
        model.save(tmp_path / "out")
    path = tmp_path / "zero"
    path.mkdir()
    raw = json.loads((adapters["contrastive"] / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(raw))
    found = safetensors.numpy.load_file(adapters["contrastive"] / "adapter_model.safetensors")
    found = {k: v * 0 if "lora_B" in k else v for k, v in found.items()}
    safetensors.numpy.save_file(found, path / "adapter_model.safetensors")
    with pytest.raises(UserError, match="every lora_B is zero"):
        load_reward_model(folder, adapters={"contrastive": path})
    allowed = load_reward_model(folder, {"contrastive": path}, allow_identity_adapter=True)
    assert isinstance(allowed, RewardModel) and set(allowed.adapters) == {"contrastive"}
