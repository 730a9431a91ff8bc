"""Numbers over time: `metrics.jsonl`, one JSON object a line, and TensorBoard events."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrm_jax.run import atomic

FILE = "metrics.jsonl"


class MetricsWriter:
    """Appends one loop's numbers to `FOLDER/metrics.jsonl` and to `FOLDER/tensorboard/SERIES`.

    A line is `{"series": ..., "step": ..., NAME: VALUE, ...}`; several loops of a run share the
    file and are told apart by `series`. Each line is on its way to the disk when `write` returns,
    so a kill loses at most the line being written, and a resumed loop has no line twice.

    Args:
      folder: an existing folder.
      series: which loop, e.g. "refine".
      resume_step: the last step that counts: later lines of this series are removed, earlier ones
        kept. None starts the series anew.
      tensorboard: whether to write TensorBoard events as well.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        series: str = "train",
        *,
        resume_step: int | None = None,
        tensorboard: bool = True,
    ):
        self._path = Path(folder) / FILE
        self.series = series
        self._keep_lines_before(resume_step)
        with atomic.writing(self._path):
            self._file = open(self._path, "a", encoding="utf-8")
        self._board: Any = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            events = Path(folder) / "tensorboard" / series
            if resume_step is None:
                shutil.rmtree(events, ignore_errors=True)
            # TensorBoard itself drops what earlier files say about purge_step and later.
            purge = None if resume_step is None else resume_step + 1
            with atomic.writing(events):
                self._board = SummaryWriter(str(events), purge_step=purge)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes the scalars `values` (numbers, numpy or jax scalars, short strings) at `step`.

        NaN and infinities are `null` in the file; TensorBoard shows finite numbers only.
        """
        plain = atomic.finite({"series": self.series, "step": int(step), **values})
        with atomic.writing(self._path):
            self._file.write(json.dumps(plain, allow_nan=False) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in plain.items():
                if name not in ("series", "step") and isinstance(value, (int, float)):
                    self._board.add_scalar(f"{self.series}/{name}", value, int(step))
            self._board.flush()

    def close(self) -> None:
        """Closes both files."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _keep_lines_before(self, resume_step: int | None) -> None:
        if not self._path.exists():
            return
        kept = [
            line
            for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines()
            if self._keeps(line, resume_step)
        ]
        atomic.write_bytes(self._path, "".join(line + "\n" for line in kept).encode())

    def _keeps(self, line: str, resume_step: int | None) -> bool:
        try:
            entry = json.loads(line)
            other = entry.get("series") != self.series
            return other or (resume_step is not None and entry["step"] <= resume_step)
        except (ValueError, AttributeError, KeyError):
            return False  # a line cut off by a kill


def read(folder: str | os.PathLike[str], series: str | None = None) -> list[dict[str, Any]]:
    """The lines of `FOLDER/metrics.jsonl` in order, of one series or of all; [] if there is no
    file."""
    path = Path(folder) / FILE
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # cut off by a kill; a resumed run writes that step again
        if series is None or entry.get("series") == series:
            entries.append(entry)
    return entries
