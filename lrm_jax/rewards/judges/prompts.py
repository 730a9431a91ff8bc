"""What the judges ask: prompts with marks, ours or from a user's file.

A prompt is text in Qwen's chat format with `<video>` where the frames go, `<task>`, and for judges
that read an answer one `<answer>` at the end of what the model is made to write. The published
checkpoints were trained on their authors' wording, which is not part of this package:
`python -m lrm_jax.jobs.convert_heads` writes a file with it. The default wordings are our own.
"""

from __future__ import annotations

import os
import re
from typing import Any

from lrm_jax.rewards.heads import conversation
from lrm_jax.rewards.tokenizer import IM_START
from lrm_jax.run import atomic
from lrm_jax.run.errors import UserError

_MARK = re.compile(r"<(task|video|answer)>")

OURS = {
    "topreward": f"{IM_START}user\n<video>In this video a robot was told: <task>. The robot has "
    "done all of it, True or False? It is<answer>",
    "roboreward": conversation(
        "<video>In this video a robot was told: <task>\nHow much of that is done at its end? Give "
        "1 for nothing, 2 for a small part, 3 for a good part, 4 for nearly all and 5 for all of "
        "it, in the form ANSWER: x.",
        "ANSWER: ",
        "",
    ),
    "robometer": f"{IM_START}user\nA robot was told: <task>. For each picture of the video, how "
    "much of the task is done in it, from 0.0 for nothing to 1.0 for all? 0.0 if the robot does "
    "something else.<video>",
}


def read_prompt(file: str | os.PathLike[str], judge: str) -> str:
    """The entry of `judge` among "judges" of a JSON file; UserError if there is none."""
    raw: Any = atomic.read_json(file)
    found = raw.get("judges") if isinstance(raw, dict) else None
    if not isinstance(found, dict) or not isinstance(found.get(judge), str):
        raise UserError(f'{file}: it has no prompt of {judge}: {{"judges": {{"{judge}": "..."}}}}')
    return found[judge]


def cut(prompt: str, judge: str, answers: bool) -> tuple[list[tuple[str, str]], str]:
    """The prompt cut at its marks, ("text", ...), ("task", "") and ("video", ""), up to its
    `<answer>`; and the text behind that.

    UserError unless it shows the video once and, if the judge reads `answers`, ends in one.
    """
    marks = _MARK.findall(prompt)
    for mark, count in (("video", 1), ("answer", int(answers))):
        if marks.count(mark) != count:
            raise UserError(f"{judge}: its prompt needs <{mark}> {'once' if count else 'nowhere'}")
    if answers and marks[-1] != "answer":
        raise UserError(f"{judge}: nothing but text may follow the <answer> of its prompt")
    body, _, closing = prompt.partition("<answer>")
    pieces, at = [], 0
    for found in _MARK.finditer(body):
        pieces += [("text", body[at : found.start()]), (found[1], "")]
        at = found.end()
    pieces = [p for p in [*pieces, ("text", body[at:])] if p != ("text", "")]
    if answers and pieces[-1][0] == "video":
        raise UserError(f"{judge}: its prompt needs text between <video> and <answer>")
    return pieces, closing
