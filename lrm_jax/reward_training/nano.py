"""`lrm-nano`: a Qwen3-VL of a few million parameters with random weights, ready to be trained."""

from __future__ import annotations

from lrm_jax.qwen3_vl import Config
from lrm_jax.reward_training.config import NanoSize
from lrm_jax.rewards.tokenizer import (
    END_OF_TEXT,
    IM_END,
    IMAGE_PAD,
    VISION_END,
    VISION_START,
    Tokenizer,
)


def nano_config(size: NanoSize, tokenizer: Tokenizer) -> Config:
    """The network's configuration: sizes from `size`, vocabulary and special ids from the
    tokenizer."""
    ids = {
        "image": tokenizer.token_id(IMAGE_PAD),
        "video": tokenizer.token_id("<|video_pad|>"),
        "vision_start": tokenizer.token_id(VISION_START),
        "vision_end": tokenizer.token_id(VISION_END),
        "end": tokenizer.token_id(IM_END),
        "pad": tokenizer.token_id(END_OF_TEXT),
    }
    return size.model(ids, tokenizer.size)
