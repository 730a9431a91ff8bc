"""TPU chips and slices as data, and the shortest time that they allow a program.

Source of the figures: Google Cloud's pages on TPU v5e, v5p and v6e ("key chip specifications").
They give the interconnect in both directions together; here it is what a chip can receive.
"""

from __future__ import annotations

import dataclasses
import math
import re

from lrm_jax.run.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU chip: bfloat16 FLOP/s, bytes of HBM, bytes/s of HBM and of all its links inwards.

    links: ICI ports. ring: a slice's axis of at least this many chips closes to a ring; the chips
    at the ends of a shorter one have a port less. accelerator: how Cloud names a slice. cores: what
    that name counts for each chip.
    """

    flops: float
    hbm: float
    hbm_rate: float
    ici_rate: float
    links: int
    ring: int
    accelerator: str
    cores: int = 1


CHIPS = {
    "v5e": Chip(197e12, 16e9, 819e9, 200e9, links=4, ring=16, accelerator="v5litepod"),
    "v5p": Chip(459e12, 95e9, 2765e9, 600e9, links=6, ring=4, accelerator="v5p", cores=2),
    "v6e": Chip(918e12, 32e9, 1638e9, 400e9, links=4, ring=16, accelerator="v6e"),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice of `dims` chips, named "v5e:4x4"."""

    kind: str
    dims: tuple[int, ...]

    @classmethod
    def parse(cls, name: str) -> Slice:
        """Reads "v5e:4x4"; UserError if there is no such chip or it has other dimensions."""
        kind, _, shape = name.partition(":")
        if kind not in CHIPS:
            raise UserError(f"{name!r}: unknown chip {kind!r}; {did_you_mean(kind, CHIPS)}")
        axes = CHIPS[kind].links // 2
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") + 1 != axes:
            example = "x".join(["4"] * axes)
            raise UserError(f"{name!r}: {kind} takes {axes} sizes, as in {kind}:{example}")
        return cls(kind, tuple(map(int, shape.split("x"))))

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        return math.prod(self.dims)

    @property
    def accelerator_type(self) -> str:
        return f"{self.chip.accelerator}-{self.chips * self.chip.cores}"

    @property
    def worst_ici_rate(self) -> float:
        """Bytes/s that the chip with the fewest links can receive: a corner, unless axes close."""
        ports = sum(2 if size >= self.chip.ring else min(size - 1, 1) for size in self.dims)
        return self.chip.ici_rate * ports / self.chip.links


@dataclasses.dataclass(frozen=True)
class Work:
    """What one step does: FLOPs that the model calls for (all chips together), FLOPs that run
    (recomputation included), and for one chip bytes to and from HBM and bytes received."""

    model_flops: float
    executed_flops: float
    hbm_bytes: float
    ici_bytes: float


def bound(work: Work, where: Slice) -> dict[str, float | str]:
    """Seconds each resource needs alone, the longest of them, and the share of peak FLOP/s (MFU)
    that it leaves. A lower bound on the time: nothing is waited for, all transfers are hidden."""
    chip = where.chip
    seconds = {
        "compute_seconds": work.executed_flops / where.chips / chip.flops,
        "hbm_seconds": work.hbm_bytes / chip.hbm_rate,
        "ici_seconds": work.ici_bytes / where.worst_ici_rate if work.ici_bytes else 0.0,
    }
    longest = max(seconds, key=seconds.get)
    peak = where.chips * chip.flops
    return {
        **seconds,
        "step_seconds": seconds[longest],
        "limit": longest.removesuffix("_seconds"),
        "mfu": work.model_flops / peak / seconds[longest],
    }
