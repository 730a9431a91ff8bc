"""Which adapter each head speaks with, and the network's variables under it.

Heads of different adapters cannot share a row, and their rows differ in length, so each adapter has
rows and a forward of its own: in it only one adapter's factors are at work, where a mixed batch
would compute those of all adapters for each row (see `qwen3_vl.layers.Linear`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lrm_jax import lora


def groups(names: Sequence[str], adapters: Mapping[str, int]) -> dict[int, tuple[str, ...]]:
    """The heads `names` by the number of their adapter, -1 for the base."""
    found: dict[int, tuple[str, ...]] = {}
    for name in names:
        number = adapters.get(name, -1)
        found[number] = (*found.get(number, ()), name)
    return found


def variables_for(variables: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What the network takes under adapter `number` of variables["adapters"]; -1 is the base."""
    if number < 0:
        return {k: v for k, v in variables.items() if k != "adapters"}
    return lora.variables(variables["params"], variables["adapters"][number])


def eyes(variables: Mapping[str, Any], number: int) -> int:
    """The adapter that images have to be encoded under for this one: itself, if it reaches the
    vision tower, else -1, the base."""
    if number < 0:
        return number
    return number if any("visual" in t for t in variables["adapters"][number].values()) else -1
