"""A file of heads with the exact prompts of published code, taken from a checkout of it.

The released adapters were trained on their authors' wording, which is not part of this package
(third_party/README.md says where to get it). This module finds it in the source: the function that
builds a prompt holding a head's answer key. Nothing of the checkout is executed.

Facts used of the released code (github.com/physical-superintelligence-lab/Large-Reward-Models,
5845ab0): user turn only; images stand where `<image>` does; answers are JSON objects of one key;
the completion head strips the texts between images, the others do not.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrm_jax.rewards import source_text
from lrm_jax.rewards.heads import Head, conversation, default_heads
from lrm_jax.rewards.source_text import TASK, Function, Picture
from lrm_jax.rewards.tokenizer import IM_START
from lrm_jax.run.errors import UserError

IMAGE = "<image>"
KEYS = {
    "progress": "completion_progress",
    "completion": "task_completed",
    "contrastive": "more_complete_image",
}


def released_heads(
    checkout: Path,
    *,
    goal: bool = False,
    initial: bool = True,
    functions: Mapping[str, str] | None = None,
) -> tuple[Head, ...]:
    """The three heads with the prompts that a checkout of the released code builds.

    Args:
      checkout: its folder.
      goal, initial: whether the progress prompt shows a goal and the episode's first image. The
        authors' reinforcement learning uses the first image and no goal.
      functions: the function that builds a head's prompt, by head; needed only where several do.
    Raises:
      UserError: a head's prompt is not there, not readable, or ambiguous; it says what was found.
    """
    if not checkout.is_dir():
        raise UserError(f"{checkout}: no such folder; give a checkout of the released code")
    known = list(source_text.functions(checkout))
    optional = [k for k, on in (("goal", goal), ("initial", initial)) if on]
    pictures = {name: ("previous", "current") for name in KEYS}
    pictures["progress"] = (*optional, "current")
    return tuple(
        _head(plain, known, pictures[plain.name], (functions or {}).get(plain.name), checkout)
        for plain in default_heads()
    )


def _head(
    plain: Head,
    known: Sequence[Function],
    pictures: Sequence[str],
    only: str | None,
    checkout: Path,
) -> Head:
    key, name = KEYS[plain.name], plain.name
    found: dict[str, list[Function]] = {}
    for function in known:
        if only not in (None, function.node.name):
            continue
        for question in _questions(function, pictures, key):
            found.setdefault(question, []).append(function)
    if not found:
        raise UserError(
            f"{checkout}: no function that builds a prompt with {IMAGE} and {key!r} for head "
            f"{name!r}; the key stands in: {_mentions(known, key)}"
        )
    if len(found) > 1:
        places = ", ".join(f.where for own in found.values() for f in own)
        raise UserError(
            f"{checkout}: several prompts for head {name!r} ({places}): name a function of them"
        )
    (question,) = found
    return Head(
        name, conversation(question, *_scaffold(question, key, plain)), plain.answers, plain.values
    )


def _questions(function: Function, pictures: Sequence[str], key: str) -> list[str]:
    """The user turns in the function that ask for `key`, with our marks for images."""
    variables = source_text.read(function, pictures)
    texts = [t for t in variables.values() if isinstance(t, str) and f'"{key}"' in t]
    shown = [
        [p.kind for p in value]
        for value in variables.values()
        if isinstance(value, list) and value and all(isinstance(p, Picture) for p in value)
    ]
    made = []
    for text in texts:
        count = text.count(IMAGE)
        order = next((kinds for kinds in shown if len(kinds) == count), None)
        if order is None and count == 1:
            order = ["current"]
        if order is None or TASK not in text:
            continue
        segments = text.split(IMAGE)
        if _strips(function.node):
            segments = [s.strip() for s in segments]
        segments = [s if s.strip() else "" for s in segments]
        marks = [f"<image:{kind}>" for kind in order]
        made.append(segments[0] + "".join(m + s for m, s in zip(marks, segments[1:], strict=True)))
    return list(dict.fromkeys(made))


def _strips(function: ast.FunctionDef) -> bool:
    """Whether the texts of the chat's content are stripped: {..., "text": x.strip()}."""
    for node in ast.walk(function):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if (
                    isinstance(key, ast.Constant)
                    and key.value == "text"
                    and isinstance(value, ast.Call)
                    and isinstance(value.func, ast.Attribute)
                    and value.func.attr == "strip"
                ):
                    return True
    return False


def _scaffold(question: str, key: str, plain: Head) -> tuple[str, str]:
    """What the answer opens and closes with, spaced as the JSON in the question is."""
    shape = re.search(r"\{(\s*)" + f'"{key}"' + r"(\s*:\s*)", question)
    inner, colon = shape.groups() if shape else ("", ": ")
    quote = "" if plain.name == "progress" else '"'
    return f'{{{inner}"{key}"{colon}{quote}', f"{quote}{inner}}}"


def _mentions(known: Sequence[Function], key: str) -> str:
    found = []
    for function in known:
        for node in ast.walk(function.node):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and key in node.value:
                found.append(f"{function.path.name}:{node.lineno} {function.node.name}")
    return ", ".join(dict.fromkeys(found)) or "no function"


def released_judges(checkout: Path) -> dict[str, str]:
    """The prompts of TOPReward, RoboReward and Robometer in the released code, as
    `rewards.judges` takes them. UserError names what is not there."""
    texts: dict[str, str] = {}
    for _, module in source_text.modules(checkout):
        texts |= source_text.constants(module)
    prefix, suffix, rubric = (
        _constant(texts, name, checkout)
        for name in ("TOPREWARD_PREFIX", "TOPREWARD_SUFFIX", "ROBOREWARD_PROMPT")
    )
    if not suffix.endswith(" True"):
        raise UserError(f"{checkout}: TOPREWARD_SUFFIX does not end in ' True', the token it reads")
    try:
        rubric = rubric.format(task=TASK)
    except (LookupError, ValueError) as error:
        raise UserError(f"{checkout}: ROBOREWARD_PROMPT has other fields than task") from error
    return {
        "topreward": f"{IM_START}user\n<video>{prefix}{TASK}{suffix.removesuffix(' True')}<answer>",
        "roboreward": conversation(f"<video>{rubric}", "ANSWER: ", ""),
        "robometer": f"{IM_START}user\n{_robometer(checkout)}<video>",
    }


def _constant(texts: Mapping[str, str], name: str, checkout: Path) -> str:
    if name not in texts:
        like = sorted(t for t in texts if t.split("_")[0] == name.split("_")[0])
        raise UserError(f"{checkout}: no text called {name}; there are {', '.join(like) or 'none'}")
    return texts[name]


def _robometer(checkout: Path) -> str:
    seen: dict[str, Any] = {}
    for function in source_text.functions(checkout):
        if "robometer" in function.node.name.lower():
            variables = source_text.read(function, ())
            seen |= {k: v for k, v in variables.items() if isinstance(v, str) and TASK in v}
    if "official_prompt" not in seen:
        names = ", ".join(sorted(seen)) or "none"
        raise UserError(f"{checkout}: no prompt of Robometer (official_prompt); there are {names}")
    return seen["official_prompt"]
