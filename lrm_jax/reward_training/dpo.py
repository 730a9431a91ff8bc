"""Direct preference optimisation (arXiv 2305.18290): the right written answer over a wrong one.

    -log sigmoid(beta ((pi_c - ref_c) - (pi_r - ref_r)))

where pi and ref are log-probabilities of the whole turn (the sum over its tokens) under the adapter
and under what it began with, c is the right answer and r the wrong one. The reference never
changes, so its log-probabilities are computed once, kept on disk, and found again by what they
depend on.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.labels import FrameStore
from lrm_jax.parallel.mesh import replicated
from lrm_jax.parallel.placement import put
from lrm_jax.qwen3_vl import Qwen3VL, VisionFeatures
from lrm_jax.reward_training.lessons import Examples, Lesson, Sums
from lrm_jax.reward_training.written import (
    Conversations,
    Writer,
    answer_of,
    encode,
    token_log_probabilities,
)
from lrm_jax.run import atomic, processes
from lrm_jax.run.errors import UserError
from lrm_jax.run.platform import network_options
from lrm_jax.run.progress import bar

SAVE_EVERY = 50  # batches of reference log-probabilities


@flax.struct.dataclass
class Preferences:
    """B pairs of conversations about the same frames, the chosen one first.

    frames: uint8 [B, K, H, W, 3]. tokens, positions, valid, visual, read, target, used: as in
    `Conversations`, with an axis of 2 behind B. reference: float32 [B, 2], log-probabilities of the
    two turns under the reference.
    """

    frames: Any
    tokens: Any
    positions: Any
    valid: Any
    visual: Any
    read: Any
    target: Any
    used: Any
    reference: Any


def preferred(chosen: Conversations, rejected: Conversations, reference: np.ndarray) -> Preferences:
    """Two batches about the same frames as one of pairs."""
    both = {
        name: np.stack([value, getattr(rejected, name)], 1)
        for name, value in vars(chosen).items()
        if name != "frames"
    }
    return Preferences(chosen.frames, reference=reference, **both)


def turn_log_probabilities(
    model: Qwen3VL, variables: Any, batch: Preferences, rng: jax.Array | None = None
) -> jax.Array:
    """log P of both turns of each pair, float32 [B, 2]; frames are encoded once for the two."""
    rngs = None if rng is None else {"lora": rng}
    own = encode(model, variables, batch.frames, rngs)
    twice = functools.partial(jnp.repeat, repeats=2)
    features = VisionFeatures(twice(own.embeds, axis=0), twice(own.deepstack, axis=1))
    # The two of a pair stay neighbours, and so on one device.
    flat = {
        name: value.reshape(-1, *value.shape[2:])
        for name, value in vars(batch).items()
        if name not in ("frames", "reference")
    }
    each = token_log_probabilities(
        model, variables, Conversations(None, **flat), features, rngs
    )
    return jnp.sum(each, -1).reshape(-1, 2)


def loss(
    policy: jax.Array, reference: jax.Array, beta: float, label_smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """(loss, margin) of each pair, float32 [B], from log-probabilities [B, 2], the chosen first.

    margin: beta ((pi_c - ref_c) - (pi_r - ref_r)), the difference of the implicit rewards.
    label_smoothing: the share of preferences that are taken to be the wrong way round
      (conservative DPO), as TRL has it.
    """
    reward = beta * (policy - reference)
    margin = reward[..., 0] - reward[..., 1]
    right, wrong = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    return -(1 - label_smoothing) * right - label_smoothing * wrong, margin


def choose(writer: Writer, found: Examples, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the right and of a wrong answer for every example, int64 [E] each; drawn once, so
    that each example has one reference."""
    rng, count = np.random.default_rng([seed, 10]), len(writer.head.answers)
    chosen = answer_of(writer.head, found.label, rng)
    return chosen, (chosen + rng.integers(1, count, len(chosen))) % count


