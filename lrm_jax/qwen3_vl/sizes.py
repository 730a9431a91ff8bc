"""The released dense Qwen3-VL models by name: their published dimensions, without weights.

Source: the `config.json` of Qwen/Qwen3-VL-{2B,4B,8B,32B}-Instruct.
"""

from __future__ import annotations

from lrm_jax.qwen3_vl.config import Config, TextConfig, VisionConfig
from lrm_jax.run.errors import UserError, did_you_mean


def _size(layers: int, width: int, inner: int, heads: int, tied: bool, large_tower: bool) -> Config:
    tower = dict(depth=27, hidden_size=1152, intermediate_size=4304)
    taps = (8, 16, 24)
    if not large_tower:
        tower = dict(depth=24, hidden_size=1024, intermediate_size=4096)
        taps = (5, 11, 17)
    return Config(
        vision_config=VisionConfig(
            **tower, num_heads=16, out_hidden_size=width, deepstack_visual_indexes=taps
        ),
        text_config=TextConfig(
            vocab_size=151936,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=262144,
        ),
        tie_word_embeddings=tied,
    )


SIZES = {
    "qwen3-vl-2b": _size(28, 2048, 6144, 16, tied=True, large_tower=False),
    "qwen3-vl-4b": _size(36, 2560, 9728, 32, tied=True, large_tower=False),
    "qwen3-vl-8b": _size(36, 4096, 12288, 32, tied=False, large_tower=True),
    "qwen3-vl-32b": _size(64, 5120, 25600, 64, tied=False, large_tower=True),
}


def by_name(name: str) -> Config:
    """The configuration of a released model; UserError lists the names."""
    if name not in SIZES:
        raise UserError(f"no model is called {name!r}; {did_you_mean(name, SIZES)}")
    return SIZES[name]
