"""Scores from generated text: the released way, in which a model writes its answer and it is read.

Closed scoring (`lrm_jax.rewards.scoring`) asks for the probability of each answer and never fails;
here the model writes greedily from the assistant's opening on, may reason first, and
`lrm_jax.rewards.parsing` reads what it wrote. Text that cannot be read is NaN and invalid, never a
number. There are no probabilities: values are those of single answers, and calibration, which was
fitted to expectations, is not applied.

Rows of one head go through prefill and decode in micro-batches of one shape with a cache of one
size. Every row encodes its images anew: decoding, which reads all weights for each token, is what
costs time here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.qwen3_vl import Config, Qwen3VL, generate, grid_of, patchify
from lrm_jax.qwen3_vl.batching import bucket, pack
from lrm_jax.rewards import adapters as adapters_file
from lrm_jax.rewards import cost, parsing
from lrm_jax.rewards.engine import HEADS, RewardEngine
from lrm_jax.rewards.heads import Head
from lrm_jax.rewards.judges.paths import chunks
from lrm_jax.rewards.layout import answer_tokens
from lrm_jax.rewards.plan import asked_heads, checked_goal
from lrm_jax.rewards.scores import Scores, tri_of
from lrm_jax.rewards.tokenizer import (
    END_OF_TEXT,
    IM_END,
    IMAGE_PAD,
    VISION_END,
    VISION_START,
    Tokenizer,
)
from lrm_jax.run.errors import UserError, did_you_mean

# What the released code allows its most talkative head (contrastive, which reasons before it
# answers). A micro-batch ends with its last row, so answers that stop earlier cost no more for it.
MAX_NEW_TOKENS = 512
# Behind a scaffold only the answer and its closing are left: some ten tokens.
MAX_NEW_TOKENS_SCAFFOLD = 32
# For a micro-batch's activations and cache. Larger than the engine's budget: each decoded token
# reads all weights, whatever the number of rows.
MEMORY_BYTES = 1 << 30
MAX_ROWS = 16


DECODES = ("closed", "generate")


def check_decode(decode: str, max_new_tokens: int | None, scaffold: bool) -> None:
    """UserError for an unknown way to decode, no room for an answer, and settings of generation
    where nothing is generated."""
    if decode not in DECODES:
        raise UserError(f"decode: {decode!r} is unknown; {did_you_mean(decode, DECODES)}")
    if decode == "closed" and (max_new_tokens is not None or scaffold):
        raise UserError("max_new_tokens and scaffold change nothing unless decode is 'generate'")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}: it must be at least 1")


@dataclasses.dataclass(frozen=True)
class Generated:
    """What a model wrote about frames, and the scores that were read.

    scores: of numpy arrays [T, N]; distribution and entropy are NaN. texts: for each head an object
      array [T, N, orders] of texts, scaffold included; comparisons have two orders, (previous,
      current) and swapped; None where nothing was asked. unreadable: texts without a legible
      answer, by head; answers: all texts, by head.
    """

    scores: Scores
    texts: dict[str, np.ndarray]
    unreadable: dict[str, int]
    answers: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """tokens: what the model goes on from. begun: the text of the assistant's turn in them."""

    tokens: list[int]
    begun: str


def prompt(
    head: Head, sentence: str, tokenizer: Tokenizer, per_image: int, scaffold: bool
) -> Prompt:
    """A head's question up to the assistant's opening, or with its scaffold behind it.

    The scaffold ends where the tokens of the head's answers part, which may be within an answer
    ("Image" of ImageA and ImageB).
    """
    own, closing = parsing.scaffold_of(head)
    image = VISION_START + IMAGE_PAD * per_image + VISION_END
    text = ""
    for kind, value in head.pieces[: head.pieces.index(("answer", ""))]:
        text += {"text": value, "task": sentence, "image": image}[kind]
    opening = tokenizer.encode(text[: len(text) - len(own)])[0]
    if not scaffold:
        return Prompt(opening, "")
    tokens = answer_tokens(tokenizer, text, head.answers, closing)[0]
    if tokens[: len(opening)] != opening:
        raise UserError(
            f"head {head.name!r}: this tokenizer merges its scaffold into the assistant's opening"
        )
    return Prompt(tokens, tokenizer.inner.decode(tokens[len(opening) :]))


