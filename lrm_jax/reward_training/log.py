"""The numbers of training steps: gathered on the device, written now and then, and watched."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lrm_jax.run.errors import UserError
from lrm_jax.run.metrics import MetricsWriter

# A single step that overflows is skipped (`step.finite_update`); this many in a row mean that
# training has failed.
MAX_SKIPPED = 5
# Numbers leave the device once in this many steps: waiting for each would stall the next one's
# dispatch.
LOG_EVERY = 10


class StepLog:
    """Gathers the numbers of steps, stops on a loss that is lost, writes them where the user wants
    them.

    Args:
      folder: for `metrics.jsonl` and TensorBoard events; None writes nothing.
      series: which loop. resume_step: see `MetricsWriter`.
      on_lost: called with the number of the last lost step before the error; returns words to add.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        series: str,
        resume_step: int | None,
        on_lost: Callable[[int], str] | None = None,
    ):
        self._inner = (
            None if folder is None else MetricsWriter(folder, series, resume_step=resume_step)
        )
        self._waiting: list[tuple[int, dict[str, jax.Array]]] = []
        self._skipped, self._on_lost = 0, on_lost

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self._inner is not None:
            self._inner.close()

    def add(self, step: int, numbers: dict[str, jax.Array]) -> None:
        """Keeps what step number `step` (from 0) gave, on the device; "loss" and "finite" are among
        it."""
        self._waiting.append((step, numbers))

    def flush(self, **facts: str) -> dict[str, float]:
        """Writes the means since the last time beside `facts`, and returns them.

        UserError where the loss was not finite for `MAX_SKIPPED` steps in a row.
        """
        rows = [(s, {k: float(v) for k, v in jax.device_get(n).items()}) for s, n in self._waiting]
        self._waiting = []
        for step, numbers in rows:
            self._skipped = 0 if numbers["finite"] else self._skipped + 1
            if self._skipped >= MAX_SKIPPED:
                where = "".join(f" ({k} {v})" for k, v in facts.items())
                more = "" if self._on_lost is None else f"; {self._on_lost(step)}"
                raise UserError(
                    f"the loss is not a finite number for {MAX_SKIPPED} steps up to {step}{where}: "
                    "lower the optimiser's learning_rate, or start from an earlier checkpoint"
                    f"{more}"
                )
        # Heads that are trained in turn do not all have numbers for every step.
        names = dict.fromkeys(k for _, n in rows for k in n)
        means = {k: float(np.mean([n[k] for _, n in rows if k in n])) for k in names}
        self.write(rows[-1][0] + 1, {**facts, **means})
        return means

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes `values` now."""
        if self._inner is not None:
            self._inner.write(step, values)
