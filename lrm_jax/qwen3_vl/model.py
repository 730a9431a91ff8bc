"""Qwen3-VL: images to features, tokens and features to hidden states, hidden states to logits.

Pure and shape-static: indices, positions and masks are inputs (see `inputs.py`). Technical report:
Qwen3-VL, arXiv 2511.21631; DeepStack, arXiv 2406.04334.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.parallel.mesh import ROW_AXES, constrain
from lrm_jax.qwen3_vl import names
from lrm_jax.qwen3_vl.attention import Mask
from lrm_jax.qwen3_vl.config import Config
from lrm_jax.qwen3_vl.inputs import VisionFeatures, VisionInputs
from lrm_jax.qwen3_vl.layers import Linear
from lrm_jax.qwen3_vl.text import KVCache, TextModel, num_unrolled
from lrm_jax.qwen3_vl.vision import VisionTower


class Qwen3VL(nn.Module):
    """The network.

    Attributes:
      config: sizes.
      dtype: of the computation; parameters are cast to it where they are used.
      remat: "none", "full" or "dots" (see `remat.py`), for both towers.
      param_dtype: of parameters that `init` makes; None for `dtype`.
      attention: "xla", "splash" (TPU) or "cudnn" (NVIDIA, bfloat16), for both towers; passes over a
        KV cache are always "xla" (see `attention.py`).
    """

    config: Config
    dtype: Any = jnp.float32
    remat: str = "none"
    param_dtype: Any = None
    attention: str = "xla"

    def setup(self):
        text = self.config.text_config
        param_dtype = self.param_dtype or self.dtype
        kinds = dict(dtype=self.dtype, param_dtype=param_dtype)
        towers = dict(remat=self.remat, attention=self.attention, **kinds)
        self.visual = VisionTower(self.config.vision_config, **towers)
        self.language_model = TextModel(self.config, **towers)
        self.embed_tokens = self.param(
            "embed_tokens",
            nn.initializers.normal(text.initializer_range),
            (text.vocab_size, text.hidden_size),
            param_dtype,
        )
        if not self.config.tie_word_embeddings:
            self.lm_head = Linear(text.vocab_size, use_bias=False, **kinds)

    def encode(
        self, vision_inputs: VisionInputs, adapter_ids: jax.Array | None = None
    ) -> VisionFeatures:
        """Encodes N images; adapter_ids int32 [N] where LoRA adapters are stacked (-1: none)."""
        return self.visual(vision_inputs, adapter_ids)

    def hidden(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        valid: jax.Array | Mask,
        visual_index: jax.Array,
        features: VisionFeatures | None,
        adapter_ids: jax.Array | None = None,
    ) -> jax.Array:
        """Hidden states after the final norm.

        Args:
          tokens: int32 [B, S]; whatever stands at an image place is replaced.
          positions: int32 [3, B, S], (time, row, column) of each token.
          valid: bool [B, S], False for padding on either side (attention is causal); or the whole
            mask, a Mask or bool [B, S, S], which place (first) may look where (second; "xla" only).
            States of padding are undefined, but finite.
          visual_index: int32 [B, S]; -1 for text, n*M + m for token m of image n.
          features: encoded images that all rows share, or each row's own (`VisionFeatures.by_row`;
            n then counts within the row), or None for text only (a program of its own).
          adapter_ids: int32 [B], adapter of each row where LoRA adapters are stacked (-1: none).

        Returns:
          [B, S, D] in `dtype`.
        """
        whole = isinstance(valid, Mask) or valid.ndim == 3
        mask = valid if whole else Mask(valid=valid, causal=True)
        embeds, additions = self._embed(tokens, visual_index, features)
        return self.language_model(embeds, positions, mask, additions, None, adapter_ids)[0]

    def extend(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        valid: jax.Array,
        visual_index: jax.Array,
        features: VisionFeatures | None,
        cache: KVCache,
        adapter_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """`hidden` for S tokens that follow those in the cache, and the cache that includes them.

        The caller sees to it that cache.length + S fits the slots: past the end, writes would be
        clamped.
        """
        length, slots = tokens.shape[1], cache.valid.shape[1]
        known = jax.lax.dynamic_update_slice_in_dim(cache.valid, valid, cache.length, axis=1)
        reach = jnp.arange(slots) <= cache.length + jnp.arange(length)[:, None]
        embeds, additions = self._embed(tokens, visual_index, features)
        mask = reach & known[:, None, :]
        hidden, cache = self.language_model(embeds, positions, mask, additions, cache, adapter_ids)
        return hidden, cache.replace(valid=known, length=cache.length + length)

    def logits(self, hidden: jax.Array, adapter_ids: jax.Array | None = None) -> jax.Array:
        """float32 [B, ..., V] from hidden states [B, ..., D].

        adapter_ids int32 [B] matter only where stacked adapters reach an untied output layer.
        """
        if not self.config.tie_word_embeddings:
            return self.lm_head(hidden, adapter_ids).astype(jnp.float32)
        table = self.embed_tokens.astype(self.dtype)
        return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)

    def _embed(self, tokens, visual_index, features):
        """Token embeddings with images in place, and DeepStack's additions for the first layers."""
        embeds = jnp.take(self.embed_tokens, tokens, axis=0, mode="clip").astype(self.dtype)
        if features is None:
            return embeds, []
        visual = (visual_index >= 0)[..., None]
        index = jnp.maximum(visual_index, 0)

        def place(images, otherwise):
            images = images.astype(self.dtype)
            if images.ndim == 4:  # each row's own: nothing moves between devices
                flat = constrain(images.reshape(len(tokens), -1, images.shape[-1]), ROW_AXES)
                found = jnp.take_along_axis(flat, index[..., None], axis=1, mode="clip")
            else:
                flat = images.reshape(-1, images.shape[-1])
                found = jnp.take(flat, index, axis=0, mode="clip")
            return constrain(jnp.where(visual, found, otherwise), ROW_AXES)

        zero = jnp.zeros((), self.dtype)
        additions = [place(features.deepstack[k], zero) for k in range(num_unrolled(self.config))]
        return place(features.embeds, embeds), additions

    def __call__(
        self, vision_inputs: VisionInputs, tokens, positions, valid, visual_index
    ) -> jax.Array:
        """Logits float32 [B, S, V] of one batch, all parts of the network in a row."""
        features = self.encode(vision_inputs)
        return self.logits(self.hidden(tokens, positions, valid, visual_index, features))


