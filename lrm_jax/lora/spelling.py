"""Names of tensors in PEFT's adapter files, and the names of a checkpoint that they stand for."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

PREFIX = "base_model.model."

_FACTOR = re.compile(r"(.*)\.lora_([AB])(?:\.[^.]+)?\.weight")
_WRAPPER = re.compile(r"\.modules_to_save\.")


class Spelling:
    """Between the names of one adapter file and those of the checkpoint.

    PEFT names a module as the network that it wrapped did, and the networks' names moved between
    versions of transformers. `rules` are pairs (beginning in a file, beginning in the checkpoint),
    of which the first that fits holds. What a file turns out to use is remembered, so that the
    patterns in its configuration can be matched against names as their author knew them.
    """

    def __init__(self, rules: Sequence[tuple[str, str]] = ()):
        self._rules = tuple(rules)
        self._seen: dict[str, str] = {}  # beginning in the checkpoint -> in this file

    def of_checkpoint(self, name: str) -> str:
        """The checkpoint's name for a module or tensor of the file, given without PREFIX."""
        for theirs, ours in self._rules:
            if name.startswith(theirs):
                self._seen.setdefault(ours, theirs)
                return ours + name.removeprefix(theirs)
        return name

    def of_file(self, name: str) -> str:
        """The file's name for a module or tensor of the checkpoint."""
        for ours in sorted(self._seen, key=len, reverse=True):
            if name.startswith(ours):
                return self._seen[ours] + name.removeprefix(ours)
        return name


def factor(key: str) -> tuple[str, str] | None:
    """(module, "a" or "b") if the key names a factor; module as in the file, without PREFIX."""
    found = _FACTOR.fullmatch(key.removeprefix(PREFIX))
    return None if found is None else (found[1], found[2].lower())


def whole(key: str, spelling: Spelling, known: Collection[str]) -> tuple[str, int] | None:
    """(the checkpoint's name, how many wrappers deep) of a key that names a full weight.

    Wrapped modules appear as "visual.modules_to_save.default.merger.norm.weight", also nested, or
    without their wrapper's name. None: no weight of the checkpoint.
    """
    # Where an adapted output layer is saved with the adapter, its own weight is called base_layer.
    name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
    depth = len(_WRAPPER.findall(name))
    # Behind the wrapper's name the adapter's own ("default") may stand or have been taken out.
    for pattern in (r"\.modules_to_save\.[^.]+\.", r"\.modules_to_save\."):
        plain = spelling.of_checkpoint(re.sub(pattern, ".", name))
        if plain in known:
            return plain, depth
    return None


def is_original(key: str) -> bool:
    """Whether the key is a frozen copy of the base's weights inside of a wrapper."""
    return ".original_module." in key
