"""Which heads a loaded model asks: its own, a built-in set by name, or a user's file.

What the engine takes for granted of the three reward heads is checked here, so that a user's file
fails when it is read and the line names it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lrm_jax.rewards import heads as heads_file
from lrm_jax.rewards.engine import HEADS
from lrm_jax.rewards.heads import Head, default_heads, joint_heads, nano_heads
from lrm_jax.run.errors import UserError, did_you_mean

BUILT_IN: dict[str, Callable[[], tuple[Head, ...]]] = {
    "default": default_heads,
    "joint": joint_heads,
    "nano": nano_heads,
}


def choose(
    folder: Path, chosen: str | os.PathLike[str] | None
) -> tuple[tuple[Head, ...], dict[str, Any]]:
    """The heads of the model in `folder`, and the extra entries of its file of heads.

    Args:
      folder: of the model. Without `reward_heads.json` in it the heads are the default ones.
      chosen: None for the model's own; "default", "joint" or "nano"; or a file in the format of
        `reward_heads.json` (`heads.read_heads`). In place of the model's heads only its camera's
        size stays, unless the file says its own.
    Raises:
      UserError: no such file or built-in set, or a head that cannot be asked.
    """
    own, extra = default_heads(), {}
    if (folder / heads_file.FILE).is_file():
        own, extra = heads_file.load_heads(folder)
    if chosen is None:
        return own, extra
    extra = {k: v for k, v in extra.items() if k == "image_size"}
    word = os.fspath(chosen)
    if word in BUILT_IN:
        return BUILT_IN[word](), extra
    if not Path(word).is_file():
        raise UserError(
            f"heads: {word} is no file and no built-in set; {did_you_mean(word, BUILT_IN)}"
        )
    heads, more = heads_file.read_heads(word)
    try:
        check(heads)
    except UserError as error:
        raise UserError(f"{word}: {error}") from error
    return heads, extra | more


def check(heads: Sequence[Head]) -> None:
    """UserError unless the engine can ask `heads` and `Scores` can hold what they answer."""
    for head in heads:
        where = f"head {head.name!r}"
        if head.name not in HEADS:
            raise UserError(f"{where} is none of the rewards; {did_you_mean(head.name, HEADS)}")
        if "current" not in head.images:
            raise UserError(f"{where}: it never shows <image:current>, the frame being judged")
        compares = "previous" in head.images
        if compares != (head.name == "contrastive"):
            does = "shows" if compares else "does not show"
            raise UserError(
                f"{where} {does} <image:previous>: contrastive compares two frames, and only it"
            )
        if compares and sorted(head.values) != [-1.0, 1.0]:
            raise UserError(
                f"{where}: it needs two answers with values -1 (the first picture is closer to "
                f"done) and 1, not {list(head.values)}"
            )
        if not compares and not all(0 <= v <= 1 for v in head.values):
            raise UserError(f"{where}: its values must lie in [0, 1], not {list(head.values)}")
