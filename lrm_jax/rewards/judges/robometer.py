"""Robometer: a progress head on the hidden states of a Qwen3-VL.

Published definition (`robometer/Robometer-4B`, as the released LRM server computes it): frames are
images, not a video, behind the question, optionally each with a token `<|prog_token|>` after it.
The feature of a frame is the last hidden state (behind the final norm) at its progress token, else
a pooling of the states of its image tokens: their mean, the last of them ("boundary"), or
softmax(h w / temperature) ("attention"). The head is Linear, LayerNorm, SiLU, Linear to logits over
bins; progress is the mean of linspace(0, 1, bins) under their softmax. Attention looks backwards
only, so a frame's progress is the same whichever frames follow it.

Weights: `progress_head.{0,1,4}.{weight,bias}` and `frame_pool_attn.weight` beside the network's, in
the checkpoint's safetensors; settings in its `config.yaml` (model.frame_pooling,
model.frame_pooling_attn_temperature, data.use_per_frame_progress_token). The checkpoint's other
heads (preference, success, similarity) are not read.

Our choices: frames are resized once, to the size that the processor gives to one shrunk to
max_side, where the server resizes twice; pictures are numbered ("Picture 1: ") as Qwen's template
does when asked to, which `picture_label` changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.qwen3_vl import resize, weights
from lrm_jax.rewards.judges import forward, prompts
from lrm_jax.rewards.judges.judge import Judge, Judged, Window, masked
from lrm_jax.rewards.judges.paths import Path, Picture, Rows, Writer
from lrm_jax.rewards.model import MAX_PIXELS
from lrm_jax.run.errors import UserError, did_you_mean

TOKEN = "<|prog_token|>"
POOLINGS = ("mean", "boundary", "attention")
# What the checkpoint holds beside the network; the language head is never used.
BESIDE = (
    "progress_head.", "preference_head.", "success_head.", "similarity_head.", "frame_pool_attn.",
    "video_proj.", "text_proj.", "lm_head.",
)  # fmt: skip
_NAMES = {
    f"{n}_{kind}": f"progress_head.{i}.{kind}"
    for i, n in ((0, "first"), (1, "norm"), (4, "last"))
    for kind in ("weight", "bias")
} | {"attention": "frame_pool_attn.weight"}
_EPSILON = 1e-5  # of torch's LayerNorm


@flax.struct.dataclass
class ProgressHead:
    """float32: first_weight [M, D], first_bias [M], norm_weight [M], norm_bias [M], last_weight
    [bins, M], last_bias [bins], attention [1, D]."""

    first_weight: Any
    first_bias: Any
    norm_weight: Any
    norm_bias: Any
    last_weight: Any
    last_bias: Any
    attention: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Robometer(Judge):
    """`Judged.raw` is the likeliest bin's progress; `Judged.distribution` is over the bins.

    head: the weights. prog_token: whether frames are followed by the progress token and read there.
    pooling, temperature: otherwise. max_side: a longer side of a frame is shrunk to it, pixels.
    """

    max_frames: int = 8
    fps: float = 1.0  # images have no times
    head: ProgressHead | None = None
    prog_token: bool = False
    pooling: str = "mean"
    temperature: float = 1.0
    max_side: int = 320
    picture_label: str = "Picture {number}: "

    name = "robometer"
    reads_answers = False

    def __post_init__(self):
        super().__post_init__()
        if self.pooling not in POOLINGS:
            raise UserError(
                f"robometer: pooling {self.pooling!r}: {did_you_mean(self.pooling, POOLINGS)}"
            )
        if not self.temperature > 0:
            raise UserError(f"robometer: temperature is {self.temperature}, it must be above 0")
        if self.prog_token:
            self.tokenizer.token_id(TOKEN)
        if self.head is None:
            raise UserError("robometer: it needs the weights of its head")
        width = self.config.text_config.hidden_size
        if self.head.first_weight.shape[1] != width:
            raise UserError(
                f"robometer: its head takes {self.head.first_weight.shape[1]} features, the "
                f"network has {width}"
            )

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        shrink = min(1.0, self.max_side / max(height, width))
        height, width = (max(1, int(s * shrink)) for s in (height, width))
        if self.bounds is None:
            return resize.nearest_size(height, width, self.config, MAX_PIXELS)
        return resize.image_size(height, width, self.config, self.bounds)

    def clips_of(self, window: Window) -> list[tuple[int, ...]]:
        time = self.config.vision_config.temporal_patch_size
        return [(frame,) * time for frame in window.frames.tolist()]

    def paths_of(
        self, writer: Writer, window: Window, numbers: list[int], fps: float
    ) -> list[Path]:
        parts: list[str | Picture] = []
        for kind, text in prompts.cut(self.prompt, self.name, False)[0]:
            if kind == "video":
                for i, number in enumerate(numbers, 1):
                    parts += [
                        self.picture_label.replace("{number}", str(i)),
                        Picture(number, self.config.image_token_id),
                    ]
                    if self.prog_token:
                        parts.append(TOKEN)
                break  # what follows the last frame is seen by nothing that is read
            parts.append(window.task if kind == "task" else text)
        path = writer.path(parts)
        if self.prog_token:
            reads = np.flatnonzero(path.tokens == self.tokenizer.token_id(TOKEN))[-1:]
        else:
            reads = np.flatnonzero(path.picture >= 0)[-writer.per_picture :]
        return [dataclasses.replace(path, reads=tuple(reads.tolist()))]

    def judge_rows(self, rows: Rows, features: Any, paths: Sequence[Sequence[Path]]) -> Judged:
        found = forward.states(self.model, self.variables, rows, features, self.memory_bytes)
        states = np.stack([found[row, reads] for row, reads, _ in rows.places])  # [W, M, D]
        pooling = "boundary" if self.prog_token else self.pooling
        p = np.asarray(distribution(self.head, states, pooling, self.temperature))
        bins = np.linspace(0, 1, p.shape[-1], dtype=np.float32)
        valid = np.isfinite(p).all(-1)
        raw = masked(bins[np.argmax(np.nan_to_num(p), -1)], valid)
        return Judged(masked(p @ bins, valid), valid, raw, masked(p, valid[:, None]))


def distribution(head: ProgressHead, states: Any, pooling: str, temperature: float) -> jax.Array:
    """Probabilities of the bins, float32 [W, bins], from each frame's states float32 [W, M, D]."""
    states = jnp.asarray(states)
    if pooling == "mean":
        x = states.mean(1)
    elif pooling == "boundary":
        x = states[:, -1]
    else:
        weight = jax.nn.softmax((states @ head.attention[0]) / temperature, -1)
        x = jnp.einsum("wm,wmd->wd", weight, states)
    x = x @ head.first_weight.T + head.first_bias
    x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + _EPSILON)
    x = jax.nn.silu(x * head.norm_weight + head.norm_bias)
    return jax.nn.softmax(x @ head.last_weight.T + head.last_bias, -1)


