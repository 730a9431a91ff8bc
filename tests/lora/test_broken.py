"""What is said about adapter folders that do not fit: one line with the file and the name."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from lrm_jax import lora, qwen3_vl
from lrm_jax.run.errors import UserError

HERE = "base_model.model.model.language_model.layers.1.self_attn.q_proj"
ONES = np.ones(2, np.float32)
VISUAL = "base_model.model.model.visual.blocks.1.attn.qkv.weight"


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of an adapter folder: `copy("tower")`."""
    return lambda name: shutil.copytree(trained.folders[name], tmp_path / name)


def edit_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    found = safetensors.numpy.load_file(path)
    change(found)
    safetensors.numpy.save_file(found, path)


def edit_config(folder, **change):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def fails(read, folder, *parts):
    with pytest.raises(UserError) as error:
        read(folder)
    message = str(error.value)
    assert "\n" not in message
    for part in (str(folder), *parts):
        assert part in message, message


def zero_b(tensors, keep=()):
    for key, value in tensors.items():
        if "lora_B" in key and key not in keep:
            tensors[key] = np.zeros_like(value)


CASES = {
    "a key of another model": (
        "plain", lambda t: t.update({HERE.replace("q_proj", "qq.lora_A.weight"): ONES}),
        ("adapter_model.safetensors", "self_attn.qq.lora_A.weight has no place"),
    ),
    "a weight of another model": (
        "tower", lambda t: t.update({"base_model.model.model.audio.weight": ONES}),
        ("model.audio.weight has no place",),
    ),
    "an embedding's factor": (
        "plain", lambda t: t.update({HERE + ".lora_embedding_A": ONES}),
        ("lora_embedding_A has no place",),
    ),
    "B without A": (
        "plain", lambda t: t.pop(HERE + ".lora_A.weight"),
        ("layers.1.self_attn.q_proj has lora_B but no lora_A",),
    ),
    "A without B": (
        "plain", lambda t: t.pop(HERE + ".lora_B.weight"),
        ("layers.1.self_attn.q_proj has lora_A but no lora_B",),
    ),
    "a pair is missing": (
        "plain", lambda t: [t.pop(f"{HERE}.lora_{x}.weight") for x in "AB"],
        ("no factors for model.language_model.layers.1.self_attn.q_proj",),
    ),
    "a pair that is no target": (
        "plain",
        lambda t: t.update({
            HERE.replace("self_attn.q_proj", f"mlp.up_proj.lora_{x}.weight"): ONES[None]
            for x in "AB"
        }),
        ("layers.1.mlp.up_proj has factors but is no target",),
    ),
    "A transposed": (
        "plain",
        lambda t: t.update({
            HERE + ".lora_A.weight": np.ascontiguousarray(t[HERE + ".lora_A.weight"].T)
        }),
        ("lora_A of model.language_model.layers.1.self_attn.q_proj", "[64, 3]", "[3, 64]"),
    ),
    "B of another width": (
        "plain", lambda t: t.update({HERE + ".lora_B.weight": np.ones((7, 3), np.float32)}),
        ("lora_B of", "[7, 3]", "[96, 3]"),
    ),
    "integers": (
        "plain", lambda t: t.update({HERE + ".lora_B.weight": np.ones((96, 3), np.int8)}),
        (HERE + ".lora_B.weight is I8",),
    ),
    "not finite": (
        "plain", lambda t: t[HERE + ".lora_B.weight"].__setitem__((0, 0), np.nan),
        (HERE + ".lora_B.weight", "not finite"),
    ),
    "every B zero": ("plain", zero_b, ("every lora_B is zero", "allow_identity_adapter")),
    "every B zero beside a tower": ("tower", zero_b, ("every lora_B is zero",)),
    "a part of the tower is missing": (
        "tower", lambda t: t.pop(VISUAL),
        ("no model.visual.blocks.1.attn.qkv.weight, which modules_to_save calls for",),
    ),
    "a tower of another size": (
        "tower", lambda t: t.update({VISUAL: np.ones((72, 23), np.float32)}),
        ("model.visual.blocks.1.attn.qkv.weight has shape [72, 23]", "[72, 24]"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_tensors(copy, read, case):
    name, change, parts = CASES[case]
    folder = copy(name)
    read(folder)  # Whole, it loads.
    edit_tensors(folder, change)
    fails(read, folder, *parts)


def test_an_identity_adapter_is_read_if_asked_for(base, copy, read):
    folder = copy("plain")
    edit_tensors(folder, zero_b)
    tree = read(folder, allow_identity_adapter=True)
    assert not any(np.any(pair["b"]) for _, pair in lora.transform.factors_of(tree["lora"]))
    with pytest.raises(UserError, match="every lora_B is zero"):
        qwen3_vl.from_pretrained(base.folder, adapters={"a": folder})
    ours = qwen3_vl.from_pretrained(
        base.folder, adapters={"a": folder}, allow_identity_adapter=True
    )
    assert ours.adapters == ("a",)


def test_one_module_may_have_learned_nothing(copy, read):
    folder = copy("plain")
    edit_tensors(folder, lambda t: zero_b(t, keep=(HERE + ".lora_B.weight",)))
    read(folder)


@pytest.mark.parametrize("size", [0, 20, -5])
def test_truncated(copy, read, size):
    folder = copy("plain")
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    fails(read, folder, "adapter_model.safetensors is truncated or unreadable")


def test_missing_files(copy, read, tmp_path):
    fails(read, tmp_path / "nowhere", "no such folder")
    folder = copy("plain")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    fails(read, folder, "adapter_model.safetensors is missing", "convert it to safetensors")
    (folder / "adapter_config.json").unlink()
    fails(read, folder, "adapter_config.json does not exist")


@pytest.mark.parametrize("text, message", [("{", "not JSON"), ("[]", "no JSON object")])
def test_config_is_no_object(copy, read, text, message):
    folder = copy("plain")
    (folder / "adapter_config.json").write_text(text)
    fails(read, folder, "adapter_config.json", message)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(use_dora=True), "use_dora"),
        (dict(r=4), "lora_A of model.language_model.layers.0.self_attn.q_proj has shape [3, 64]"),
        (dict(target_modules=["qq_proj"]), "adapter_config.json: targets"),
        (dict(modules_to_save=["visuals"]), "modules_to_save: the model has no module 'visuals'"),
        (dict(modules_to_save=["visual"]), "no model.visual.patch_embed.proj.weight"),
    ],
)
def test_config_that_contradicts_the_file(copy, read, change, message):
    folder = copy("plain")
    edit_config(folder, **change)
    fails(read, folder, message)


