"""Dense Qwen3-VL in Flax: the network, its inputs and its files."""

from lrm_jax.qwen3_vl.adapters import read_adapter, read_adapters
from lrm_jax.qwen3_vl.attention import Mask
from lrm_jax.qwen3_vl.backbone import Backbone, from_pretrained
from lrm_jax.qwen3_vl.config import Config, TextConfig, VisionConfig
from lrm_jax.qwen3_vl.inputs import (
    VisionFeatures,
    VisionInputs,
    VisionTables,
    fixed_grid,
    grid_of,
    grid_tables,
    patchify,
    patchify_clips,
    rope_positions,
)
from lrm_jax.qwen3_vl.model import Qwen3VL, init_params
from lrm_jax.qwen3_vl.names import leaves
from lrm_jax.qwen3_vl.text import KVCache, empty_cache
from lrm_jax.qwen3_vl.weights import save_pretrained

__all__ = [
    "Backbone",
    "Config",
    "KVCache",
    "Mask",
    "Qwen3VL",
    "TextConfig",
    "VisionConfig",
    "VisionFeatures",
    "VisionInputs",
    "VisionTables",
    "empty_cache",
    "fixed_grid",
    "from_pretrained",
    "grid_of",
    "grid_tables",
    "init_params",
    "leaves",
    "patchify",
    "patchify_clips",
    "read_adapter",
    "read_adapters",
    "rope_positions",
    "save_pretrained",
]
