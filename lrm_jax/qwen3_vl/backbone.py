"""A loaded model with the calls of transformers: processor outputs in, logits or tokens out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lrm_jax.qwen3_vl import generate, weights
from lrm_jax.qwen3_vl.batching import Batch, bucket, pack
from lrm_jax.qwen3_vl.config import Config
from lrm_jax.qwen3_vl.model import Qwen3VL
from lrm_jax.run.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A model with its parameters, and LoRA adapters stacked in the order of their names.

    params: the parameter tree. lora: the "lora" collection with a leading adapter axis, or None.
    """

    config: Config
    params: Any
    model: Qwen3VL
    adapters: tuple[str, ...] = ()
    lora: Any = None

    def logits(
        self, *, adapter: str | Sequence[str | None] | None = None, **processor_outputs: Any
    ) -> np.ndarray:
        """Next-token logits, float32 [B, S, V], of what a transformers processor returned.

        Args:
          adapter: one name for all rows or one per row; None is the base model.
          processor_outputs: numpy arrays (or CPU tensors): input_ids, attention_mask, pixel_values,
            image_grid_thw, pixel_values_videos, video_grid_thw. Padding may be on either side;
            values at padded places are undefined.

        Raises:
          UserError: an adapter that is not loaded.
          ValueError: arrays that do not fit together.
        """
        batch, ids = self._prepare(processor_outputs, adapter)
        out = generate.logits(self.model, self.params, self.lora, batch, ids)
        rows, length = np.shape(processor_outputs["input_ids"])
        return np.asarray(out[:rows, :length])

    def generate(
        self,
        *,
        max_new_tokens: int = 32,
        adapter: str | Sequence[str | None] | None = None,
        **processor_outputs: Any,
    ) -> np.ndarray:
        """Greedy continuation, int32 [B, N], N <= max_new_tokens: new tokens only, no prompt.

        A row ends with a stop token of the configuration and is padded from there (with
        pad_token_id, or the first stop token if there is none); all end when the last row does.
        Arguments and errors otherwise as in `logits`.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
        batch, ids = self._prepare(processor_outputs, adapter)
        stops, pad = self.config.eos_token_id, self.config.pad_token_id
        if pad is None:
            pad = stops[0] if stops else 0
        tokens, used = generate.greedy(
            self.model, self.params, self.lora, batch, ids, np.int32(max_new_tokens),
            slots=bucket(max_new_tokens, 32), stops=stops, pad=pad,
        )  # fmt: skip
        return np.asarray(tokens)[: len(processor_outputs["input_ids"]), : int(used)]

    def _prepare(self, outputs: dict[str, Any], adapter: Any) -> tuple[Batch, np.ndarray | None]:
        batch = pack(self.config, outputs)
        rows = len(outputs["input_ids"])
        chosen = [adapter] * rows if adapter is None or isinstance(adapter, str) else list(adapter)
        if len(chosen) != rows:
            raise ValueError(f"adapter names {len(chosen)} rows, the batch has {rows}")
        ids = np.full(len(batch.real), -1, np.int32)
        for row, name in enumerate(chosen):
            if name is None:
                continue
            if name not in self.adapters:
                raise UserError(
                    f"adapter {name!r} is not loaded; {did_you_mean(name, self.adapters)}"
                )
            ids[row] = self.adapters.index(name)
        return batch, (None if self.lora is None else ids)


def from_pretrained(
    folder: str | os.PathLike,
    dtype: str = "float32",
    adapters: Mapping[str, str | os.PathLike] | None = None,
) -> Backbone:
    """Loads a checkpoint folder of dense Qwen3-VL as it stands on the hub.

    Args:
      folder: `config.json` and safetensors, single or sharded.
      dtype: "float32" or "bfloat16", of the parameters and of the computation.
      adapters: PEFT folders by name.

    Raises:
      UserError: the folder is not such a checkpoint, or is damaged; see `weights`. Any adapters:
        reading PEFT folders is not built yet.
    """
    if adapters:
        raise UserError(
            "adapters: this version cannot read PEFT folders; merge the adapter into the checkpoint"
        )
    config = weights.read_config(folder)
    params = weights.read_params(folder, config, dtype)
    return Backbone(config, params, Qwen3VL(config, dtype=jnp.dtype(dtype)))