def test_replacements_that_rows_cannot_choose(base, copy):
    """Full weights outside of the vision tower: for one adapter alone, not by row."""
    folder = copy("plain")
    name = "model.language_model.norm.weight"
    weight = np.full(64, 2.0, np.float32)
    edit_tensors(folder, lambda t: t.update({"base_model.model." + name: weight}))
    edit_config(folder, modules_to_save=["language_model.norm"])
    tree = qwen3_vl.read_adapter(folder, base.ours.config, base.ours.params)
    np.testing.assert_array_equal(tree["params"]["language_model"]["norm"]["scale"], weight)
    with pytest.raises(UserError, match="modules_to_save replaces language_model"):
        qwen3_vl.from_pretrained(base.folder, adapters={"a": folder})


def test_some_layers_of_a_stack_replaced(base, copy, leaves):
    """The others keep the base's weights, which the reader then needs."""
    folder = copy("plain")
    name = "model.language_model.layers.3.input_layernorm.weight"
    weight = np.full(64, 2.0, np.float32)
    edit_tensors(folder, lambda t: t.update({"base_model.model." + name: weight}))
    edit_config(folder, modules_to_save=["layers.3.input_layernorm"])
    tree = lora.load_peft(folder, leaves, params=base.ours.params)
    got = tree["params"]["language_model"]["layers"]["input_layernorm"]["scale"]
    want = base.ours.params["language_model"]["layers"]["input_layernorm"]["scale"]
    np.testing.assert_array_equal(got, np.stack([want[0], weight]))
    with pytest.raises(UserError, match=r"not model.language_model.layers.2.input_layernorm"):
        lora.load_peft(folder, leaves)


def test_tied_checkpoints_keep_their_table(base, copy):
    import dataclasses

    folder = copy("plain")
    key = "base_model.model.model.language_model.embed_tokens.weight"
    edit_tensors(folder, lambda t: t.update({key: np.ones((96, 64), np.float32)}))
    edit_config(folder, modules_to_save=["embed_tokens"])
    params = {k: v for k, v in base.ours.params.items() if k != "lm_head"}
    tied = dataclasses.replace(base.ours.config, tie_word_embeddings=True)
    with pytest.raises(UserError, match="ties to its output layer"):
        qwen3_vl.read_adapter(folder, tied, params)
    untied = qwen3_vl.read_adapter(folder, base.ours.config, base.ours.params)
    assert jax.tree.leaves(untied["params"])[0].shape == (96, 64)
