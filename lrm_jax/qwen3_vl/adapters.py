"""Adapter folders for a Qwen3-VL: read, checked against the model, and made ready to be chosen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax

from lrm_jax import lora
from lrm_jax.qwen3_vl import names
from lrm_jax.qwen3_vl.config import Config
from lrm_jax.run.errors import UserError

Tree = dict[str, Any]


def read_adapter(
    folder: str | os.PathLike[str],
    config: Config,
    params: Tree,
    *,
    allow_identity_adapter: bool = False,
) -> Tree:
    """The adapter tree of a PEFT folder: factors float32, replacements in the dtype of `params`.

    Args:
      folder: of a LoRA adapter for a model with this configuration.
      config, params: of the base.
      allow_identity_adapter: accept an adapter whose every lora_B is zero.

    Raises:
      UserError: as `lora.load_peft`; or the adapter replaces the token table of a tied checkpoint.
    """
    adapter = lora.load_peft(
        folder,
        names.leaves(config),
        spellings=names.SPELLINGS,
        params=params,
        allow_identity_adapter=allow_identity_adapter,
    )
    whole = adapter.get("params", {})
    if config.tie_word_embeddings and "embed_tokens" in whole:
        # In PEFT the output layer would keep the base's table; here both are one leaf.
        raise UserError(
            f"{folder}: it replaces embed_tokens, which this checkpoint ties to its output layer; "
            "that is not supported"
        )
    if whole:
        dtype = jax.tree.leaves(params)[0].dtype
        adapter["params"] = jax.tree.map(lambda x: x.astype(dtype), whole)
    return adapter


def read_adapters(
    folders: Mapping[str, str | os.PathLike[str]],
    config: Config,
    params: Tree,
    *,
    allow_identity_adapter: bool = False,
) -> tuple[Tree, tuple[Tree | None, ...]]:
    """Adapters to be chosen row by row.

    Returns:
      The "lora" collection, stacked in the order of `folders`; and for each adapter its own vision
      tower (parameters of "visual"), or None where it sees with the base's.

    Raises:
      UserError: as `read_adapter`; or an adapter replaces weights outside of the vision tower.
    """
    adapters = []
    for folder in folders.values():
        adapter = read_adapter(
            folder, config, params, allow_identity_adapter=allow_identity_adapter
        )
        for key in adapter.get("params", {}):
            if key != "visual":
                raise UserError(
                    f"{folder}: modules_to_save replaces {key}; of whole modules only the vision "
                    "tower can be chosen by row, so merge this adapter (lora.merge)"
                )
        adapters.append(adapter)
    towers = tuple(
        lora.overlaid(params["visual"], a["params"]["visual"]) if "params" in a else None
        for a in adapters
    )
    return lora.stack(adapters), towers
