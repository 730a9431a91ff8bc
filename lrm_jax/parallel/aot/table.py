"""The figures of compiled programs as a markdown table, a row a program.

    python -m lrm_jax.parallel.aot.table FILE...

A file holds what `lrm_jax.parallel.aot --json` writes, or a list of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lrm_jax.run.cli import run_app
from lrm_jax.run.errors import UserError

COLUMNS = (
    "model", "slice", "program", "mesh", "rows", "arguments", "temporary", "peak, GB",
    "received / by hand, GB", "compute / HBM / ICI, ms", "MFU <=", "compile, CPU s",
)  # fmt: skip


def rows(figures: Iterable[dict[str, Any]]) -> Iterator[list[str]]:
    """Cells of `COLUMNS` for each compiled program; a refinement has three."""
    for found in figures:
        what = found["program"]
        if found.get("attention", "xla") != "xla":
            what += f", {found['attention']}"
        if "tokens_per_row" in found and found["tokens_per_row"] != 320:
            what += f", {found['tokens_per_row']} tokens"
        mesh = ",".join(f"{k}={v}" for k, v in found["mesh"].items() if v > 1)
        named = [found.get("model", "").removeprefix("qwen3-vl-"), found["topology"]]
        parts = found.get("programs") or {None: found}
        for part, one in parts.items():
            label = f"{what}: {part}" if part else what
            number = found.get("rows") or found["environments"]
            yield [*named, label, mesh, f"{number}", *_cells(one, found["hbm_bytes"])]


def _cells(one: dict[str, Any], hbm: float) -> list[str]:
    if "memory" not in one:
        return ["", "", f"does not fit {hbm / 1e9:.0f}", "", "", "", ""]
    memory, hand = one["memory"], one.get("predicted_collective_bytes", {"total": 0.0})["total"]
    roofline = one.get("roofline")
    times = ("compute_seconds", "hbm_seconds", "ici_seconds")
    return [
        f"{memory['argument_bytes'] / 1e9:.2f}",
        f"{memory['temp_bytes'] / 1e9:.2f}",
        f"{memory['peak_bytes'] / 1e9:.2f} of {hbm / 1e9:.0f}",
        f"{one['collective_bytes'] / 1e9:.1f} / {hand / 1e9:.1f}",
        " / ".join(f"{1e3 * roofline[t]:.0f}" for t in times) if roofline else "",
        f"{roofline['mfu']:.2f}" if roofline else "",
        f"{one['compile_cpu_seconds']:.0f}",
    ]


def markdown(figures: Iterable[dict[str, Any]]) -> str:
    """The table."""
    lines = [list(COLUMNS), ["---"] * len(COLUMNS), *rows(figures)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(argv: list[str]) -> None:
    """Prints the table of the files that are named."""
    if len(argv) < 2:
        raise UserError("name a file that lrm_jax.parallel.aot wrote")
    found = []
    for name in argv[1:]:
        try:
            content = json.loads(Path(name).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{name} cannot be read as JSON: {error}") from error
        found += content if isinstance(content, list) else [content]
    print(markdown(found))


if __name__ == "__main__":
    run_app(main)
