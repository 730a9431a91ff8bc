"""Adapters that PEFT trained in torch on a tiny random Qwen3-VL: the oracle of these tests."""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from qwen3_vl.conftest import (  # noqa: F401 - the two fixtures are used by every test
    exact_matmuls,
    quick_compilation,
)

from lrm_jax import qwen3_vl
from lrm_jax.benchmarks.parity_cases import (
    Pair,
    batch_of,
    hf_config,
    make_pair,
    relative,
    tensors,
)

# Two unrolled and two scanned layers, two vision segments of which one stacks two blocks.
VISION = dict(
    depth=3, hidden_size=24, intermediate_size=40, num_heads=2, deepstack_visual_indexes=[0, 2]
)
TEXT = dict(num_hidden_layers=4)
BATCH = batch_of([[2, ("image", 4, 4), 5], [4, ("image", 4, 2), 2, ("image", 2, 4), 3]], "left")
REAL = BATCH["attention_mask"] == 1

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
# What each adapter is there for stands in its name.
ADAPTERS = {
    "plain": dict(r=3, lora_alpha=6, target_modules=ATTENTION),
    "rslora_all_linear": dict(r=4, lora_alpha=3, target_modules="all-linear", use_rslora=True),
    "patterns": dict(
        r=2,
        lora_alpha=5,
        target_modules=r".*language_model\..*\.(q_proj|up_proj|down_proj)",
        rank_pattern={
            r"layers\.0\.self_attn\.q_proj": 5, r"layers\.[03]\.mlp\.up_proj": 1, "q_proj": 3,
        },
        alpha_pattern={r"layers\.3\..*": 7, "down_proj": 1},
    ),
    "convolution_and_head": dict(
        r=3, lora_alpha=3, target_modules=["proj", "linear_fc1", "lm_head"],
        exclude_modules=["deepstack_merger_list.1.linear_fc1"],
    ),
    "some_layers": dict(
        r=2, lora_alpha=2, target_modules=["v_proj", "qkv"], layers_to_transform=[1, 2],
    ),
    "tower": dict(
        r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], modules_to_save=["visual"],
    ),
    "merger": dict(r=2, lora_alpha=4, target_modules=["o_proj", "qkv"], modules_to_save=["merger"]),
}  # fmt: skip


def loss_of(model, batch) -> torch.Tensor:
    """Mean next-token cross entropy of the real tokens."""
    given = tensors(batch)
    scores = torch.log_softmax(model(**given).logits[:, :-1], -1)
    picked = torch.gather(scores, -1, given["input_ids"][:, 1:, None])[..., 0]
    real = (given["attention_mask"][:, 1:] & given["attention_mask"][:, :-1]).float()
    return -(picked * real).sum() / real.sum()


def wrapped(pair: Pair, seed: int = 0, **settings) -> peft.PeftModel:
    """PEFT around a copy of the pair's network."""
    torch.manual_seed(seed)
    settings = copy.deepcopy(settings)
    model = peft.get_peft_model(copy.deepcopy(pair.hf), peft.LoraConfig(**settings))
    return model.eval()


def loaded(pair: Pair, folder, **settings) -> peft.PeftModel:
    """What PEFT makes of an adapter folder."""
    return peft.PeftModel.from_pretrained(copy.deepcopy(pair.hf), folder, **settings).eval()


def torch_logits(model, batch=BATCH) -> np.ndarray:
    with torch.no_grad():
        return model(**tensors(batch)).logits.float().numpy()


def train(model, steps: int = 3, rate: float = 0.02) -> None:
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, BATCH).backward()
        optimizer.step()


@dataclasses.dataclass
class Trained:
    """Adapter folders that PEFT wrote, and what their networks say about BATCH."""

    folders: dict[str, Path]
    logits: dict[str | None, np.ndarray]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Matrices this small cost torch's threads more in waiting for each other than in work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Pair:
    config = hf_config(VISION, TEXT, tie_word_embeddings=False)
    return make_pair(tmp_path_factory.mktemp("base"), config)


@pytest.fixture(scope="session")
def trained(base, tmp_path_factory) -> Trained:
    folders, logits = {}, {None: base.hf_logits(BATCH)}
    for seed, (name, settings) in enumerate(ADAPTERS.items()):
        model = wrapped(base, seed, **settings)
        train(model)
        folders[name] = tmp_path_factory.mktemp("adapters") / name
        model.save_pretrained(folders[name])
        # Read back: PEFT sorts the patterns it saves, and the first that matches holds.
        logits[name] = torch_logits(loaded(base, folders[name]))
        # The adapter matters, otherwise no comparison with it could fail.
        assert relative(logits[name][REAL], logits[None][REAL]) > 0.02, name
    return Trained(folders, logits)


@pytest.fixture(scope="session")
def leaves(base):
    return qwen3_vl.leaves(base.ours.config)


@pytest.fixture(scope="session")
def read(base):
    """`read_adapter` for the base of these tests."""
    ours = base.ours
    return functools.partial(qwen3_vl.read_adapter, config=ours.config, params=ours.params)
