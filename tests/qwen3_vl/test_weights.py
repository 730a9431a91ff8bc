"""Checkpoint folders: round trips through transformers, and what is said about broken ones."""

import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from lrm_jax.benchmarks.parity_cases import batch_of, hf_config, tensors
from lrm_jax.qwen3_vl import (
    Config,
    Qwen3VL,
    VisionInputs,
    from_pretrained,
    grid_tables,
    names,
    save_pretrained,
    weights,
)
from lrm_jax.run.errors import UserError

BATCH = batch_of([[3, ("image", 6, 4), 5]])


@pytest.mark.parametrize("which", ["untied", "tied"])
def test_round_trip_through_transformers(which, request, tmp_path):
    pair = request.getfixturevalue(which)
    save_pretrained(tmp_path, pair.ours.config, pair.ours.params)
    back = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
        tmp_path, attn_implementation="eager"
    )
    assert back.dtype == torch.float32
    assert back.config.tie_word_embeddings == (which == "tied")
    with torch.no_grad():
        logits = back(**tensors(BATCH)).logits.numpy()
    np.testing.assert_array_equal(logits, pair.hf_logits(BATCH))
    ours = from_pretrained(tmp_path)
    assert ours.config == pair.ours.config
    jax.tree.map(np.testing.assert_array_equal, ours.params, pair.ours.params)


def test_shards_of_either_side(untied, tmp_path, monkeypatch):
    untied.hf.save_pretrained(tmp_path / "theirs", max_shard_size="200KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    monkeypatch.setattr(weights, "SHARD_BYTES", 200_000)
    save_pretrained(tmp_path / "ours", untied.ours.config, untied.ours.params)
    for folder in ("theirs", "ours"):
        params = weights.read_params(tmp_path / folder, untied.ours.config)
        jax.tree.map(np.testing.assert_array_equal, params, untied.ours.params)
    back = transformers.Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "ours")
    for name, value in untied.hf.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


def test_bfloat16_file(untied, tmp_path):
    half = jax.tree.map(lambda x: np.asarray(x).astype(jnp.bfloat16), untied.ours.params)
    save_pretrained(tmp_path, untied.ours.config, half)
    for dtype in ("bfloat16", "float32"):
        got = weights.read_params(tmp_path, untied.ours.config, dtype)
        chex.assert_type(jax.tree.leaves(got), jnp.dtype(dtype))
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, got), half)
        here = jax.tree.map(lambda x: x.sharding, got)  # and slice by slice
        again = weights.read_params(tmp_path, untied.ours.config, dtype, shardings=here)
        chex.assert_trees_all_equal_shapes_and_dtypes(again, got)
        jax.tree.map(np.testing.assert_array_equal, again, got)
    hf = transformers.Qwen3VLForConditionalGeneration.from_pretrained(tmp_path)
    assert hf.dtype == torch.bfloat16


