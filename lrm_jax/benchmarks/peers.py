"""What the benchmarks share: one random Qwen3-VL in two libraries, the Qwen vocabulary, timing,
JSON."""

from __future__ import annotations

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

from lrm_jax.qwen3_vl import Config, TextConfig, VisionConfig, sizes
from lrm_jax.rewards.heads import Head
from lrm_jax.rewards.tokenizer import IMAGE_PAD, VISION_END, VISION_START, Tokenizer
from lrm_jax.run import atomic
from lrm_jax.run.errors import UserError

# The special tokens of Qwen3-VL in the order of their ids, which follow the 151,643 of the BPE.
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
# Of `{ "completion_progress": 0.4 }`, `{ "task_completed": "yes" }` and
# `{ "more_complete_image": "ImageA" }`, each with the token that ends the turn.
RELEASED_TOKENS = {"progress": 11, "completion": 10, "contrastive": 12}
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _small(width: int, inner: int, layers: int, heads: int, kv_heads: int, tower: dict) -> Config:
    """A Qwen3-VL of the released models' proportions with tied embeddings."""
    return Config(
        vision_config=VisionConfig(out_hidden_size=width, **tower),
        text_config=TextConfig(
            vocab_size=sizes.SIZES["qwen3-vl-8b"].text_config.vocab_size,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=128,
        ),
        tie_word_embeddings=True,
    )


_TOWER = dict(depth=8, hidden_size=320, intermediate_size=1280, num_heads=5)
_TINY_TOWER = dict(depth=2, hidden_size=32, intermediate_size=64, num_heads=2)
SIZES = {
    # About 100 million parameters in the two towers, and 117 million in the tied embedding.
    "100m": _small(768, 2304, 12, 6, 2, _TOWER | {"deepstack_visual_indexes": (2, 4, 6)}),
    "tiny": _small(64, 128, 2, 2, 1, _TINY_TOWER | {"deepstack_visual_indexes": (0,)}),
    **sizes.SIZES,
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


def random_peer(config: Config, tokenizer: Tokenizer, folder: Path, seed: int = 0) -> Any:
    """A random float32 model of transformers, saved into `folder` with its tokenizer.

    UserError if the configuration's image tokens are not the tokenizer's.
    """
    torch, transformers = need_torch()
    for name in ("image", "video"):
        if getattr(config, f"{name}_token_id") != tokenizer.token_id(f"<|{name}_pad|>"):
            raise UserError(f"the configuration and the tokenizer disagree about {name} tokens")
    torch.manual_seed(seed)
    model = transformers.Qwen3VLForConditionalGeneration(
        transformers.Qwen3VLConfig(**config.to_hf())
    ).eval()
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer.inner.to_str(), encoding="utf-8")
    return model


def prompt_ids(head: Head, task: str, tokenizer: Tokenizer, per_image: int) -> list[int]:
    """Token ids of a head's prompt up to its answer, each image as so many places."""
    image = VISION_START + IMAGE_PAD * per_image + VISION_END
    text = ""
    for kind, value in head.pieces:
        if kind == "answer":
            break
        text += {"text": value, "task": task, "image": image}[kind]
    return tokenizer.encode(text)[0]


def timed(run: Callable[[], Any], seconds: float, least: int = 3) -> dict[str, float]:
    """Median and best seconds of run(), after one call that is not counted."""
    return timed_in_turn({"": run}, seconds, least)[""]


def timed_in_turn(
    runs: dict[str, Callable[[], Any]], seconds: float, least: int = 3
) -> dict[str, dict[str, float]]:
    """Median and best seconds of each of `runs`, called in turn so that all meet the same machine,
    until that many seconds each have passed; one call of each before that is not counted."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    turns = 0
    while turns < least or time.perf_counter() - start < seconds * len(runs):
        turns += 1
        for name, run in runs.items():
            before = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - before)
    return {
        name: {"seconds": statistics.median(own), "best": min(own), "repetitions": turns}
        for name, own in times.items()
    }


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
