"""What the benchmarks share: one random Qwen3-VL in two libraries, the Qwen vocabulary, timing,
JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lrm_jax.qwen3_vl import Config
from lrm_jax.rewards.tokenizer import Tokenizer
from lrm_jax.run import atomic
from lrm_jax.run.errors import UserError

# The special tokens of Qwen3-VL in the order of their ids, which follow the 151,643 of the BPE.
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
VOCABULARY = 151_936


@dataclasses.dataclass(frozen=True)
class Size:
    """A Qwen3-VL of the released models' proportions; sizes as transformers names them."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    vision_hidden: int
    vision_mlp: int
    vision_depth: int
    vision_heads: int
    head_dim: int = 128
    patch: int = 16
    tied: bool = True


SIZES = {
    # About 100 million parameters in the two towers, and 117 million in the tied embedding.
    "100m": Size(768, 2304, 12, 6, 2, 320, 1280, 8, 5),
    "tiny": Size(64, 128, 2, 2, 1, 32, 64, 2, 2, head_dim=32),
    "2b": Size(2048, 6144, 28, 16, 8, 1024, 4096, 24, 16),
    "8b": Size(4096, 12288, 36, 32, 8, 1152, 4304, 27, 16, tied=False),
}


def need_torch() -> tuple[Any, Any]:
    """(torch, transformers); UserError if they are not installed."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed: this benchmark needs it, pip install 'lrm_jax[test]'"
        ) from error
    return torch, transformers


def qwen_tokenizer() -> Tokenizer:
    """Qwen's own byte-level BPE as a `tokenizer.json` would hold it, from the `dashscope` package.

    Raises: UserError if dashscope or transformers is not installed.
    """
    need_torch()
    from transformers.convert_slow_tokenizer import TikTokenConverter

    try:
        ranks = importlib.resources.files("dashscope") / "resources" / "qwen.tiktoken"
    except ImportError as error:
        raise UserError(
            "dashscope, which brings Qwen's vocabulary, is not installed: pip install "
            "'lrm_jax[test]'"
        ) from error
    with importlib.resources.as_file(ranks) as path:
        inner = TikTokenConverter(
            vocab_file=str(path), pattern=_WORDS, extra_special_tokens=list(SPECIAL_TOKENS)
        ).converted()

    return Tokenizer(inner, hashlib.sha256(inner.to_str().encode()).hexdigest())


def hf_config(size: Size, tokenizer: Tokenizer, image: int) -> Any:
    """transformers' configuration of a size, for cameras of `image` pixels."""
    _, transformers = need_torch()
    half = size.head_dim // 2
    axis = half * 20 // 64
    return transformers.Qwen3VLConfig(
        vision_config=dict(
            depth=size.vision_depth,
            hidden_size=size.vision_hidden,
            intermediate_size=size.vision_mlp,
            num_heads=size.vision_heads,
            patch_size=size.patch,
            out_hidden_size=size.hidden,
            num_position_embeddings=(image // size.patch) ** 2,
            deepstack_visual_indexes=[
                size.vision_depth * k // 4 for k in (1, 2, 3)
            ] if size.vision_depth >= 4 else [0],
        ),
        text_config=dict(
            vocab_size=VOCABULARY,
            hidden_size=size.hidden,
            intermediate_size=size.mlp,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.kv_heads,
            head_dim=size.head_dim,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [half - 2 * axis, axis, axis],
                "mrope_interleaved": True,
            },
        ),
        image_token_id=tokenizer.token_id("<|image_pad|>"),
        video_token_id=tokenizer.token_id("<|video_pad|>"),
        vision_start_token_id=tokenizer.token_id("<|vision_start|>"),
        vision_end_token_id=tokenizer.token_id("<|vision_end|>"),
        tie_word_embeddings=size.tied,
    )  # fmt: skip


def random_peer(size: Size, tokenizer: Tokenizer, image: int, folder: Path, seed: int = 0) -> Any:
    """A random float32 model of transformers, saved into `folder` with its tokenizer."""
    torch, transformers = need_torch()
    torch.manual_seed(seed)
    model = transformers.Qwen3VLForConditionalGeneration(hf_config(size, tokenizer, image)).eval()
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer.inner.to_str(), encoding="utf-8")
    return model


def timed(run: Callable[[], Any], seconds: float, least: int = 3) -> dict[str, float]:
    """Median and best seconds of run(), after one call that is not counted."""
    run()
    times, start = [], time.perf_counter()
    while len(times) < least or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    return {"seconds": statistics.median(times), "best": min(times), "repetitions": len(times)}


def matmul_ceiling(dtype: str = "float32", size: int = 2048) -> float:
    """FLOP/s of a square matrix product in JAX on this device: what a program could reach."""
    x = jax.numpy.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    best = timed(lambda: jax.block_until_ready(product(x)), 1.0)["best"]
    return 2 * size**3 / best


def read_bandwidth(megabytes: int = 512) -> float:
    """Bytes per second at which this device reads memory: a sum over a large array."""
    x = jax.numpy.ones(megabytes * (1 << 18), "float32")
    total = jax.jit(lambda a: a.sum())
    return x.nbytes / timed(lambda: jax.block_until_ready(total(x)), 1.0)["best"]


def device_facts() -> dict[str, Any]:
    """Device, cores, versions: what a figure was measured on."""
    device = jax.devices()[0]
    return {
        "device": f"{device.platform} {device.device_kind}, {platform.machine()}, "
        f"{os.cpu_count()} cores",
        "jax": jax.__version__,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def write(path: str, figures: dict[str, Any]) -> None:
    """Writes figures as JSON and prints them."""
    target = Path(path)
    with atomic.writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_json(target, figures)
    print(json.dumps(figures, indent=2))


def as_torch(arrays: dict[str, Any], torch: Any) -> dict[str, Any]:
    """numpy processor outputs as torch tensors, integers as int64."""
    made = {k: torch.from_numpy(np.array(v)) for k, v in arrays.items()}
    return {k: v.long() if v.dtype == torch.int32 else v for k, v in made.items()}


def parameters(config: Config, params: Any) -> dict[str, int]:
    """Numbers of parameters: all of them, and those that every decoded token has to read."""
    total = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
    vision = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params["visual"]))
    tied = config.text_config.hidden_size * config.text_config.vocab_size
    return {"all": total, "read_by_a_token": total - vision - (0 if config.tie_word_embeddings
            else tied)}  # fmt: skip