def test_leaves_go_where_their_shardings_say(tied):
    """On one device; tests/parallel loads shards on eight."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    homes = jax.tree.map(lambda _: here, tied.ours.params)
    got = weights.read_params(tied.folder, tied.ours.config, shardings=homes)
    jax.tree.map(np.testing.assert_array_equal, got, tied.ours.params)
    del homes["visual"]["pos_embed"]
    with pytest.raises(ValueError, match="do not fit the configuration: visual/pos_embed"):
        weights.read_params(tied.folder, tied.ours.config, shardings=homes)


@pytest.mark.parametrize("text", [{}, {"attention_bias": True, "num_hidden_layers": 2}])
@pytest.mark.parametrize("tie", [True, False])
def test_names_cover_the_tree_and_the_checkpoint(text, tie):
    hf = hf_config(text=text, tie_word_embeddings=tie)
    config = Config.from_hf(hf.to_dict())
    wanted = names.leaves(config)
    model, one = Qwen3VL(config), np.zeros((1, 1), np.int32)
    inputs = VisionInputs(np.zeros((1, 4, 96), np.float32), grid_tables(config, 2, 2))
    shapes = jax.eval_shape(
        lambda rng: model.init(rng, inputs, one, one[None].repeat(3, 0), one == 0, one)["params"],
        jax.random.key(0),
    )
    flat = {
        tuple(k.key for k in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    assert flat == {leaf.path: leaf.tree_shape for leaf in wanted}
    with torch.device("meta"):
        theirs = dict(transformers.Qwen3VLForConditionalGeneration(hf).named_parameters())
    assert {k: tuple(v.shape) for k, v in theirs.items()} == {
        name: leaf.shape for leaf in wanted for name in leaf.names
    }


def test_save_rejects_a_tree_of_another_configuration(untied, tied, tmp_path):
    with pytest.raises(ValueError, match="beyond the configuration, lm_head/kernel"):
        save_pretrained(tmp_path, tied.ours.config, untied.ours.params)
    with pytest.raises(ValueError, match="lacks lm_head/kernel"):
        save_pretrained(tmp_path, untied.ours.config, tied.ours.params)


# --- broken folders ---


@pytest.fixture
def broken(untied, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(untied.folder, folder)
    return folder


def fails(folder, *parts):
    with pytest.raises(UserError) as error:
        from_pretrained(folder)
    message = str(error.value)
    assert "\n" not in message
    for part in (str(folder), *parts):
        assert part in message, message


def edit_tensors(folder, change):
    path = folder / "model.safetensors"
    found = safetensors.numpy.load_file(path)
    change(found)
    safetensors.numpy.save_file(found, path, metadata={"format": "pt"})


def edit_json(path, change):
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def test_no_folder(tmp_path):
    fails(tmp_path / "nowhere", "no such folder")


def test_no_config(broken):
    (broken / "config.json").unlink()
    fails(broken, "config.json is missing")


def test_config_is_not_json(broken):
    (broken / "config.json").write_text("{")
    fails(broken, "config.json", "not JSON")


def test_mixture_of_experts(broken):
    edit_json(broken / "config.json", lambda c: c.update(model_type="qwen3_vl_moe"))
    fails(broken, "'qwen3_vl_moe'")


def test_no_weights(broken):
    (broken / "model.safetensors").unlink()
    fails(broken, "no weights")


@pytest.mark.parametrize("size", [0, 20, -5])
def test_truncated(broken, size):
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    fails(broken, "model.safetensors is truncated or unreadable")


def test_missing_tensor(broken):
    name = "model.visual.blocks.3.attn.proj.bias"
    edit_tensors(broken, lambda t: t.pop(name))
    fails(broken, "no tensor " + name, "model.safetensors")


def test_unexpected_tensor(broken):
    edit_tensors(broken, lambda t: t.update(extra=np.zeros(2, np.float32)))
    fails(broken, "model.safetensors: unexpected tensor extra")


def test_wrong_shape(broken):
    name = "model.language_model.layers.4.mlp.up_proj.weight"
    edit_tensors(broken, lambda t: t.update({name: np.ascontiguousarray(t[name].T)}))
    fails(broken, f"model.safetensors: {name} has shape [64, 80]", "[80, 64]")


def test_wrong_type(broken):
    name = "model.language_model.norm.weight"
    edit_tensors(broken, lambda t: t.update({name: t[name].astype(np.int8)}))
    fails(broken, name, "I8")


def test_missing_shard(untied, tmp_path):
    untied.hf.save_pretrained(tmp_path, max_shard_size="200KB")
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    fails(tmp_path, gone.name + " is missing")


def test_tied_checkpoint_with_a_head(tied, tmp_path):
    """transformers may store the shared table twice; two different ones contradict each other."""
    folder = tmp_path / "tied"
    shutil.copytree(tied.folder, folder)
    edit_tensors(folder, lambda t: t.update({names.HEAD: t[names.EMBEDDINGS]}))
    jax.tree.map(np.testing.assert_array_equal, from_pretrained(folder).params, tied.ours.params)
    edit_tensors(folder, lambda t: t.update({names.HEAD: t[names.EMBEDDINGS] + 1}))
    fails(folder, "lm_head.weight differs", "tie_word_embeddings")


def test_unknown_dtype(untied):
    with pytest.raises(UserError, match="float32"):
        from_pretrained(untied.folder, dtype="float23")


def test_stop_tokens_come_from_the_generation_config(broken):
    stops = {"eos_token_id": [3, 4], "pad_token_id": 5}
    (broken / "generation_config.json").write_text(json.dumps(stops))
    ours = from_pretrained(broken)
    assert ours.config.eos_token_id == (3, 4) and ours.config.pad_token_id == 5
