"""A tiny random reward model, built once for the tests of rewards."""

import dataclasses

import jax
import numpy as np
import pytest

from lrm_jax.qwen3_vl import Qwen3VL, init_params
from lrm_jax.reward_training.config import NanoSize
from lrm_jax.reward_training.nano import nano_config
from lrm_jax.rewards.heads import nano_heads
from lrm_jax.rewards.model import NANO_FOLDER
from lrm_jax.rewards.saving import save_reward_model
from lrm_jax.rewards.tokenizer import Tokenizer

TINY = NanoSize(
    image_size=32,
    vision_depth=2,
    vision_hidden=32,
    vision_heads=2,
    vision_mlp=48,
    deepstack=(0,),
    text_layers=2,
    text_hidden=48,
    text_heads=2,
    text_kv_heads=1,
    text_mlp=64,
)
SENTENCES = (
    "put the red cube on the blue plate",
    "put the green cube on the yellow plate",
    "pick up the purple ball and place it on the white dish",
)


def episode_heads():
    """The nano questions behind a prefix that all frames of an episode share."""
    prompts = {
        "<image:current><task>": "<task><image:initial><image:current>",
        "<image:previous><task><image:current><task>": "<task><image:previous><image:current>",
    }
    made = []
    for head in nano_heads():
        (old,) = [p for p in prompts if f"\n{p}<|im_end|>" in head.prompt]
        made.append(dataclasses.replace(head, prompt=head.prompt.replace(old, prompts[old])))
    return tuple(made)


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.from_folder(NANO_FOLDER)


@pytest.fixture(scope="session")
def tiny(tokenizer):
    """(model, parameters): weights large enough that answers differ clearly."""
    model = Qwen3VL(nano_config(TINY, tokenizer))
    params = init_params(model, jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 200))
    params = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(next(keys), x.shape), params)
    return model, params


@pytest.fixture(scope="session")
def folder(tiny, tokenizer, tmp_path_factory):
    """`tiny` as a model folder; tests that change files work on a copy."""
    model, params = tiny
    path = tmp_path_factory.mktemp("model")
    save_reward_model(path, model.config, params, nano_heads(), tokenizer, (32, 32), "float32")
    return path


@pytest.fixture(scope="session")
def sentences():
    return SENTENCES


@pytest.fixture(scope="session")
def frames():
    """uint8 [7, 3, 32, 32, 3]: seven frames of three environments."""
    return np.random.default_rng(0).integers(0, 256, (7, 3, 32, 32, 3), np.uint8)