def read_head(folder: FilePath) -> ProgressHead:
    """The head's weights out of a checkpoint folder; UserError if they are missing or do not fit
    together."""
    found = weights.read_beside(folder, tuple(_NAMES.values()))
    head = ProgressHead(**{own: jnp.asarray(found[name]) for own, name in _NAMES.items()})
    middle, width = head.first_weight.shape
    bins = head.last_weight.shape[0]
    shapes = [x.shape for x in jax.tree.leaves(head)]
    if shapes != [(middle, width), (middle,), (middle,), (middle,), (bins, middle), (bins,),
                  (1, width)]:  # fmt: skip
        raise UserError(f"{folder}: the tensors of progress_head do not fit together: {shapes}")
    return head


def read_settings(folder: FilePath) -> dict[str, Any]:
    """prog_token, pooling and temperature of the checkpoint's `config.yaml`; {} without one."""
    import yaml

    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        model, data = raw.get("model") or {}, raw.get("data") or {}
        token = data.get(
            "use_per_frame_progress_token", model.get("use_per_frame_progress_token", False)
        )
        return {
            "pooling": str(model.get("frame_pooling", "mean")).lower(),
            "temperature": float(model.get("frame_pooling_attn_temperature", 1.0)),
            "prog_token": bool(token),
        }
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no settings of Robometer ({error})".splitlines()[0]) from error
