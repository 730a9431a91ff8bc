"""LoRA adapters over a frozen base, one for each question, by supervised fine-tuning on written
answers.

The paper's recipe (arXiv 2603.16065): one adapter a head, rank 64, alpha 128, on q, k, v and
o, trained for one epoch. Batches are drawn from (seed, epoch, step) alone, so that a run which was
killed goes on to bit for bit the same adapter.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lrm_jax import lora
from lrm_jax.labels import Clip, FrameStore, sentences_of
from lrm_jax.labels.examples import ExampleSettings, pair_examples, still_examples
from lrm_jax.parallel.mesh import ROW_AXES, batch_sharding, under
from lrm_jax.parallel.rows import shards
from lrm_jax.qwen3_vl import Qwen3VL, names, sharding
from lrm_jax.reward_training import resumable
from lrm_jax.reward_training.config import AdapterTraining
from lrm_jax.reward_training.step import TrainState, finite_update, schedule
from lrm_jax.reward_training.written import Conversations, Writer, answer_of, total_loss
from lrm_jax.rewards.heads import Head
from lrm_jax.rewards.model import RewardModel
from lrm_jax.run.errors import UserError
from lrm_jax.run.platform import network_options


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """E labelled questions of one head: images int64 [E, K] into the frame store, in the head's
    order; task int32 [E] into the sentences; label float32 [E] on the scale of its values."""

    images: np.ndarray
    task: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.task)


def examples_of(
    head: Head,
    clips: Sequence[Clip],
    sentences: Sequence[str],
    settings: ExampleSettings,
    seed: int,
) -> Examples:
    """All that clips teach a head; UserError if that is nothing, or it shows a goal."""
    if "goal" in head.images:
        raise UserError(f"head {head.name!r} shows a goal, which training clips do not have")
    if "previous" in head.images:
        found = pair_examples(clips, sentences, settings, seed)
        labels = found.closer
        known = labels != 0 if len(head.values) == 2 else np.ones(len(labels), bool)  # ties
    else:
        found = still_examples(clips, sentences, settings, seed)
        if head.name not in found.labels:
            raise UserError(f"head {head.name!r}: the clips have no labels of that name")
        labels = found.labels[head.name]
        known = np.isfinite(labels)
    if not known.any():
        raise UserError(f"head {head.name!r}: no clip has a label for it")
    images = np.stack([getattr(found, name) for name in head.images], -1)
    return Examples(images[known], found.task[known], labels[known].astype(np.float32))


class Batches:
    """The batches of a head by step; every epoch is a permutation of the examples.

    The last, smaller batch of an epoch is left out: batches have one shape.
    """

    def __init__(self, writer: Writer, store: FrameStore, found: Examples, rows: int, seed: int):
        if len(found) < rows:
            raise UserError(
                f"head {writer.head.name!r}: {len(found)} examples do not fill a batch of {rows}"
            )
        self.per_epoch = len(found) // rows
        self._writer, self._store, self._found = writer, store, found
        self._rows, self._seed = rows, seed

    def __call__(self, step: int) -> Conversations:
        epoch, place = divmod(step, self.per_epoch)
        order = self._order(epoch)[place * self._rows : (place + 1) * self._rows]
        rng = np.random.default_rng([self._seed, 9, step])
        head, sentences = self._writer.head, self._writer.sentences
        return self._writer.batch(
            self._store.frames[self._found.images[order]],
            [sentences[t] for t in self._found.task[order]],
            answer_of(head, self._found.label[order], rng),
        )

    @functools.lru_cache(maxsize=2)  # noqa: B019 one object a head
    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, 8, epoch]).permutation(len(self._found))


def make_optimiser(settings: AdapterTraining, steps: int) -> optax.GradientTransformation:
    """AdamW with warm-up, cosine decay and clipping for an adapter tree."""
    s = settings.optimiser
    return lora.only_trainable(
        optax.chain(
            optax.clip_by_global_norm(s.clip_norm),
            optax.adamw(schedule(s, steps), s.beta1, s.beta2, weight_decay=s.weight_decay),
        )
    )


def make_step(
    model: Qwen3VL,
    optimiser: optax.GradientTransformation,
    accumulate: int = 1,
    dropout_seed: int | None = None,
):
    """The jitted step: (state, base, batch) -> (state, {"loss", "grad_norm", "finite"}); the state
    is donated.

    state.params is an adapter tree (`lora.init`). The loss is the mean over the batch's learnt
    tokens. accumulate: the batch goes through in so many parts, with the gradients of the whole.
    Where loss or gradients are not finite the adapter stays as it was.
    """

    def loss_of(adapter, base, batch, rng):
        return total_loss(model, lora.variables(base, adapter), batch, rng)

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=network_options())
    def step(state: TrainState, base, batch: Conversations):
        rng = None
        if dropout_seed is not None:
            rng = jax.random.fold_in(jax.random.key(dropout_seed), state.step)

        def part(carry, given):
            own, number = given
            key = None if rng is None else jax.random.fold_in(rng, number)
            (loss, count), grads = jax.value_and_grad(loss_of, has_aux=True)(
                state.params, base, own, key
            )
            return jax.tree.map(jnp.add, carry, (loss, count, grads)), None

        zeros = (
            jnp.zeros(()),
            jnp.zeros((), jnp.int32),
            jax.tree.map(jnp.zeros_like, state.params),
        )
        if accumulate == 1:
            (loss, count, grads), _ = part(zeros, (batch, 0))
        else:
            # Every part takes each of its rows from another shard's, so that none moves.
            parts = jax.tree.map(
                lambda x: jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1), batch
            )
            (loss, count, grads), _ = jax.lax.scan(part, zeros, (parts, jnp.arange(accumulate)))
        loss, grads = loss / count, jax.tree.map(lambda g: g / count, grads)
        norm = optax.global_norm(
            [g for g, t in zip(*map(jax.tree.leaves, (grads, lora.trainable(grads))), strict=True)
             if t]
        )  # fmt: skip
        adapter, moments, finite = finite_update(
            optimiser, loss, norm, grads, state.params, state.optimiser
        )
        state = TrainState(adapter, moments, state.step + 1)
        return state, {"loss": loss, "grad_norm": norm, "finite": finite}

    return step


def train_adapter(
    settings: AdapterTraining,
    model: RewardModel,
    head: Head,
    store: FrameStore,
    clips: Sequence[Clip],
    folder: str | os.PathLike[str],
    *,
    metrics: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """The adapter tree of one head.

    Args:
      model: the frozen base; its mesh, if it has one, is trained over.
      store, clips: labelled frames, of the camera's size.
      folder: for checkpoints; kept between tries, deleted by the caller.
      metrics: a folder for `metrics.jsonl` and TensorBoard events, series "adapter_HEAD".
    Raises:
      UserError: nothing to learn from, a batch that the mesh or `accumulate` does not divide, a
        loss that stays infinite or NaN (the batch is then in `folder`/bad_batch.npz).
    """
    config = settings.lora_config()
    leaves = names.leaves(model.config)
    sentences = sentences_of(clips)
    size = tuple(store.frames.shape[1:3])
    writer = Writer(head, model.tokenizer, model.config, size, sentences)
    found = examples_of(head, clips, sentences, settings.examples, settings.seed)
    draw = Batches(writer, store, found, settings.rows, settings.seed)
    total = settings.steps or settings.epochs * draw.per_epoch
    optimiser = make_optimiser(settings, total)
    network = model.model.clone(remat=settings.remat)
    adapter = lora.init(jax.random.key(settings.seed), model.params, config, leaves)
    with under(model.mesh):
        parts = shards(ROW_AXES) * settings.accumulate
        if settings.rows % parts:
            raise UserError(
                f"rows is {settings.rows}: it must be a multiple of {parts} (shards of the mesh "
                "times accumulate)"
            )
        if model.mesh is not None:
            adapter = sharding.place_adapter(adapter, model.mesh)
        # Under jit, moments lie where their factors do.
        moments = jax.jit(optimiser.init)(adapter)
        state = TrainState(adapter, moments, jnp.zeros((), jnp.int32))
        step = make_step(
            network, optimiser, settings.accumulate, settings.seed if config.dropout else None
        )
        facts = {
            "settings": settings, "head": head.name, "model": model.facts, "examples": len(found),
            "sentences": sentences,
        }  # fmt: skip
        place = None if model.mesh is None else batch_sharding(model.mesh)

        def taught(state, number, batch):
            given = batch if place is None else jax.device_put(batch, place)
            return step(state, model.params, given)

        state, _ = resumable.run(
            resumable.Steps(f"adapter_{head.name}", total, facts, draw, taught),
            state,
            folder,
            resumable.Pace(settings.checkpoint_every),
            metrics=metrics,
        )
    return state.params


def save_adapter(
    folder: str | os.PathLike[str], adapter: Any, settings: AdapterTraining, model: RewardModel
) -> None:
    """The adapter as a folder that PEFT and `load_reward_model(adapters=)` read."""
    host = jax.tree.map(np.asarray, adapter)
    lora.save_peft(
        folder, host, settings.lora_config(), names.leaves(model.config),
        base_model=str(model.name),
    )  # fmt: skip