def preferences(
    writer: Writer,
    store: FrameStore,
    found: Examples,
    reference: np.ndarray,
    seed: int,
    beta: float,
    label_smoothing: float,
) -> Lesson:
    """DPO as a lesson; reference float32 [E, 2], of the pairs that `choose` gives for `seed`.

    Divided by the number of pairs. It logs "preference_accuracy", the share of pairs whose margin
    is above 0, and "preference_margin", its mean.
    """
    chosen, rejected = choose(writer, found, seed)

    def rows(order: np.ndarray, rng: np.random.Generator) -> Preferences:
        del rng
        return _pairs(writer, store, found, chosen, rejected, order, reference[order])

    def of_batch(model: Qwen3VL, variables: Any, batch: Any, rng: jax.Array | None) -> Sums:
        policy = turn_log_probabilities(model, variables, batch, rng)
        each, margin = loss(policy, batch.reference, beta, label_smoothing)
        numbers = {
            "preference_accuracy": jnp.sum(margin > 0).astype(jnp.float32),
            "preference_margin": jnp.sum(margin),
        }
        return jnp.sum(each), (jnp.int32(len(each)), numbers)

    return Lesson(writer.head, len(found), rows, of_batch)


def reference_log_probabilities(
    model: Qwen3VL,
    variables: Any,
    writer: Writer,
    store: FrameStore,
    found: Examples,
    seed: int,
    rows: int,
    folder: Path,
    identity: Any,
    place: Any = None,
) -> np.ndarray:
    """log P of every example's two turns under the reference, float32 [E, 2].

    What is already in `folder` for the same model and the same example (frames, sentence, answers)
    is read, the rest computed, `rows` at a time, and written, by the first process.

    Args:
      variables: of the reference. identity: what else they depend on, as JSON takes it (weights,
        adapter, dtype). place: a sharding for the batches, or None.
    Raises:
      UserError: a log-probability that is not finite.
    """
    chosen, rejected = choose(writer, found, seed)
    keys = _keys(writer, store, found, chosen, rejected)
    text = json.dumps(identity, sort_keys=True, default=str)
    path = folder / f"reference_{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
    known: dict[bytes, np.ndarray] = {}
    if path.exists():
        with np.load(path) as file:
            known = dict(zip(map(bytes, file["keys"]), file["values"], strict=True))
    missing = np.array([i for i, key in enumerate(keys) if key not in known], np.int64)
    if len(missing):
        folder.mkdir(parents=True, exist_ok=True)
        home = None if place is None else replicated(place.mesh)
        run = jax.jit(
            functools.partial(turn_log_probabilities, model), out_shardings=home,
            compiler_options=network_options(),
        )  # fmt: skip
        starts = range(0, len(missing), rows)
        for number, start in enumerate(bar(starts, desc="reference", unit="batch")):
            some = missing[start : start + rows]
            padded = np.resize(some, rows)
            none = np.zeros((rows, 2), np.float32)
            batch = _pairs(writer, store, found, chosen, rejected, padded, none)
            batch = batch if place is None else put(batch, place)
            values = np.asarray(run(variables, batch), np.float32)
            if not np.isfinite(values).all():
                raise UserError(
                    f"head {writer.head.name!r}: the reference gives log-probabilities that are "
                    "not finite: its adapter or the base is broken"
                )
            known |= {keys[i]: v for i, v in zip(some, values, strict=False)}
            full = (number + 1) % SAVE_EVERY == 0 or start + rows >= len(missing)
            if full and processes.is_first():
                table = np.frombuffer(b"".join(known), np.uint8).reshape(len(known), -1)
                file = io.BytesIO()
                np.savez(file, keys=table, values=np.stack(list(known.values())))
                atomic.write_bytes(path, file.getvalue())
    processes.wait_for_all(f"reference of {writer.head.name}")  # it is there before the next look
    return np.stack([known[key] for key in keys])


def _pairs(writer, store, found, chosen, rejected, order, reference) -> Preferences:
    frames = store.frames[found.images[order]]
    tasks = [writer.sentences[t] for t in found.task[order]]
    right, wrong = (writer.batch(frames, tasks, a[order]) for a in (chosen, rejected))
    return preferred(right, wrong, reference)


def _keys(writer, store, found, chosen, rejected) -> list[bytes]:
    """16 bytes for each example, by all that its two conversations are made of."""
    keys, head = [], writer.head
    for images, task, *answers in zip(found.images, found.task, chosen, rejected, strict=True):
        own = hashlib.sha256(np.ascontiguousarray(store.frames[images]))
        said = [head.prompt, writer.sentences[task], *(head.answers[a] for a in answers)]
        own.update(json.dumps(said).encode())
        keys.append(own.digest()[:16])
    return keys
