"""Validation while adapters train: closed answers and the lesson's loss, on fixed examples of clips
that are not learnt from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lrm_jax import lora
from lrm_jax.labels import FrameStore
from lrm_jax.parallel.mesh import batch_sharding, replicated
from lrm_jax.parallel.placement import put
from lrm_jax.reward_training import closed_answers
from lrm_jax.reward_training.lessons import Examples, Lesson, closed_layout
from lrm_jax.reward_training.validation import BATCHES, closed_numbers
from lrm_jax.reward_training.written import Writer
from lrm_jax.rewards.model import RewardModel
from lrm_jax.rewards.scoring import normalise
from lrm_jax.run.errors import UserError
from lrm_jax.run.platform import network_options

# (adapter tree, base) -> numbers by name.
Validate = Callable[[Any, Any], dict[str, float]]


def fixed_examples(head: str, found: Examples, rows: int, part: int, seed: int) -> Examples:
    """The examples that every validation of a run asks about: at most `BATCHES` batches of `rows`,
    drawn once, in whole parts of `part`.

    UserError: they do not fill one part.
    """
    count = min(len(found), BATCHES * rows) // part * part
    if not count:
        raise UserError(
            f"head {head!r}: the validation episodes give {len(found)} examples, a batch takes "
            f"{part}: keep more episodes for validation"
        )
    return found.chosen(np.random.default_rng([seed, 11]).permutation(len(found))[:count])


def make_validate(
    model: RewardModel,
    writer: Writer,
    lesson: Lesson,
    store: FrameStore,
    found: Examples,
    part: int,
    seed: int,
) -> Validate:
    """One head's validation: {"HEAD/loss": of its lesson, "HEAD/NAME" for the lesson's other
    numbers, and its `validation.closed_numbers`}.

    Args:
      lesson: on exactly the examples `found`, a multiple of `part`; so many go through at a time.
    """
    head, layout, network = writer.head, closed_layout(writer), model.model
    values = np.asarray(head.values, np.float32)
    home = None if model.mesh is None else replicated(model.mesh)
    place = None if model.mesh is None else batch_sharding(model.mesh)

    @functools.partial(jax.jit, out_shardings=home, compiler_options=network_options())
    def run(adapter: Any, base: Any, batch: Any, rows: closed_answers.Rows):
        variables = lora.variables(base, adapter)
        sums = lesson.loss(network, variables, batch, None)
        answers = closed_answers.answer_log_probabilities(
            network, variables, layout.tables, layout.answers[0], rows
        )
        return sums, normalise(answers).expectation(values)

    def validate(adapter: Any, base: Any) -> dict[str, float]:
        total, count, more, expected = 0.0, 0.0, {}, []
        for begin in range(0, len(found), part):
            order = np.arange(begin, begin + part)
            # Its own generator, so that answers drawn for a label are the same every time.
            batch = lesson.rows(order, np.random.default_rng([seed, 12, begin]))
            rows = closed_answers.Rows(
                store.frames[found.images[order]], found.task[order], found.label[order]
            )
            given = batch, rows
            (loss, (number, others)), answer = run(
                adapter, base, *(given if place is None else put(given, place))
            )
            total, count = total + float(loss), count + float(number)
            more = {k: more.get(k, 0.0) + float(v) for k, v in others.items()}
            expected.append(np.asarray(answer))
        numbers = {f"{head.name}/loss": total / count}
        numbers |= {f"{head.name}/{k}": v / count for k, v in more.items()}
        return numbers | closed_numbers(head, np.concatenate(expected), found.label)

    return validate


def together(each: dict[str, Validate], part_of: Callable[[Any, str], Any]) -> Validate:
    """The validation of several heads, and "loss", the mean of their losses.

    part_of: (what the loop trains, head) -> the adapter tree that the head is asked with.
    """

    def validate(params: Any, base: Any) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, one in each.items():
            found |= one(part_of(params, name), base)
        losses = [found[f"{name}/loss"] for name in each]
        return {"loss": sum(losses) / len(losses)} | found

    return validate
