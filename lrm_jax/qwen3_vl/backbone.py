"""A loaded model with the calls of transformers: processor outputs in, logits or tokens out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lrm_jax.parallel.mesh import MeshConfig, make_mesh, under
from lrm_jax.qwen3_vl import generate, sharding, weights
from lrm_jax.qwen3_vl.adapters import read_adapters
from lrm_jax.qwen3_vl.batching import Batch, bucket, pack
from lrm_jax.qwen3_vl.config import Config
from lrm_jax.qwen3_vl.model import Qwen3VL
from lrm_jax.run.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A model with its parameters, and LoRA adapters stacked in the order of their names.

    params: the parameter tree. lora: the "lora" collection with a leading adapter axis, or None.
    towers: for each adapter the parameters of its own vision tower, or None; empty if none has one.
    mesh: that parameters are cut and rows are computed over, or None for one device.
    """

    config: Config
    params: Any
    model: Qwen3VL
    adapters: tuple[str, ...] = ()
    lora: Any = None
    towers: tuple[Any, ...] = ()
    mesh: Mesh | None = None

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
        with under(self.mesh):
            batch, ids = self._prepare(processor_outputs, adapter)
            towers = self._towers(batch, ids)
            out = generate.logits(self.model, self.params, self.lora, batch, ids, towers)
        rows, length = np.shape(processor_outputs["input_ids"])
        return np.asarray(out)[:rows, :length]

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
        stops, pad = self.config.eos_token_id, self.config.pad_token_id
        if pad is None:
            pad = stops[0] if stops else 0
        with under(self.mesh):
            batch, ids = self._prepare(processor_outputs, adapter)
            tokens, used = generate.greedy(
                self.model, self.params, self.lora, batch, ids, np.int32(max_new_tokens),
                self._towers(batch, ids), slots=bucket(max_new_tokens, 32), stops=stops, pad=pad,
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

    def _towers(self, batch: Batch, ids: np.ndarray | None) -> generate.Towers | None:
        """The towers that these rows see with, and which one each; None if it is all the base's."""
        if ids is None or not any(tree is not None for tree in self.towers):
            return None
        own = [-1 if i < 0 or self.towers[i] is None else int(i) for i in ids]
        used = sorted({i for i, real in zip(own, batch.real, strict=True) if real})
        trees = tuple(self.params["visual"] if i < 0 else self.towers[i] for i in used)
        places = [used.index(i) if i in used else 0 for i in own]
        return generate.Towers(trees, np.asarray(places, np.int32))


def from_pretrained(
    folder: str | os.PathLike,
    dtype: str = "float32",
    adapters: Mapping[str, str | os.PathLike] | None = None,
    allow_identity_adapter: bool = False,
    mesh: Mesh | MeshConfig | str | None = None,
) -> Backbone:
    """Loads a checkpoint folder of dense Qwen3-VL as it stands on the hub.

    Args:
      folder: `config.json` and safetensors, single or sharded.
      dtype: "float32" or "bfloat16", of the parameters and of the computation.
      adapters: PEFT folders by name. Their factors are float32 whatever the dtype. One may have a
        vision tower of its own (modules_to_save): rows that pick it see with that.
      allow_identity_adapter: accept an adapter whose every lora_B is zero.
      mesh: devices to compute on, e.g. "fsdp=-1" for all of them: parameters go straight from the
        files to their shards.

    Raises:
      UserError: the folder is not such a checkpoint, or is damaged; see `weights`. An adapter is
        damaged, does not fit or does nothing; see `lora.load_peft`.
    """
    config = weights.read_config(folder)
    if mesh is not None and not isinstance(mesh, Mesh):
        mesh = make_mesh(mesh)
    homes = None if mesh is None else sharding.homes(config, mesh)
    params = weights.read_params(folder, config, dtype, homes)
    model = Qwen3VL(config, dtype=jnp.dtype(dtype))
    if not adapters:
        return Backbone(config, params, model, mesh=mesh)
    lora, towers = read_adapters(
        adapters, config, params, allow_identity_adapter=allow_identity_adapter
    )
    if mesh is not None:
        lora = sharding.place_adapter({"lora": lora}, mesh)["lora"]
        towers = tuple(None if t is None else jax.device_put(t, homes["visual"]) for t in towers)
    return Backbone(config, params, model, tuple(adapters), lora, towers, mesh)
