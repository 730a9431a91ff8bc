"""What an adapter is taught: a head's examples, the batches made of them, and the loss of a batch.

Every objective is a `Lesson`; the step and the loop know nothing else of it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.labels import Clip, FrameStore
from lrm_jax.labels.examples import ExampleSettings, pair_examples, still_examples
from lrm_jax.qwen3_vl import Qwen3VL
from lrm_jax.reward_training import closed_answers, objective
from lrm_jax.reward_training.written import Conversations, Writer, answer_of, total_loss
from lrm_jax.rewards.heads import Head
from lrm_jax.rewards.layout import Layout, Query, build_layout
from lrm_jax.run.errors import UserError

# The sum of a batch's losses float32 []; what to divide it by, and sums of other numbers to log.
Sums = tuple[jax.Array, tuple[jax.Array, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """E labelled questions of one head: images int64 [E, K] into the frame store, in the head's
    order; task int32 [E] into the sentences; label float32 [E] on the scale of its values."""

    images: np.ndarray
    task: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.task)

    def chosen(self, order: np.ndarray) -> Examples:
        """Those at the places `order` int64 [N], in that order."""
        return Examples(self.images[order], self.task[order], self.label[order])


Stored = tuple[FrameStore, Examples]


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


class Labelled(NamedTuple):
    """B examples: frames uint8 [B, K, H, W, 3], the head's images in order; B sentences; label
    float32 [B] on the scale of the head's values."""

    frames: np.ndarray
    sentences: list[str]
    label: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Lesson:
    """An objective for one head.

    head: whose. examples: E, how many are stored; 0 if they are streamed. rows: (places int64 [B]
    among them, generator) -> a batch, a pytree of arrays whose first axis is B; None if they are
    streamed. loss: (network, variables, batch, key for dropout or None) -> `Sums`. batch:
    (examples, generator) -> a batch of them; None where a batch needs what is computed before.
    """

    head: Head
    examples: int
    rows: Callable[[np.ndarray, np.random.Generator], Any] | None
    loss: Callable[[Qwen3VL, Any, Any, jax.Array | None], Sums]
    batch: Callable[[Labelled, np.random.Generator], Any] | None = None


class Batches:
    """The batches of a lesson by step; every epoch is a permutation of the examples.

    The last, smaller batch of an epoch is left out: batches have one shape.
    """

    def __init__(self, lesson: Lesson, rows: int, seed: int):
        if lesson.examples < rows:
            raise UserError(
                f"head {lesson.head.name!r}: {lesson.examples} examples do not fill a batch of "
                f"{rows}"
            )
        self.per_epoch = lesson.examples // rows
        self._lesson, self._rows, self._seed = lesson, rows, seed

    def __call__(self, step: int) -> Any:
        epoch, place = divmod(step, self.per_epoch)
        order = self._order(epoch)[place * self._rows : (place + 1) * self._rows]
        return self._lesson.rows(order, np.random.default_rng([self._seed, 9, step]))

    @functools.lru_cache(maxsize=2)  # noqa: B019 one object a head
    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, 8, epoch]).permutation(self._lesson.examples)


def _lesson(writer: Writer, batch: Any, loss: Any, stored: Stored | None) -> Lesson:
    """Of batches of any labelled examples, and of the stored ones if there are any."""
    if stored is None:
        return Lesson(writer.head, 0, None, loss, batch)
    store, found = stored

    def rows(order: np.ndarray, rng: np.random.Generator) -> Any:
        sentences = [writer.sentences[t] for t in found.task[order]]
        shown = Labelled(store.frames[found.images[order]], sentences, found.label[order])
        return batch(shown, rng)

    return Lesson(writer.head, len(found), rows, loss, batch)


def written(writer: Writer, stored: Stored | None) -> Lesson:
    """Supervised fine-tuning on the written answer (`written.total_loss`); stored: None where
    examples are streamed."""

    def batch(shown: Labelled, rng: np.random.Generator) -> Conversations:
        answers = answer_of(writer.head, shown.label, rng)
        return writer.batch(shown.frames, shown.sentences, answers)

    return _lesson(writer, batch, written_loss, stored)


def written_loss(model: Qwen3VL, variables: Any, batch: Any, rng: jax.Array | None) -> Sums:
    """`total_loss` as a lesson's loss; divided by the number of learnt tokens."""
    total, count = total_loss(model, variables, batch, rng)
    return total, (count, {})


def closed_layout(writer: Writer) -> Layout:
    """The token tree from which the closed answers of the writer's head are read."""
    return build_layout(
        [Query(writer.head, writer.head.images)], writer.sentences, writer.tokenizer,
        writer.config, writer.image_size,
    )  # fmt: skip


def expected(
    writer: Writer,
    stored: Stored | None,
    distribution: str,
    smoothing: float,
    closed_mass: float,
) -> Lesson:
    """A loss on the distribution of the closed answers, read from the token tree in one forward.

    stored: None where examples are streamed. distribution, smoothing, closed_mass: see
    `AdapterTraining`. Divided by the number of rows. What stands behind the answer is not learnt:
    such an adapter is scored, not asked to write, unless it began with one that can.
    """
    head = writer.head
    ascending = np.argsort(head.values)
    values = np.asarray(head.values)[ascending]
    layout = closed_layout(writer)
    spread = smoothing if len(values) > 2 else 0.0

    number = {s: i for i, s in enumerate(writer.sentences)}

    def made(shown: Labelled, rng: np.random.Generator) -> closed_answers.Rows:
        del rng
        task = np.array([number[s] for s in shown.sentences], np.int32)
        return closed_answers.Rows(shown.frames, task, shown.label)

    def loss(model: Qwen3VL, variables: Any, batch: Any, rng: jax.Array | None) -> Sums:
        answers = closed_answers.answer_log_probabilities(
            model, variables, layout.tables, layout.answers[0], batch,
            None if rng is None else {"lora": rng},
        )[..., ascending]  # fmt: skip
        if distribution == "cross_entropy":
            each = objective.cross_entropy(
                answers, objective.target(values, batch.labels, spread)
            )
        else:
            kind = {"crps": objective.crps, "mse": objective.squared_error}[distribution]
            each = kind(answers, values, batch.labels) + closed_mass * objective.outside(answers)
        mean = jnp.sum(jax.nn.softmax(answers, -1) * jnp.asarray(values, jnp.float32), -1)
        error = jnp.sum(jnp.abs(mean - batch.labels))
        return jnp.sum(each), (jnp.int32(len(batch.labels)), {"mae": error})

    return _lesson(writer, made, loss, stored)
