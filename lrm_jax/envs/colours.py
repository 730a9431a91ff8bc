"""Colours by name, and which combinations of them a task draws its scenes from."""

import itertools
from collections.abc import Collection, Sequence

import numpy as np

from lrm_jax.run.errors import UserError

PALETTE = {
    "red": (0.86, 0.12, 0.12),
    "green": (0.10, 0.62, 0.20),
    "blue": (0.10, 0.28, 0.88),
    "yellow": (0.95, 0.83, 0.10),
    "purple": (0.55, 0.15, 0.70),
    "orange": (0.98, 0.50, 0.06),
}
COLOURS = tuple(PALETTE)
COMBOS = ("train", "held_out", "all")


def tables() -> np.ndarray:
    """rgba float32 [2,6,4] of COLOURS: full ones for solid things, paler ones for flat marks."""
    rgb = np.array([PALETTE[c] for c in COLOURS], np.float32)
    ones = np.ones((len(rgb), 1), np.float32)
    return np.stack([np.concatenate([v, ones], 1) for v in (rgb, 0.75 * rgb + 0.12)])


def scenes(
    groups: Sequence[int],
    mentions: Sequence[Sequence[int]],
    held_out: Collection[tuple[str, ...]],
    combos: str,
) -> np.ndarray:
    """Colours of the things of every scene, as indices into COLOURS: int32 [K, sum of groups].

    Things of a group (two cubes, two plates) have different colours, here in ascending order.

    Args:
      groups: how many things each group has.
      mentions: for each sentence that a scene has, the things whose colours it says.
      held_out: the colours, in the sentence's order, that make a sentence a held-out one.
      combos: ``"train"`` keeps scenes none of whose sentences is held out, ``"held_out"`` those
        whose sentences all are, ``"all"`` every scene.

    Raises:
      UserError: another word for combos.
    """
    if combos not in COMBOS:
        raise UserError(f"combos={combos!r} is unknown: choose train, held_out or all")
    held = {tuple(COLOURS.index(c) for c in colours) for colours in held_out}
    of_group = [itertools.combinations(range(len(COLOURS)), size) for size in groups]
    rows = []
    for parts in itertools.product(*of_group):
        row = sum(parts, ())
        inside = [tuple(row[i] for i in said) in held for said in mentions]
        if combos == "all" or (not any(inside) if combos == "train" else all(inside)):
            rows.append(row)
    return np.array(rows, np.int32)
