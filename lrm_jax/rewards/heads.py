"""Heads: what is asked about which camera frames, and which answers exist.

A head is data: a prompt with slots for the task sentence and for images, a closed set of answers
and the number that each answer stands for. The three reward heads of the method differ in nothing
else, and scene questions (`lrm_jax.reward_training.scene_heads`) are heads too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrm_jax.rewards.tokenizer import IM_END, IM_START
from lrm_jax.run import atomic
from lrm_jax.run.errors import UserError

# Frames that a prompt may show: the episode's first, the one an interval ago, the one being judged,
# and a picture of the finished task that the user gives.
IMAGES = ("initial", "previous", "current", "goal")
FILE = "reward_heads.json"
_FORMAT = 1
_MARK = re.compile(r"<(task|image:[a-z]+|answer)>")
_TENTHS = tuple(f"{k / 10:.1f}" for k in range(11))


@dataclasses.dataclass(frozen=True)
class Head:
    """One closed question.

    name: how it is called ("progress", ...).
    prompt: the whole conversation with `<task>`, `<image:initial|previous|current|goal>` and one
      `<answer>`. What stands before the answer in the assistant's turn is the scaffold that the
      model is made to write.
    answers: the texts that may stand at `<answer>`, all different.
    values: the number each answer means, in the order of `answers`.
    """

    name: str
    prompt: str
    answers: tuple[str, ...]
    values: tuple[float, ...]

    def __post_init__(self):
        object.__setattr__(self, "answers", tuple(self.answers))
        object.__setattr__(self, "values", tuple(float(v) for v in self.values))
        where = f"head {self.name!r}"
        marks = _MARK.findall(self.prompt)
        if marks.count("answer") != 1:
            raise UserError(f"{where}: its prompt needs exactly one <answer>")
        if not self.images:
            raise UserError(f"{where}: its prompt shows no image")
        if unknown := [i for i in self.images if i not in IMAGES]:
            raise UserError(f"{where}: unknown image {unknown[0]!r}; there are {', '.join(IMAGES)}")
        if len(set(self.images)) != len(self.images):
            raise UserError(f"{where}: its prompt shows one image twice")
        if (
            len(self.answers) < 2
            or len(set(self.answers)) != len(self.answers)
            or "" in self.answers
        ):
            raise UserError(f"{where}: it needs at least two answers, all different and none empty")
        if len(self.values) != len(self.answers):
            raise UserError(f"{where}: {len(self.answers)} answers but {len(self.values)} values")

    @property
    def images(self) -> tuple[str, ...]:
        """The images in the order in which the prompt shows them."""
        return tuple(
            m.removeprefix("image:") for m in _MARK.findall(self.prompt) if m.startswith("image:")
        )

    @property
    def pieces(self) -> tuple[tuple[str, str], ...]:
        """The prompt cut at its marks: ("text", ...), ("task", ""), ("image", name), ("answer",
        "")."""
        out, at = [], 0
        for found in _MARK.finditer(self.prompt):
            if found.start() > at:
                out.append(("text", self.prompt[at : found.start()]))
            kind, _, name = found[1].partition(":")
            out.append((kind, name))
            at = found.end()
        if at < len(self.prompt):
            out.append(("text", self.prompt[at:]))
        return tuple(out)


def conversation(question: str, scaffold: str, closing: str = "}") -> str:
    """A prompt in Qwen's chat format: a user turn, and an assistant's turn that opens with
    `scaffold`."""
    user = f"{IM_START}user\n{question}{IM_END}\n"
    return f"{user}{IM_START}assistant\n{scaffold}<answer>{closing}{IM_END}"


def _reward_heads(progress: str, completion: str, contrastive: str) -> tuple[Head, ...]:
    return (
        Head(
            "progress",
            conversation(progress, '{"completion_progress": '),
            _TENTHS,
            tuple(map(float, _TENTHS)),
        ),
        Head(
            "completion",
            conversation(completion, '{"task_completed": "', '"}'),
            ("no", "yes"),
            (0.0, 1.0),
        ),
        Head(
            "contrastive",
            conversation(contrastive, '{"more_complete_image": "', '"}'),
            ("ImageA", "ImageB"),
            (-1.0, 1.0),
        ),
    )


def nano_heads() -> tuple[Head, ...]:
    """The heads of `lrm-nano`: the images, the sentence, and no more (each token costs time on a
    laptop).

    The images come before the sentence. Attention looks backwards only, so the words of the
    sentence can then look for what they name in one step. With the sentence in front, 300 steps of
    training that knew where both plates are did not learn which of them is meant. One frame shows
    the whole scene, so there is no initial image. A comparison repeats the sentence behind each
    image, so that each is judged as a single one would be.
    """
    return _reward_heads(
        "<image:current><task>",
        "<image:current><task>",
        "<image:previous><task><image:current><task>",
    )


def default_heads() -> tuple[Head, ...]:
    """Heads for a Qwen3-VL checkpoint that brings none of its own: the same questions, fully
    worded."""
    return _reward_heads(
        'A robot was told: "<task>". The first picture was taken when it began, the second '
        "one now.\n"
        "Before: <image:initial>\nNow: <image:current>\n"
        "How much of the task is done by now? 0.0 means that nothing is done yet, 1.0 that all "
        'of it is done. Reply with JSON such as {"completion_progress": x}, x one of '
        + ", ".join(_TENTHS)
        + ".",
        'A robot was told: "<task>". This is what its camera sees now: <image:current>\n'
        'Is the task finished in this picture? Reply with JSON: {"task_completed": "yes"} or '
        '{"task_completed": "no"}.',
        'A robot was told: "<task>". Here are two pictures of it at work.\n'
        "ImageA: <image:previous>\nImageB: <image:current>\n"
        "In which of them is the task closer to being finished? Reply with JSON: "
        '{"more_complete_image": "ImageA"} or {"more_complete_image": "ImageB"}.',
    )


def joint_heads() -> tuple[Head, ...]:
    """The questions of `default_heads` in one wording that stands before the images.

    Up to its images the prompt is the same for all heads and frames, and a picture judged by
    progress and completion is also the first one of a comparison: the engine computes each of
    these once for a row of frames. The key that the answer opens with tells which question is
    meant. For models fine-tuned on this wording; one that is asked zero-shot may be better served
    by `default_heads`.
    """
    question = (
        'A robot was told: "<task>". You are shown one or two pictures from its camera. '
        "completion_progress: how much of the task is done in the picture, one of "
        + ", ".join(_TENTHS)
        + '. task_completed: whether it is finished, "yes" or "no". more_complete_image: in which '
        "of two pictures, ImageA and then ImageB, the task is closer to being finished. Reply with "
        "JSON.\n"
    )
    return _reward_heads(
        question + "<image:current>",
        question + "<image:current>",
        question + "<image:previous><image:current>",
    )


def by_name(heads: Sequence[Head]) -> dict[str, Head]:
    """The heads by name; UserError if two share one."""
    named = {h.name: h for h in heads}
    if len(named) != len(heads):
        raise UserError(f"two heads have one name: {[h.name for h in heads]}")
    return named


def save_heads(
    folder: str | Path, heads: Sequence[Head], extra: dict[str, Any] | None = None
) -> None:
    """Writes `reward_heads.json` into a model folder; `extra` (camera size, ...) goes beside the
    heads."""
    write_heads(Path(folder) / FILE, heads, extra)


def write_heads(
    path: str | Path, heads: Sequence[Head], extra: dict[str, Any] | None = None
) -> None:
    """Writes a file that `read_heads` reads."""
    plain = {"format": _FORMAT, **(extra or {}), "heads": [dataclasses.asdict(h) for h in heads]}
    atomic.write_json(path, plain)


def load_heads(folder: str | Path) -> tuple[tuple[Head, ...], dict[str, Any]]:
    """Reads what `save_heads` wrote: the heads and the extra entries. UserError names what is
    wrong."""
    return read_heads(Path(folder) / FILE)


def read_heads(path: str | Path) -> tuple[tuple[Head, ...], dict[str, Any]]:
    """Reads a file of heads: {"format": 1, "heads": [{"name", "prompt", "answers", "values"}]}.

    A head may say `messages` in place of `prompt`: see `from_messages`. Returns the heads and the
    file's other entries. UserError names the file, the head and what is wrong.
    """
    path = Path(path)
    raw = atomic.read_json(path)
    if (
        not isinstance(raw, dict)
        or raw.get("format") != _FORMAT
        or not isinstance(raw.get("heads"), list)
        or not raw["heads"]
    ):
        raise UserError(f"{path}: not a file of reward heads of format {_FORMAT}")
    try:
        heads = tuple(_parsed(entry, i) for i, entry in enumerate(raw["heads"]))
        by_name(heads)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return heads, {k: v for k, v in raw.items() if k not in ("format", "heads")}


def from_messages(messages: Any) -> str:
    """The prompt of a chat in Qwen's format: [{"role": "system"|"user"|"assistant", "content"}].

    The last turn is the assistant's and holds `<answer>`, behind what the model is made to write.
    UserError without a head's name: for `read_heads`.
    """
    if not isinstance(messages, list) or not messages:
        raise UserError("messages must be a list of turns with role and content")
    turns = []
    for turn in messages:
        if not isinstance(turn, dict) or set(turn) != {"role", "content"}:
            raise UserError(f"a turn of messages needs exactly role and content, not {turn!r}")
        role, content = turn["role"], turn["content"]
        if role not in ("system", "user", "assistant"):
            raise UserError(f"role {role!r}: it is system, user or assistant")
        if not isinstance(content, str) or "<|" in content:
            raise UserError(f"the {role}'s content must be text without special tokens")
        turns.append(f"{IM_START}{role}\n{content}{IM_END}")
    if messages[-1]["role"] != "assistant":
        raise UserError("the last turn of messages must be the assistant's, with <answer> in it")
    return "\n".join(turns)


def _parsed(entry: Any, number: int) -> Head:
    name = entry.get("name") if isinstance(entry, dict) else None
    where = f"head {name!r}" if isinstance(name, str) and name else f"head number {number}"
    if not isinstance(entry, dict) or set(entry) - {"messages", "prompt"} != {
        "name", "answers", "values",
    } or ("messages" in entry) == ("prompt" in entry):  # fmt: skip
        raise UserError(
            f"{where}: a head needs exactly name, prompt (or messages), answers and values"
        )
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: its name must be a text, not {name!r}")
    answers, values = entry["answers"], entry["values"]
    if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
        raise UserError(f"{where}: answers must be a list of texts, not {answers!r}")
    if not isinstance(values, list) or not all(_is_number(v) for v in values):
        raise UserError(f"{where}: values must be a list of numbers, not {values!r}")
    if "messages" in entry:
        try:
            prompt = from_messages(entry["messages"])
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    else:
        prompt = entry["prompt"]
        if not isinstance(prompt, str):
            raise UserError(f"{where}: its prompt must be a text, not {prompt!r}")
    return Head(name, prompt, tuple(answers), tuple(values))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def fingerprint(heads: Sequence[Head]) -> str:
    """SHA-256 over the wording of the heads, 64 hex digits: the prompt hash of manifests."""
    text = json.dumps([dataclasses.asdict(h) for h in heads], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