def init_params(model: Qwen3VL, rng: jax.Array) -> dict[str, Any]:
    """Random parameters as a plain nested dict; under `jax.eval_shape` only their shapes.

    The distributions are those of `model.init`, which would compile a random generator for every
    leaf (20 s on a CPU for a toy model). Here one call draws all numbers, as float32.
    """
    dtype, wanted = model.param_dtype or model.dtype, names.leaves(model.config)
    numbers = jax.random.normal(rng, (sum(math.prod(leaf.tree_shape) for leaf in wanted),))
    if not isinstance(numbers, jax.core.Tracer):
        numbers = np.asarray(numbers)  # Slices on the host need no program each.
    widths = {
        "pos_embed": model.config.vision_config.initializer_range,
        "embed_tokens": model.config.text_config.initializer_range,
    }
    tree: dict[str, Any] = {}
    at = 0
    for leaf in wanted:
        size = math.prod(leaf.tree_shape)
        own = numbers[at : at + size].reshape(leaf.tree_shape)
        at += size
        if leaf.is_kernel:
            own = own * leaf.tree_shape[-2] ** -0.5
        elif leaf.path[-1] in widths:
            own = own * widths[leaf.path[-1]]
        else:
            own = np.full(leaf.tree_shape, 1.0 if leaf.path[-1] == "scale" else 0.0)
        node = tree
        for key in leaf.path[:-1]:
            node = node.setdefault(key, {})
        node[leaf.path[-1]] = jnp.asarray(own, dtype)
    return tree
