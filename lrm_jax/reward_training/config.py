"""Typed settings of reward training; `configs/reward_nano.py` fills them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lrm_jax import lora
from lrm_jax.labels import ClipSettings, ExampleSettings
from lrm_jax.qwen3_vl.config import Config, TextConfig, VisionConfig
from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError, did_you_mean

OBJECTIVES = ("sft", "expectation", "dpo")


@dataclasses.dataclass(frozen=True)
class NanoSize:
    """Sizes of a Qwen3-VL trained from scratch; everything else follows the released models."""

    image_size: int = field(64, ge=8)
    patch_size: int = field(8, ge=1)
    vision_depth: int = field(4, ge=1)
    vision_hidden: int = field(128, ge=8)
    vision_heads: int = field(4, ge=1)
    vision_mlp: int = field(384, ge=1)
    deepstack: tuple[int, ...] = (1, 2)
    text_layers: int = field(4, ge=1)
    text_hidden: int = field(160, ge=8)
    text_heads: int = field(4, ge=1)
    text_kv_heads: int = field(2, ge=1)
    text_mlp: int = field(480, ge=1)

    def validate(self):
        if self.image_size % (2 * self.patch_size):
            raise UserError(
                f"image_size is {self.image_size}: must be a multiple of {2 * self.patch_size} "
                "(two patches)"
            )
        if self.text_hidden % self.text_heads or self.text_hidden // self.text_heads % 2:
            raise UserError(
                f"text_hidden is {self.text_hidden}: each of the text_heads needs an even share"
            )

    def model(self, tokens: dict[str, int], vocabulary: int) -> Config:
        """The network's configuration for a tokenizer: the ids of its special tokens, and its
        size."""
        head_dim = self.text_hidden // self.text_heads
        # Rows and columns get 20 of 64 frequencies each in the released models; time gets the rest.
        axis = (head_dim // 2) * 20 // 64
        return Config(
            vision_config=VisionConfig(
                depth=self.vision_depth,
                hidden_size=self.vision_hidden,
                intermediate_size=self.vision_mlp,
                num_heads=self.vision_heads,
                patch_size=self.patch_size,
                out_hidden_size=self.text_hidden,
                num_position_embeddings=(self.image_size // self.patch_size) ** 2,
                deepstack_visual_indexes=self.deepstack,
                # Positions as loud as patches: at the released models' 0.02 a short training never
                # finds out where in the picture anything is.
                initializer_range=0.5,
            ),
            text_config=TextConfig(
                vocab_size=vocabulary,
                hidden_size=self.text_hidden,
                intermediate_size=self.text_mlp,
                num_hidden_layers=self.text_layers,
                num_attention_heads=self.text_heads,
                num_key_value_heads=self.text_kv_heads,
                head_dim=head_dim,
                # Rows are short; the released 5e6 would leave most frequencies still.
                rope_theta=10_000.0,
                mrope_section=(head_dim // 2 - 2 * axis, axis, axis),
                # Words as loud as what the layers add to them.
                initializer_range=0.25,
            ),
            image_token_id=tokens["image"],
            video_token_id=tokens["video"],
            vision_start_token_id=tokens["vision_start"],
            vision_end_token_id=tokens["vision_end"],
            tie_word_embeddings=True,
            eos_token_id=(tokens["end"],),
            pad_token_id=tokens["pad"],
        )


@dataclasses.dataclass(frozen=True)
class Optimiser:
    """AdamW with linear warm-up and cosine decay."""

    learning_rate: float = field(1e-3, gt=0)
    final_share: float = field(0.02, ge=0, le=1)
    warmup_steps: int = field(200, ge=0)
    weight_decay: float = field(0.05, ge=0)
    beta1: float = field(0.9, ge=0, lt=1)
    beta2: float = field(0.98, ge=0, lt=1)
    clip_norm: float = field(1.0, gt=0)


@dataclasses.dataclass(frozen=True)
class Phase:
    """One stretch of training on one kind of rows.

    steps: optimiser steps. rows: episodes (or scenes) in a batch. frames_per_row: frames of each
      that are judged.
    pairs_per_row: contrastive pairs made of those frames. heads: weight of each head's loss; heads
    without a weight are not asked. kinds: weight of each kind of clip in the draw. draw: what is as
    likely as any other of its kind, a clip ("clips"), or a frame ("frames": a clip twice as long is
    drawn twice as often).
    """

    name: str
    steps: int = field(ge=0, default=1000)
    rows: int = field(16, ge=1)
    frames_per_row: int = field(4, ge=1)
    pairs_per_row: int = field(2, ge=0)
    heads: dict[str, float] = field(default_factory=dict)
    kinds: dict[str, float] = field(default_factory=dict)
    draw: str = field("clips", choices=("clips", "frames"))


@dataclasses.dataclass(frozen=True)
class RewardTraining:
    """Everything that training the reward model depends on, apart from the episodes.

    start: a reward model's name or folder whose weights training begins with, of the same `size`;
      empty begins from scratch. smoothing: of labels, see `objective.target`. light: share by which
      each frame's brightness and contrast vary. blanks: for this share of the clips, one more
      of the kind "blank", whose pictures show nothing (`labels.with_blanks`).
    accumulate: a batch goes through in so many parts. remat: what the backward pass computes again.
    best: a number of validation whose best parameters are kept beside the last, "progress/mae" say.
    final: which of them the training gives, "last" or "best". start_share: what it gives is a mean
      of these and of the start's parameters, in which the start's weigh so much: between two
      trainings lie networks that judge unseen scenes better than either (arXiv 2109.01903).
    """

    start: str = ""
    size: NanoSize = field(default_factory=NanoSize)
    optimiser: Optimiser = field(default_factory=Optimiser)
    clips: ClipSettings = field(default_factory=ClipSettings)
    examples: ExampleSettings = field(default_factory=ExampleSettings)
    phases: tuple[Phase, ...] = field(default_factory=tuple)
    smoothing: float = field(0.0, ge=0)
    light: float = field(0.08, ge=0, lt=1)
    blanks: float = field(0.0, ge=0, le=1)
    seed: int = field(0, ge=0)
    accumulate: int = field(1, ge=1)
    remat: str = field("none", choices=("none", "dots", "full"))
    evaluate_every: int = field(500, ge=1)
    checkpoint_every: int = field(500, ge=1)
    best: str = ""
    final: str = field("last", choices=("last", "best"))
    start_share: float = field(0.0, ge=0, lt=1)

    def validate(self):
        if self.start_share and not self.start:
            raise UserError("start_share: there is no start to take a share of")


@dataclasses.dataclass(frozen=True)
class AdapterTraining:
    """Everything that training the heads' adapters depends on, apart from base and episodes.

    method: "lora", or "full": all weights in float32, one model for all heads (small models).
    rank, alpha, targets, rslora, dropout, modules_to_save: see `lora.LoraConfig`; the defaults are
      the paper's. train_vision: the adapter has a vision tower of its own, all of it trained, as
      the paper's progress adapter does (modules_to_save "visual").
    objective: "sft", next-token cross-entropy over the written answer; "expectation", a loss on the
      closed answers' distribution alone; "dpo", direct preference optimisation (arXiv 2305.18290)
      of the right written answer over a wrong one. objectives: by head, where it is another.
    distribution: the loss of "expectation": "crps", "mse" (of the mean), or "cross_entropy" with
      neighbours sharing by `smoothing`, see `objective`. closed_mass: weight of -log P(any of the
      answers) beside crps and mse, which would otherwise let it drift.
    beta, label_smoothing: of DPO, as in TRL: the share of preferences that are taken to be wrong.
    start: a folder with the adapter that training begins with, `{head}` standing for the head's
      name; of DPO it is the reference as well. Empty: a fresh one.
    together: all heads in one run over one base, their steps in turn; each adapter is what it would
      be alone. Otherwise one head after the other.
    rows: conversations in a batch; accumulate: in so many parts. epochs: over each
      head's examples; steps: at most so many in all, 0 for whole epochs.
    remat: "none", "dots" or "full", what the backward pass computes again.
    evaluate_every: steps between validations, if episodes are kept for them. best: a number of
      validation whose best parameters are kept beside the last: "loss", the mean of the heads',
      "progress/mae", or "{head}/loss", which of each head keeps its own best. final: which of them
      the training gives, "last" or "best".
    """

    method: str = field("lora", choices=("lora", "full"))
    rank: int = field(64, ge=1)
    alpha: float = field(128.0, gt=0)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    rslora: bool = False
    dropout: float = field(0.0, ge=0, lt=1)
    modules_to_save: tuple[str, ...] = ()
    train_vision: bool = False
    objective: str = field("sft", choices=OBJECTIVES)
    objectives: dict[str, str] = field(default_factory=dict)
    distribution: str = field("crps", choices=("crps", "mse", "cross_entropy"))
    smoothing: float = field(0.0, ge=0)
    closed_mass: float = field(0.1, ge=0)
    beta: float = field(0.1, gt=0)
    label_smoothing: float = field(0.0, ge=0, lt=0.5)
    start: str = ""
    together: bool = False
    rows: int = field(128, ge=1)
    accumulate: int = field(1, ge=1)
    epochs: int = field(1, ge=1)
    steps: int = field(0, ge=0)
    remat: str = "full"
    optimiser: Optimiser = field(default_factory=Optimiser)
    clips: ClipSettings = field(default_factory=ClipSettings)
    examples: ExampleSettings = field(default_factory=ExampleSettings)
    seed: int = field(0, ge=0)
    checkpoint_every: int = field(100, ge=1)
    evaluate_every: int = field(100, ge=1)
    best: str = ""
    final: str = field("last", choices=("last", "best"))

    def validate(self):
        if self.final == "best" and not self.best:
            raise UserError('final is "best": name the number that decides, as best={head}/loss')
        if self.method == "full" and "{head}" in self.best:
            raise UserError("best: with method 'full' heads share all weights: name one number")
        if self.remat not in ("none", "dots", "full"):
            raise UserError(f"remat is {self.remat!r}: choose none, dots or full")
        for head, name in self.objectives.items():
            if name not in OBJECTIVES:
                raise UserError(f"objectives.{head}: {did_you_mean(name, OBJECTIVES)}")
        if self.method == "full" and self.start:
            raise UserError("start: with method 'full' training begins with the model itself")
        self.lora_config()

    def objective_of(self, head: str) -> str:
        """What the head called so is taught by."""
        return self.objectives.get(head, self.objective)

    def best_of(self, heads: Sequence[str], apart: bool) -> str | dict[str, str]:
        """`best` as the run of these heads takes it; apart: it trains one head's tree alone."""
        if "{head}" not in self.best:
            return self.best
        own = {head: self.best.replace("{head}", head) for head in heads}
        return own[heads[0]] if apart else own

    def lora_config(self) -> lora.LoraConfig:
        """What `lora.init` takes."""
        saved = self.modules_to_save
        if self.train_vision and "visual" not in saved:
            saved = (*saved, "visual")
        return lora.LoraConfig(
            rank=self.rank, alpha=self.alpha, targets=self.targets, rslora=self.rslora,
            dropout=self.dropout, modules_to_save=saved,
        )  # fmt: skip
