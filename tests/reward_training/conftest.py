"""The torch peer of these tests (see `torch_peer`), and programs that they share."""

import dataclasses

import peft
import pytest
import torch

from lrm_jax.benchmarks import peers
from lrm_jax.reward_training import adapters
from lrm_jax.reward_training.lessons import written_loss
from lrm_jax.rewards.model import NANO_FOLDER
from lrm_jax.rewards.tokenizer import Tokenizer

from .torch_peer import TARGETS


@pytest.fixture(scope="module")
def one_program_a_loss():
    """Compiling takes longest here: runs with the same model and loss share their step, so a module
    trains all of them with one optimiser."""
    original, made = adapters.make_step, {}

    def make_step(model, optimiser, accumulate=1, dropout_seed=None, loss=written_loss, **more):
        key = (model, accumulate, dropout_seed, loss, tuple(more))
        if key not in made:
            made[key] = original(model, optimiser, accumulate, dropout_seed, loss, **more)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapters, "make_step", make_step)
        yield


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """(folder of the base, folder of an adapter, PEFT's model): random weights, non-zero B."""
    folder = tmp_path_factory.mktemp("written")
    tokenizer = Tokenizer.from_folder(NANO_FOLDER)
    tokenizer.inner.add_special_tokens(["<|video_pad|>"])
    tiny = peers.SIZES["tiny"]
    config = dataclasses.replace(
        tiny,
        text_config=dataclasses.replace(tiny.text_config, vocab_size=tokenizer.size + 3),
        **{
            f"{field}_token_id": tokenizer.token_id(f"<|{token}|>")
            for field, token in (
                ("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"),
                ("vision_end", "vision_end"),
            )
        },
    )  # fmt: skip
    hf = peers.random_peer(config, tokenizer, folder / "base")
    theirs = peft.get_peft_model(
        hf,
        peft.LoraConfig(
            r=4, lora_alpha=8, target_modules=rf".*language_model.*\.({'|'.join(TARGETS)})"
        ),
    )
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.05)
    theirs.save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter", theirs
