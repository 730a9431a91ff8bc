"""Supervised fine-tuning on written answers: next-token cross-entropy over the assistant's turn.

The released adapters learnt so (Large Reward Models, arXiv 2603.16065): the model is shown the
question and learns to write the scaffold, the answer, what closes it and the end of its turn, and
nothing else is learnt ("labels" of -100 in transformers). Afterwards it can be asked either way:
closed scoring reads the probabilities of the same answers, generation writes them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lrm_jax.qwen3_vl import Qwen3VL, VisionInputs, fixed_grid, grid_of, patchify
from lrm_jax.qwen3_vl.inputs import rope_positions
from lrm_jax.rewards.heads import Head
from lrm_jax.rewards.parsing import OPENING
from lrm_jax.rewards.tokenizer import IM_END, IMAGE_PAD, VISION_END, VISION_START, Tokenizer
from lrm_jax.run.errors import UserError


@flax.struct.dataclass
class Conversations:
    """B conversations of S tokens with K images each, R learnt tokens at most; numpy arrays.

    frames: uint8 [B, K, H, W, 3]. tokens: int32 [B, S], padded behind. positions: int32 [B, 3, S].
    valid: bool [B, S]. visual: int32 [B, S], -1 for text, k * M + m for token m of image k. read:
    int32 [B, R], the place before each learnt token. target: int32 [B, R], that token. used: bool
    [B, R].
    """

    frames: Any
    tokens: Any
    positions: Any
    valid: Any
    visual: Any
    read: Any
    target: Any
    used: Any


@dataclasses.dataclass(frozen=True)
class Writer:
    """Writes one head's conversations as rows of one shape.

    sentences: all that will be asked about. image_size: (height, width) of frames, pixels.
    """

    head: Head
    tokenizer: Tokenizer
    config: Any
    image_size: tuple[int, int]
    sentences: tuple[str, ...]

    def batch(
        self, frames: np.ndarray, sentences: Sequence[str], answers: Sequence[int]
    ) -> Conversations:
        """Conversations about frames uint8 [B, K, H, W, 3], the head's images in order; answers
        number the head's."""
        rows = [self._row(s, int(a)) for s, a in zip(sentences, answers, strict=True)]
        columns = (np.stack(c) for c in zip(*rows, strict=True))
        return Conversations(np.asarray(frames), *columns)

    @functools.cached_property
    def shape(self) -> tuple[int, int]:
        """(S, R): the longest conversation, and the most learnt tokens."""
        found = [self._tokens(s, a) for s in self.sentences for a in range(len(self.head.answers))]
        return max(len(t) for t, _ in found), max(len(t) - begun for t, begun in found)

    def _tokens(self, sentence: str, answer: int) -> tuple[list[int], int]:
        """A conversation's tokens, and how many of them open the assistant's turn."""
        _, height, width = grid_of(self.config, *self.image_size)
        per_image = height * width // self.config.vision_config.merge_unit
        image = VISION_START + IMAGE_PAD * per_image + VISION_END
        text = ""
        for kind, value in self.head.pieces:
            text += {
                "text": value, "task": sentence, "image": image, "answer": self.head.answers[answer]
            }[kind]  # fmt: skip
        before, opening, turn = text.rpartition(OPENING)
        said, end, _ = turn.partition(IM_END)
        if not opening or not end:
            raise UserError(
                f"head {self.head.name!r}: to learn to write, its <answer> must stand in an "
                f"assistant's turn that {IM_END} ends"
            )
        begun = self.tokenizer.encode(before + opening)[0]
        tokens = self.tokenizer.encode(before + opening + said + end)[0]
        if tokens[: len(begun)] != begun:
            raise UserError(
                f"head {self.head.name!r}: this tokenizer merges its scaffold into the opening of "
                "the assistant's turn"
            )
        return tokens, len(begun)

    @functools.lru_cache(maxsize=4096)  # noqa: B019 one writer a head
    def _row(self, sentence: str, answer: int) -> tuple[np.ndarray, ...]:
        (length, most), grid = self.shape, grid_of(self.config, *self.image_size)
        tokens, begun = self._tokens(sentence, answer)
        if len(tokens) > length:
            raise ValueError(f"{sentence!r} is not one of the writer's sentences")
        row = np.asarray(tokens, np.int32)
        own, _ = rope_positions(row, [grid] * len(self.head.images), self.config)
        padded, positions = np.zeros(length, np.int32), np.zeros((3, length), np.int32)
        padded[: len(row)], positions[:, : len(row)] = row, own
        visual = np.full(length, -1, np.int32)
        places = np.flatnonzero(row == self.config.image_token_id)
        visual[places] = np.arange(len(places))
        learnt = np.arange(begun, len(row))
        read, target = np.zeros(most, np.int32), np.zeros(most, np.int32)
        read[: len(learnt)], target[: len(learnt)] = learnt - 1, row[learnt]
        used = np.arange(most) < len(learnt)
        return padded, positions, np.arange(length) < len(row), visual, read, target, used


def encode(
    model: Qwen3VL, variables: Any, frames: jax.Array, rngs: dict[str, jax.Array] | None = None
) -> Any:
    """Features of frames uint8 [B, K, H, W, 3], each row's own (`VisionFeatures.by_row`)."""
    count, images, *size, _ = frames.shape
    patches = patchify(frames.reshape(count * images, *frames.shape[2:]), model.config)
    grid = jax.tree.map(jnp.asarray, fixed_grid(model.config, *size))
    inputs = VisionInputs(patches.astype(model.dtype), grid)
    return model.apply(variables, inputs, method="encode", rngs=rngs).by_row(count)


def token_log_probabilities(
    model: Qwen3VL,
    variables: Any,
    batch: Any,
    features: Any,
    rngs: dict[str, jax.Array] | None = None,
) -> jax.Array:
    """log P of each learnt token, float32 [B, R], 0 where there is none.

    batch: has the fields of `Conversations` but frames; features: of its rows, see `encode`.
    """
    hidden = model.apply(
        variables, batch.tokens, jnp.moveaxis(batch.positions, 1, 0), batch.valid, batch.visual,
        features, method="hidden", rngs=rngs,
    )  # fmt: skip
    states = jnp.take_along_axis(hidden, batch.read[..., None], axis=1)
    logits = model.apply(variables, states, method="logits", rngs=rngs)
    each = -optax.softmax_cross_entropy_with_integer_labels(logits, batch.target)
    return jnp.where(batch.used, each, 0.0)


def total_loss(
    model: Qwen3VL, variables: Any, batch: Conversations, rng: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """-log P of the learnt tokens, summed, float32 [], and how many there are.

    Divided by each other over a whole batch they are transformers' loss. rng: for the adapter's
    dropout; without it nothing is dropped.
    """
    rngs = None if rng is None else {"lora": rng}
    features = encode(model, variables, batch.frames, rngs)
    each = token_log_probabilities(model, variables, batch, features, rngs)
    return -jnp.sum(each), jnp.sum(batch.used)


def answer_of(head: Head, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The number of the answer to learn for each label, int64 [B].

    A label between two answers becomes either, with the chances that make the expectation exact; so
    a model that has learnt the frequencies expects the label.
    """
    values = np.asarray(head.values)
    order = np.argsort(values)
    at = np.interp(labels, values[order], np.arange(len(values)))
    low = np.floor(at).astype(int)
    up = rng.random(len(at)) < at - low
    return order[np.minimum(low + up, len(values) - 1)]
