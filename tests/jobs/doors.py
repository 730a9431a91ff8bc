"""The doors as programs of their own, and a checkpoint for them."""

import dataclasses
import subprocess
import sys
from pathlib import Path

from lrm_jax.benchmarks import peers
from lrm_jax.rewards.model import NANO_FOLDER
from lrm_jax.rewards.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]


def start(*arguments, door="train", **options):
    command = [sys.executable, "-m", f"lrm_jax.{door}", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def finish(process, timeout=1500):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def small_checkpoint(folder):
    """A random Qwen3-VL with lrm-nano's vocabulary, as transformers writes it."""
    tokenizer = Tokenizer.from_folder(NANO_FOLDER)
    tokenizer.inner.add_special_tokens(["<|video_pad|>"])
    tokens = {
        f"{field}_token_id": tokenizer.token_id(f"<|{token}|>")
        for field, token in (
            ("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }  # fmt: skip
    tiny = peers.SIZES["tiny"]
    text = dataclasses.replace(tiny.text_config, vocab_size=tokenizer.size)
    peers.random_peer(dataclasses.replace(tiny, text_config=text, **tokens), tokenizer, folder)
