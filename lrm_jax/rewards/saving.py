"""A reward model's folder, written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lrm_jax.qwen3_vl import Config, weights
from lrm_jax.rewards import calibration
from lrm_jax.rewards.calibration import HeadCalibration
from lrm_jax.rewards.heads import Head, save_heads
from lrm_jax.rewards.tokenizer import Tokenizer
from lrm_jax.run import atomic


def save_reward_model(
    folder: str | os.PathLike[str],
    config: Config,
    params: Any,
    heads: Sequence[Head],
    tokenizer: Tokenizer,
    image_size: tuple[int, int] | None,
    dtype: str = "bfloat16",
    corrections: Mapping[str, HeadCalibration] | None = None,
) -> None:
    """Writes config.json, model.safetensors, tokenizer.json and reward_heads.json into `folder`."""
    kind = weights.DTYPES[dtype]
    weights.save_pretrained(
        folder, config, jax.tree.map(lambda x: np.asarray(x).astype(kind), params)
    )
    atomic.write_bytes(
        Path(folder) / "tokenizer.json", tokenizer.inner.to_str(pretty=True).encode()
    )
    extra: dict[str, Any] = {"image_size": None if image_size is None else list(image_size)}
    if corrections:
        extra[calibration.ENTRY] = calibration.to_plain(corrections)
    save_heads(folder, heads, extra)
