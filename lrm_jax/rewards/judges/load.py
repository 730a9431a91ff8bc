"""Judges from checkpoint folders."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from lrm_jax import lora
from lrm_jax.qwen3_vl import Qwen3VL, read_adapter, resize, weights
from lrm_jax.rewards.judges import prompts as prompts_file
from lrm_jax.rewards.judges import robometer
from lrm_jax.rewards.judges.judge import Judge
from lrm_jax.rewards.judges.robometer import Robometer
from lrm_jax.rewards.judges.roboreward import RoboReward
from lrm_jax.rewards.judges.topreward import TOPReward
from lrm_jax.rewards.tokenizer import Tokenizer
from lrm_jax.run.errors import UserError, did_you_mean

JUDGES: dict[str, type[Judge]] = {
    "topreward": TOPReward,
    "roboreward": RoboReward,
    "robometer": Robometer,
}


def load_judge(
    name: str,
    folder: str | os.PathLike[str],
    *,
    adapter: str | os.PathLike[str] | None = None,
    prompts: str | os.PathLike[str] | None = None,
    dtype: str = "float32",
    **settings: Any,
) -> Judge:
    """Loads a judge.

    Args:
      name: "topreward", "roboreward" or "robometer".
      folder: a Qwen3-VL checkpoint: a plain one for TOPReward, the published one for the others.
      adapter: a PEFT folder for it.
      prompts: a file with the judge's wording (`judges.prompts`); without one our own is used,
        which published checkpoints were not trained on.
      dtype: "float32" or "bfloat16", of parameters and computation.
      settings: of the judge (`max_frames`, `fps`, `image_size`, `low`, `expectation`, `pooling`,
        ...), see its class.
    Raises:
      UserError: an unknown judge or setting; a folder, adapter or file that is missing or damaged.
    """
    if name not in JUDGES:
        raise UserError(f"judge {name!r}: {did_you_mean(name, JUDGES)}")
    kind, folder = JUDGES[name], Path(folder)
    given = {"config", "model", "variables", "tokenizer", "prompt", "bounds", "head"}
    known = {f.name for f in dataclasses.fields(kind)} - given
    for setting in settings:
        if setting not in known:
            raise UserError(f"{name} has no setting {setting!r}: {did_you_mean(setting, known)}")
    config = weights.read_config(folder)
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.size > config.text_config.vocab_size:
        raise UserError(
            f"{folder}: tokenizer.json has {tokenizer.size} tokens, the model only "
            f"{config.text_config.vocab_size}: they do not belong together"
        )
    prompt = prompts_file.OURS[name] if prompts is None else prompts_file.read_prompt(prompts, name)
    beside: tuple[str, ...] = ()
    if kind is Robometer:
        settings = {
            **robometer.read_settings(folder),
            **settings,
            "head": robometer.read_head(folder),
        }
        # Its language head is never read, so a checkpoint may come with or without one.
        config, beside = dataclasses.replace(config, tie_word_embeddings=True), robometer.BESIDE
    params = weights.read_params(folder, config, dtype, beside=beside)
    variables: dict[str, Any] = {"params": params}
    if adapter is not None:
        variables = lora.variables(params, read_adapter(adapter, config, params))
    return kind(
        config=config,
        model=Qwen3VL(config, dtype=jnp.dtype(dtype)),
        variables=variables,
        tokenizer=tokenizer,
        prompt=prompt,
        bounds=resize.read_bounds(folder, "image" if kind is Robometer else "video"),
        **settings,
    )
