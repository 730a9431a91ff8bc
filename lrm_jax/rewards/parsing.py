"""Generated text to the number that a head's answer stands for.

What a text must hold follows from the head: a JSON object with the key that the head's scaffold
opens with, and for it one of the head's answers. The released adapters answer so:
`{"more_complete_image": "ImageB"}`, `{"completion_progress": 0.3}`, `{"task_completed": "yes"}`. A
text without such an object says nothing: there is no guessing from words or stray numbers, which
would turn a failure into a score.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from lrm_jax.rewards.heads import Head
from lrm_jax.rewards.tokenizer import IM_END, IM_START
from lrm_jax.run.errors import UserError

OPENING = f"{IM_START}assistant\n"
_KEY = re.compile(r'\{\s*"([^"]+)"\s*:\s*"?[^"]*$')


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads one head's answers.

    key: of the JSON object. meanings: the number that each answer stands for, answers without
    regard to case where they differ without it. span: where the answers are numbers that stand for
    themselves, the least and the largest: any number between them is an answer.
    """

    key: str
    meanings: Mapping[str, float]
    folds: bool
    span: tuple[float, float] | None

    def read(self, text: str) -> float | None:
        """The number in the last complete JSON object with the key, wherever it stands in `text`
        (behind reasoning, in a fence); None if there is no such object or its answer is none of
        the head's."""
        said = None
        for found in _objects(text, self.key):
            said = found
        value = said[self.key] if said is not None else None
        if isinstance(value, str):
            known = value.strip()
            known = self.meanings.get(known.casefold() if self.folds else known)
            return self._number(value) if known is None else known
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        if self.span is None:  # numbers that stand for others: only as the head spells them
            return self.meanings.get(str(value))
        return float(value) if self.span[0] <= value <= self.span[1] else None

    def _number(self, text: str) -> float | None:
        value = _float(text)
        if self.span is None or value is None or not self.span[0] <= value <= self.span[1]:
            return None
        return value


def reader(head: Head) -> Reader:
    """The reader of a head's answers; UserError if its scaffold does not open a JSON object."""
    scaffold, _ = scaffold_of(head)
    found = _KEY.search(scaffold)
    if not found:
        raise UserError(
            f"head {head.name!r}: generated answers are read by the key of a JSON object, and its "
            f'assistant\'s turn opens with {scaffold!r}: let it open like {{"key": '
        )
    # The scaffold may hold an answer's first letters or its opening quote.
    begun = scaffold[found.end(1) + 1 :].partition(":")[2].strip().removeprefix('"')
    answers = [(begun + a).strip() for a in head.answers]
    folded = [a.casefold() for a in answers]
    folds = len(set(folded)) == len(folded)
    numbers = [_float(a) for a in answers]
    plain = all(n == v for n, v in zip(numbers, head.values, strict=True))
    return Reader(
        found[1],
        dict(zip(folded if folds else answers, head.values, strict=True)),
        folds,
        (min(head.values), max(head.values)) if plain else None,
    )


def scaffold_of(head: Head) -> tuple[str, str]:
    """What a head's assistant turn opens with, and what closes it behind the answer.

    UserError if the answer is not in an assistant's turn, or that turn shows an image or the task.
    """
    pieces = head.pieces
    at = pieces.index(("answer", ""))
    kind, before = pieces[at - 1] if at else ("", "")
    _, opened, scaffold = before.rpartition(OPENING)
    if kind != "text" or not opened or IM_START in scaffold:
        raise UserError(
            f"head {head.name!r}: to generate, its <answer> must stand in an assistant's turn with "
            "nothing but text before it"
        )
    return scaffold, "".join(t for _, t in pieces[at + 1 :]).partition(IM_END)[0]


def _objects(text: str, key: str):
    """The JSON objects in `text` that have `key`, in order, not those inside of another."""
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0:
        try:
            found, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):  # not JSON, cut off, or nested without end
            found, end = None, at + 1
        if isinstance(found, dict) and key in found:
            yield found
        else:
            end = at + 1
        at = text.find("{", end)


def _float(text: Any) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
