"""LoRA as a transform over a parameter tree: adapters made, merged, stacked, and PEFT's files.

leaves = qwen3_vl.leaves(backbone.config)
config = lora.LoraConfig(rank=64, alpha=128, targets=("q_proj", "k_proj", "v_proj", "o_proj"))
adapter = lora.init(key, backbone.params, config, leaves)
optimizer = lora.only_trainable(optax.adamw(1e-4))
... model.apply(lora.variables(backbone.params, adapter), ..., rngs={"lora": key})
lora.save_peft("adapters/progress", adapter, config, leaves)
"""

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