def stops(config: Config, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that end an answer: the checkpoint's, the end of a turn and the end of a text."""
    named = (tokenizer.inner.token_to_id(t) for t in (IM_END, END_OF_TEXT))
    return tuple(dict.fromkeys([*config.eos_token_id, *(t for t in named if t is not None)]))


def write(
    model: Qwen3VL,
    variables: Mapping[str, Any],
    prompts: Sequence[Sequence[int]],
    frames: np.ndarray,
    shown: np.ndarray,
    ends: tuple[int, ...],
    max_new_tokens: int,
    memory_bytes: int = MEMORY_BYTES,
) -> list[list[int]]:
    """Greedy continuations of B prompts, without what ends them.

    Args:
      variables: {"params": ...} and "lora" for one adapter.
      prompts: tokens of each row. frames: uint8 [F, H, W, 3]. shown: int [B, images], the frames
        that a row's image places show, in order.
      ends: tokens that end a row. max_new_tokens: at most so many tokens a row.
    """
    config = model.config
    grid = grid_of(config, *frames.shape[1:3])
    length, slots = max(map(len, prompts)), bucket(max_new_tokens, 32)
    tokens = np.zeros((len(prompts), length), np.int32)
    mask = np.zeros((len(prompts), length), bool)
    for b, row in enumerate(prompts):  # padding in front
        tokens[b, length - len(row) :], mask[b, length - len(row) :] = row, True
    each = memory_bytes // _row_bytes(model, bucket(length, 64) + slots, shown.shape[1], grid)
    written: list[list[int]] = []
    for index in chunks(len(prompts), min(max(each, 1), MAX_ROWS)):
        patches = _patches(frames[shown[index].reshape(-1)], config)
        batch = pack(
            config,
            dict(
                input_ids=tokens[index],
                attention_mask=mask[index],
                pixel_values=np.asarray(patches).reshape(-1, patches.shape[-1]),
                image_grid_thw=np.array([grid] * len(patches)),
            ),
        )
        out, _ = generate.greedy(
            model, variables["params"], variables.get("lora"), batch, None,
            np.int32(max_new_tokens), slots=slots, stops=ends, pad=ends[0],
        )  # fmt: skip
        own = np.asarray(out)[: len(index), :max_new_tokens]
        written += [_until(row, ends) for row in own.tolist()]
    return written[: len(prompts)]


def score(
    engine: RewardEngine,
    variables: Mapping[str, Any],
    frames: jax.Array,
    sentences: Sequence[str],
    *,
    heads: Sequence[str] | None = None,
    interval: int = 1,
    goal: jax.Array | None = None,
    max_new_tokens: int | None = None,
    scaffold: bool = False,
) -> Generated:
    """Asks every head about every frame in words.

    Args:
      engine: whose model, heads, tokenizer and adapters are asked.
      variables: as `RewardEngine.score` takes them.
      frames: uint8 [T, N, H, W, 3], N videos. sentences: one for each.
      heads, interval, goal: as in `RewardEngine.score`.
      max_new_tokens: at most so many tokens an answer; MAX_NEW_TOKENS by default, behind a scaffold
        MAX_NEW_TOKENS_SCAFFOLD.
      scaffold: start behind the head's scaffold: no reasoning, and the key is given.
    Raises:
      UserError: an unknown head, an interval or max_new_tokens below 1, no goal for a head that
        shows one, a head whose answers have no key.
    """
    check_decode("generate", max_new_tokens, scaffold)
    limit = max_new_tokens
    if limit is None:
        limit = MAX_NEW_TOKENS_SCAFFOLD if scaffold else MAX_NEW_TOKENS
    names = asked_heads(heads, engine.heads, interval)
    readers = {name: parsing.reader(engine.heads[name]) for name in names}
    time, count = frames.shape[:2]
    goal = checked_goal(goal, [engine.heads[n] for n in names], (count, *frames.shape[2:]))
    flat = np.asarray(frames).reshape(-1, *frames.shape[2:])  # few bytes beside the weights
    if goal is not None:  # behind the frames, as the engine has it
        flat = np.concatenate([flat, goal])
    ends = stops(engine.model.config, engine.tokenizer)
    texts, values, unreadable, answers = {}, {}, {}, {}
    for number, group in adapters_file.groups(names, engine.adapters).items():
        own = adapters_file.variables_for(variables, number)
        for name in group:
            head, read = engine.heads[name], readers[name]
            prompts = [
                prompt(head, s, engine.tokenizer, engine.patches // _merge(engine), scaffold)
                for s in sentences
            ]
            places, shown = _questions(head, time, count, interval)
            texts[name] = np.full((time, count, 2 if _compares(head) else 1), None, object)
            said = np.full(texts[name].shape, np.nan, np.float32)
            if len(places):
                rows = [prompts[n] for _, n, _ in places]
                written = write(
                    engine.model, own, [p.tokens for p in rows], flat, shown, ends, limit
                )
                for place, row, tokens in zip(places, rows, written, strict=True):
                    text = row.begun + engine.tokenizer.inner.decode(tokens)
                    value = read.read(text)
                    texts[name][tuple(place)] = text
                    said[tuple(place)] = np.nan if value is None else value
            unreadable[name] = int(np.isnan(said[tuple(places.T)]).sum())
            answers[name] = len(places)
            values[name] = _one_value(head, said)
    return Generated(_scores(values, engine, (time, count)), texts, unreadable, answers)


def _merge(engine: RewardEngine) -> int:
    return engine.model.config.vision_config.merge_unit


def _compares(head: Head) -> bool:
    return "previous" in head.images


def _questions(head: Head, time: int, count: int, interval: int) -> tuple[np.ndarray, np.ndarray]:
    """What a head is asked: int [B, 3] of (frame, video, order), and the frames of each question's
    images, int [B, images], video n's frame t being t * count + n."""
    begin, orders = (interval, 2) if _compares(head) else (0, 1)
    frame, video, order = np.meshgrid(
        np.arange(begin, max(time, begin)), np.arange(count), np.arange(orders), indexing="ij"
    )
    places = np.stack([frame, video, order], -1).reshape(-1, 3)
    t, n, swapped = places.T
    earlier = t - interval
    at = {
        "initial": n,
        "previous": np.where(swapped, t, earlier) * count + n,
        "current": np.where(swapped, earlier, t) * count + n,
        "goal": time * count + n,
    }
    return places, np.stack([at[i] for i in head.images], -1)


def _one_value(head: Head, said: np.ndarray) -> np.ndarray:
    """[T, N] from what was said in each order [T, N, orders]; NaN unless all could be read.

    In the other order a comparison's answers change places, so its first answer means what the
    second did.
    """
    if not _compares(head):
        return said[..., 0]
    first, second = head.values
    return (said[..., 0] + (first + second - said[..., 1])) / 2


def _scores(values: Mapping[str, np.ndarray], engine: RewardEngine, shape) -> Scores:
    found = {name: values.get(name, np.full(shape, np.nan, np.float32)) for name in HEADS}
    found["tri"] = tri_of(*(found[name] for name in ("progress", "completion", "contrastive")))
    answers = len(engine.heads["progress"].answers) if "progress" in engine.heads else 11
    return Scores(
        **found,
        valid={name: np.isfinite(value) for name, value in found.items()},
        distribution=np.full((*shape, answers), np.nan, np.float32),
        entropy=np.full(shape, np.nan, np.float32),
    )


def _row_bytes(model: Qwen3VL, slots: int, images: int, grid) -> int:
    """Bytes of one row in a micro-batch: activations of prefill and the cache (an estimate)."""
    text, itemsize = model.config.text_config, jnp.dtype(model.dtype).itemsize
    patches = grid[1] * grid[2]
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * slots * itemsize
    pictures = cost.image_bytes(model.config, patches, itemsize)
    pictures += cost.feature_bytes(model.config, patches, itemsize)
    return cost.row_bytes(model.config, slots, 1, itemsize) + cache + images * pictures


def _until(row: Sequence[int], ends: Sequence[int]) -> list[int]:
    """A row of tokens up to the first that ends it."""
    return list(row[: next((i for i, t in enumerate(row) if t in ends), len(row))])


_patches = jax.jit(patchify, static_argnums=1)
