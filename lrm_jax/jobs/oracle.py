"""The privileged arm's result, run once and recorded for the settings that it belongs to.

`settings` are those of `RefineJob.without_reward`: all that the oracle's result depends on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrm_jax.run import atomic, config

RECORD = Path(__file__).parent.parent / "benchmarks" / "results" / "quickstart_oracle.json"


def record(path: Path, settings: Sequence[Any], rows: list[dict]) -> None:
    """Write the oracle rows of a `refine` run, in the form of `RECORD`; nothing without any."""
    success = {str(r["seed"]): r["refined_success"] for r in rows if r["arm"] == "oracle"}
    if success:
        own = config.fingerprint(*settings)
        atomic.write_json(path, {"fingerprint": own, "success": success})


def recorded(settings: Sequence[Any], seed: int, path: Path = RECORD) -> float | None:
    """The oracle's success recorded for these very settings and seed, or None."""
    if not path.is_file():
        return None
    found = atomic.read_json(path)
    same = found["fingerprint"] == config.fingerprint(*settings)
    return found["success"].get(str(seed)) if same else None
