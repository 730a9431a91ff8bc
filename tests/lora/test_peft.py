"""Adapters between PEFT and here: what PEFT trained gives the same logits, and back."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.numpy

from lrm_jax import lora, qwen3_vl
from lrm_jax.qwen3_vl import generate
from lrm_jax.qwen3_vl.batching import pack

from .conftest import ADAPTERS, BATCH, REAL, relative, torch_logits

# Float32 sums of a hundred terms err by about 1e-6 of their scale, and seven layers of each side
# add a few of those. A wrong scale, rank or layer shows at 1e-2 (the adapters move the logits by
# more than 0.02).
LOGITS = 1e-5


@pytest.fixture(scope="module")
def ours(base, trained):
    return qwen3_vl.from_pretrained(base.folder, adapters=trained.folders)


@pytest.mark.parametrize("name", ADAPTERS)
def test_logits_of_each_adapter(ours, trained, name):
    got = ours.logits(**BATCH, adapter=name)
    assert relative(got[REAL], trained.logits[name][REAL]) < LOGITS


def test_rows_of_one_batch_have_their_own_adapters(ours, trained):
    """N stacked rows equal N forwards of PEFT, own vision towers included."""
    for chosen in (["patterns", "plain"], ["tower", None], ["merger", "tower"], [None, "merger"]):
        got = ours.logits(**BATCH, adapter=chosen)
        for row, name in enumerate(chosen):
            real = REAL[row]
            assert relative(got[row][real], trained.logits[name][row][real]) < LOGITS


def test_only_towers_in_use_are_encoded(ours):
    assert [tower is not None for tower in ours.towers] == [
        n in ("tower", "merger") for n in ADAPTERS
    ]
    batch = pack(ours.config, BATCH)
    ids = np.array([ours.adapters.index("tower")] * 2, np.int32)
    assert len(ours._towers(batch, ids).trees) == 1
    ids[0] = -1
    assert len(ours._towers(batch, ids).trees) == 2


def test_one_adapter_by_its_own_tree(base, trained, read):
    """Not stacked, without ids: as training and scoring run it."""
    batch, (rows, length) = pack(base.ours.config, BATCH), BATCH["input_ids"].shape
    tree = lora.variables(base.ours.params, read(trained.folders["patterns"]))
    got = generate.logits(base.ours.model, tree["params"], tree["lora"], batch, None)
    assert relative(got[:rows, :length][REAL], trained.logits["patterns"][REAL]) < LOGITS


def test_generation_sees_the_adapter_and_its_tower(base, ours, trained, read):
    got = ours.generate(**BATCH, max_new_tokens=3, adapter=["tower", None])
    merged = lora.merge(base.ours.params, read(trained.folders["tower"]))
    for row, params in enumerate((merged, base.ours.params)):
        alone = qwen3_vl.Backbone(base.ours.config, params, base.ours.model)
        want = alone.generate(**BATCH, max_new_tokens=3)
        np.testing.assert_array_equal(got[row], want[row])
    assert (got[0] != base.ours.generate(**BATCH, max_new_tokens=3)[0]).any()


@pytest.mark.parametrize("name", ADAPTERS)
def test_written_again_peft_reads_the_same(base, trained, leaves, read, tmp_path, name):
    """Bit by bit: PEFT's file, our tree, our file, PEFT's network."""
    config = lora.read_config(trained.folders[name])
    lora.save_peft(tmp_path, read(trained.folders[name]), config, leaves, base_model="some/base")
    model = peft.PeftModel.from_pretrained(copy.deepcopy(base.hf), tmp_path).eval()
    np.testing.assert_array_equal(torch_logits(model), trained.logits[name])
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"]
    # And the configuration means the same after a round trip of its own.
    assert lora.read_config(tmp_path) == config
    again = read(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again, read(trained.folders[name]))


def test_float32_adapter_over_a_bfloat16_base(base, trained):
    """As close to float32 as PEFT's bfloat16 over the same base, and the factors stay float32."""
    ours = qwen3_vl.from_pretrained(
        base.folder, dtype="bfloat16", adapters={"tower": trained.folders["tower"]}
    )
    assert {x.dtype for x in jax.tree.leaves(ours.lora)} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(ours.towers)} == {jnp.dtype("bfloat16")}
    half = copy.deepcopy(base.hf).bfloat16()
    theirs = torch_logits(peft.PeftModel.from_pretrained(half, trained.folders["tower"]).eval())
    exact = trained.logits["tower"]
    rms = lambda x: float(np.sqrt(np.mean((x - exact)[REAL] ** 2)))  # noqa: E731
    # Both round some hundred numbers on the way, in another order: equal in the mean.
    assert rms(ours.logits(**BATCH, adapter="tower")) < 1.4 * rms(theirs)


