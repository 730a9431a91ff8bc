"""Configurations are read as PEFT reads them: PEFT's own functions are the oracle."""

import math

import peft
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from lrm_jax import lora
from lrm_jax.run.errors import UserError

MODULES = [
    f"model.language_model.layers.{i}.{m}"
    for i in (0, 1, 11)
    for m in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj")
]
MODULES += [f"model.visual.blocks.{i}.attn.proj" for i in (0, 1)]
MODULES += ["model.visual.patch_embed.proj", "model.visual.merger.linear_fc1", "lm_head"]
NAMES = ["q_proj", "proj", "attn.proj", "up_proj", "o_proj", "linear_fc1", "lm_head", *MODULES]
PATTERNS = [r"layers\.1\..*", "q_proj", r"layers\.[01]\.mlp\.up_proj", "proj", "lm_head", ".*"]


@given(
    st.sampled_from(MODULES),
    st.one_of(
        st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
        st.sampled_from([r".*language_model.*_proj", r"model\.visual.*", "proj"]),
    ),
    st.one_of(st.just([]), st.lists(st.sampled_from(NAMES), max_size=2), st.just(".*visual.*")),
    st.lists(st.sampled_from(["visual", "merger", "layers.1"]), max_size=2),
    st.one_of(st.none(), st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=2)),
    st.sampled_from([None, ["layers"], ["blocks"], ["layers", "blocks"]]),
)
def test_targets(module, targets, exclude, saved, layers, pattern):
    if isinstance(targets, str) or layers is None:
        layers = pattern = None
    theirs = peft.LoraConfig(
        target_modules=targets,
        exclude_modules=exclude or None,
        modules_to_save=saved or None,
        layers_to_transform=layers,
        layers_pattern=pattern,
    )
    raw = theirs.to_dict() | {"r": 8, "lora_alpha": 8}
    ours = lora.LoraConfig.from_peft({**raw, "peft_type": "LORA"})
    found = check_target_module_exists(theirs, module)
    assert ours.targets_module(module) == bool(found)


@given(
    st.sampled_from(MODULES),
    st.lists(st.tuples(st.sampled_from(PATTERNS), st.integers(1, 9)), max_size=3),
    st.lists(st.tuples(st.sampled_from(PATTERNS), st.integers(1, 9)), max_size=3),
    st.booleans(),
)
def test_ranks_and_scales(module, ranks, alphas, rslora):
    ranks, alphas = dict(ranks), dict(alphas)
    config = lora.LoraConfig(
        rank=4, alpha=6, rank_pattern=ranks, alpha_pattern=alphas, rslora=rslora
    )
    rank = ranks.get(get_pattern_key(ranks.keys(), module), 4)
    alpha = alphas.get(get_pattern_key(alphas.keys(), module), 6)
    assert config.rank_of(module) == rank
    assert config.scale_of(module) == alpha / (math.sqrt(rank) if rslora else rank)


def test_all_linear_leaves_out_what_is_not_meant():
    config = lora.LoraConfig(rank=1, alpha=1)
    assert config.targets_module("a.q_proj") and not config.targets_module("a.conv", linear=False)


def test_a_round_trip_through_pefts_own_class():
    config = lora.LoraConfig(
        rank=3, alpha=5, targets=("q_proj", "o_proj"), exclude=("layers.0.self_attn.q_proj",),
        rslora=True, dropout=0.25, modules_to_save=("merger",), rank_pattern={"q_proj": 2},
        alpha_pattern={"o_proj": 7}, layers=(0, 2), layers_pattern=("layers",),
    )  # fmt: skip
    theirs = peft.LoraConfig.from_peft_type(**config.to_peft("base"))
    assert isinstance(theirs, peft.LoraConfig) and theirs.base_model_name_or_path == "base"
    back = theirs.to_dict() | {"peft_type": "LORA"}
    for field in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
        back[field] = sorted(back[field])
    again = lora.LoraConfig.from_peft(back)
    assert set(again.targets) == set(config.targets)
    assert lora.LoraConfig.from_peft(config.to_peft()) == config
    assert again.rank_pattern == config.rank_pattern and again.layers == config.layers


RAW = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "use_dora = True is not supported"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"target_parameters": ["x.weight"]}, "target_parameters"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"use_qalora": True}, "use_qalora"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying"),
        ({"a_field_of_next_year": 1}, "a_field_of_next_year"),
        ({"r": None}, "r is missing"),
        ({"lora_alpha": None}, "lora_alpha is missing"),
        ({"target_modules": None}, "target_modules is missing"),
        ({"r": 0}, "rank is 0"),
        ({"r": "8"}, "rank is '8'"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern q_proj is 0"),
        ({"rank_pattern": {"(": 1}}, "no regular expression"),
        ({"lora_alpha": -1}, "alpha is -1"),
        ({"lora_dropout": 1.0}, "dropout is 1.0"),
        ({"target_modules": [3]}, "targets is"),
        ({"target_modules": []}, "targets is empty"),
        ({"target_modules": ".*", "layers_to_transform": [1]}, "layers: only with"),
    ],
)
def test_what_is_not_supported_is_said(change, message):
    assert lora.LoraConfig.from_peft(RAW).rank == 2
    with pytest.raises(UserError) as error:
        lora.LoraConfig.from_peft(RAW | change, "some/adapter_config.json")
    assert str(error.value).startswith("some/adapter_config.json: ")
    assert message in str(error.value)
