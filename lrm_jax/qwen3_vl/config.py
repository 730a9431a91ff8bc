"""Typed configuration of dense Qwen3-VL, read from and written to a checkpoint's `config.json`.

Field names and defaults are those of transformers' `Qwen3VLConfig`. Both spellings of the rotary
settings are
read: `rope_theta` + `rope_scaling` (transformers 4.57, the files on the hub) and `rope_parameters`
(5.x).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lrm_jax.run.errors import UserError


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower. The learned position table is a square of `num_position_embeddings`."""

    depth: int = 27
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 16
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    out_hidden_size: int = 3584
    num_position_embeddings: int = 2304
    deepstack_visual_indexes: tuple[int, ...] = (8, 16, 24)
    hidden_act: str = "gelu_pytorch_tanh"
    initializer_range: float = 0.02
    rope_theta: float = 10_000.0

    def __post_init__(self):
        taps = tuple(int(i) for i in self.deepstack_visual_indexes)
        object.__setattr__(self, "deepstack_visual_indexes", taps)
        if len(set(taps)) != len(taps) or any(not 0 <= i < self.depth for i in taps):
            raise UserError(
                f"vision_config.deepstack_visual_indexes: {list(taps)} must be distinct block "
                f"numbers below depth {self.depth}"
            )
        if self.hidden_size % self.num_heads or self.head_dim % 4:
            raise UserError(
                f"vision_config.hidden_size: {self.hidden_size} over {self.num_heads} heads must "
                "give a head size divisible by 4 (rows and columns each rotate half of it)"
            )
        if self.grid_per_side**2 != self.num_position_embeddings:
            raise UserError(
                f"vision_config.num_position_embeddings: {self.num_position_embeddings} no square"
            )
        if self.hidden_act != "gelu_pytorch_tanh":
            raise UserError(
                f"vision_config.hidden_act: {self.hidden_act!r} instead of gelu_pytorch_tanh"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def grid_per_side(self) -> int:
        return int(self.num_position_embeddings**0.5)

    @property
    def patch_features(self) -> int:
        """Length of one flattened patch, (channel, time, row, column) order."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merge_unit(self) -> int:
        """Patches per token that the language model sees."""
        return self.spatial_merge_size**2


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The decoder. `mrope_section` counts rotary frequencies given to (time, row, column)."""

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 22016
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 5_000_000.0
    mrope_section: tuple[int, ...] = (24, 20, 20)
    attention_bias: bool = False
    hidden_act: str = "silu"
    max_position_embeddings: int = 128000
    initializer_range: float = 0.02

    def __post_init__(self):
        object.__setattr__(self, "mrope_section", tuple(int(i) for i in self.mrope_section))
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"text_config.num_attention_heads: {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"text_config.head_dim: {self.head_dim} must be even (rotary pairs)")
        if len(self.mrope_section) != 3:
            raise UserError(f"text_config.mrope_section: {self.mrope_section} needs three numbers")
        if self.hidden_act != "silu":
            raise UserError(
                f"text_config.hidden_act: {self.hidden_act!r} is not supported (silu is)"
            )


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole model. `eos_token_id` holds all stop tokens; none means no early stop."""

    vision_config: VisionConfig = dataclasses.field(default_factory=VisionConfig)
    text_config: TextConfig = dataclasses.field(default_factory=TextConfig)
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    tie_word_embeddings: bool = False
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "eos_token_id", as_ids(self.eos_token_id))
        if self.vision_config.out_hidden_size != self.text_config.hidden_size:
            raise UserError(
                f"vision_config.out_hidden_size: {self.vision_config.out_hidden_size} differs from "
                f"text_config.hidden_size {self.text_config.hidden_size}"
            )

    @property
    def num_deepstack(self) -> int:
        return len(self.vision_config.deepstack_visual_indexes)

    @classmethod
    def from_hf(cls, raw: dict[str, Any]) -> Config:
        """Reads the dictionary of a `config.json`.

        Raises:
          UserError: another architecture, a rotary type, activation or size that the port does not
            have, or no rotary base (its default differs between transformers versions, so guessing
            would be silent).
        """
        kind = raw.get("model_type")
        if kind != "qwen3_vl":
            raise UserError(
                f"config.json: model_type {kind!r} is not supported; dense 'qwen3_vl' is"
            )
        text, vision = raw.get("text_config") or {}, raw.get("vision_config") or {}
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        theta = rope.get("rope_theta", text.get("rope_theta"))
        if theta is None:
            raise UserError("config.json: text_config names no rope_theta")
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type not in ("default", "mrope"):
            raise UserError(f"config.json: text_config rope type {rope_type!r} is not supported")
        text_extra = {
            "rope_theta": float(theta),
            "mrope_section": rope.get("mrope_section", (24, 20, 20)),
        }
        if text.get("num_key_value_heads") is None and "num_attention_heads" in text:
            text_extra["num_key_value_heads"] = text["num_attention_heads"]
        vision_rope = vision.get("rope_parameters") or {}
        if vision_rope.get("rope_type", "axial") != "axial":
            raise UserError(
                f"config.json: vision_config rope {vision_rope['rope_type']!r} is not supported"
            )
        vision_extra = {"rope_theta": float(vision_rope.get("rope_theta", 10_000.0))}
        for key in ("patch_size", "temporal_patch_size"):
            if not isinstance(vision.get(key, 1), int):
                raise UserError(
                    f"config.json: vision_config.{key} must be one integer, not {vision[key]}"
                )
        top = {k: raw[k] for k in _TOP if k in raw}
        # Files repeat the flag in text_config, where transformers' base class defaults to True: the
        # outer one decides. Either mistake shows as a missing or an unexpected output layer.
        tied = raw.get("tie_word_embeddings", False)
        eos = raw.get("eos_token_id", text.get("eos_token_id"))
        pad = raw.get("pad_token_id", text.get("pad_token_id"))
        return cls(
            vision_config=_build(VisionConfig, vision, vision_extra),
            text_config=_build(TextConfig, text, text_extra),
            tie_word_embeddings=bool(tied),
            eos_token_id=as_ids(eos),
            pad_token_id=pad,
            **top,
        )

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` dictionary in the hub's spelling, read by transformers 4.57 and 5.x."""
        vision, text = dataclasses.asdict(self.vision_config), dataclasses.asdict(self.text_config)
        vision_theta, section = vision.pop("rope_theta"), list(text.pop("mrope_section"))
        vision["deepstack_visual_indexes"] = list(self.vision_config.deepstack_visual_indexes)
        if vision_theta != 10_000.0:  # Only 5.x can say so; released models all have the default.
            vision["rope_parameters"] = {"rope_type": "axial", "rope_theta": vision_theta}
        text["rope_scaling"] = {
            "rope_type": "default",
            "mrope_section": section,
            "mrope_interleaved": True,
        }
        eos: int | list[int] | None = list(self.eos_token_id) or None
        if eos is not None and len(eos) == 1:
            eos = eos[0]
        text.update(
            model_type="qwen3_vl_text",
            eos_token_id=eos,
            pad_token_id=self.pad_token_id,
            tie_word_embeddings=self.tie_word_embeddings,
        )
        vision.update(model_type="qwen3_vl")
        return {
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "model_type": "qwen3_vl",
            **{k: getattr(self, k) for k in _TOP},
            "tie_word_embeddings": self.tie_word_embeddings,
            "text_config": text,
            "vision_config": vision,
        }


_TOP = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def as_ids(value: Any) -> tuple[int, ...]:
    """None, one id or several ids as a tuple."""
    if value is None:
        return ()
    return (int(value),) if isinstance(value, int) else tuple(int(v) for v in value)


def _build(kind, raw: dict[str, Any], extra: dict[str, Any]):
    names = {f.name for f in dataclasses.fields(kind)}
    known = {k: v for k, v in raw.items() if k in names and v is not None}
    return kind(**{**known, **extra})
