"""LoRA as a transform over a parameter tree: adapters made, merged, stacked, and PEFT's files."""

from lrm_jax.lora.config import LoraConfig
from lrm_jax.lora.files import load_peft, read_config, save_peft
from lrm_jax.lora.stack import stack
from lrm_jax.lora.transform import (
    init,
    merge,
    num_trainable,
    only_trainable,
    overlaid,
    trainable,
    unmerge,
    variables,
)

__all__ = [
    "LoraConfig",
    "init",
    "load_peft",
    "merge",
    "num_trainable",
    "only_trainable",
    "overlaid",
    "read_config",
    "save_peft",
    "stack",
    "trainable",
    "unmerge",
    "variables",
]