# --- names of other times ---

OLD = {
    "transformers 4.5": {"model.language_model.": "model.", "model.visual.": "visual."},
    "causal": {"model.language_model.": "language_model.model.", "model.visual.": "visual."},
    "outer": {"model.language_model.": "language_model.", "model.visual.": "model.visual."},
    "inner": {"model.language_model.": "model.language_model.model."},
}


def respelled(folder, to, beginnings):
    """A copy of an adapter folder whose names, patterns included, begin otherwise."""
    to.mkdir()
    found = safetensors.numpy.load_file(folder / "adapter_model.safetensors")

    def spelled(key):
        name = key.removeprefix("base_model.model.")
        for ours, theirs in beginnings.items():
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
                break
        return "base_model.model." + name

    found = {spelled(k): v for k, v in found.items()}
    safetensors.numpy.save_file(found, to / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    if isinstance(config["target_modules"], str):
        # A pattern for whole names, as its author saw them.
        begin = beginnings["model.language_model."].replace(".", r"\.")
        config["target_modules"] = begin + r"layers\..*\.(q_proj|up_proj|down_proj)"
    (to / "adapter_config.json").write_text(json.dumps(config))
    return to


@pytest.mark.parametrize("style", OLD)
@pytest.mark.parametrize("name", ["patterns", "tower"])
def test_names_of_other_versions(trained, read, tmp_path, style, name):
    folder = respelled(trained.folders[name], tmp_path / "old", OLD[style])
    want = read(trained.folders[name])
    jax.tree.map(np.testing.assert_array_equal, read(folder), want)


def test_wrappers_within_wrappers(trained, read, tmp_path):
    """modules_to_save with visual and the merger in it: the inner wrapper's weights hold."""
    folder = trained.folders["tower"]
    found = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    nested = {}
    for key, value in found.items():
        if ".visual.merger." in key:
            outer = key.replace(".visual.merger.", ".visual.modules_to_save.default.merger.")
            inner = "merger.modules_to_save.default."
            nested[outer.replace("merger.", inner, 1)] = value
            nested[outer.replace("merger.", "merger.original_module.", 1)] = value + 1
            nested[key] = value + 2  # The outer wrapper's own view, which nothing runs.
        elif ".visual." in key:
            nested[key.replace(".visual.", ".visual.modules_to_save.")] = value
            nested[key.replace(".visual.", ".visual.original_module.")] = value + 3
        else:
            nested[key.replace(".weight", ".default.weight")] = value
    safetensors.numpy.save_file(nested, tmp_path / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["modules_to_save"] = ["visual", "merger"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    jax.tree.map(np.testing.assert_array_equal, read(tmp_path), read(folder))


def test_the_order_of_overlapping_modules_does_not_matter(base, trained, tmp_path):
    """A file that PEFT wrote for both; PEFT 0.21 saves it and cannot read it again."""
    from .conftest import train, wrapped

    settings = {**ADAPTERS["tower"], "modules_to_save": ["visual", "merger"]}
    model = wrapped(base, 3, **settings)
    train(model, 2)
    model.save_pretrained(tmp_path)
    ours = qwen3_vl.from_pretrained(base.folder, adapters={"both": tmp_path})
    assert relative(ours.logits(**BATCH, adapter="both")[REAL], torch_logits(model)[REAL]) < LOGITS
