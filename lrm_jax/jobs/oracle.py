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
    ours = [row for row in rows if row["arm"] == "oracle"]
    if ours:
        content = {
            "fingerprint": config.fingerprint(*settings),
            "success": {str(row["seed"]): row["refined_success"] for row in ours},
            "base": {str(row["seed"]): row["base_success"] for row in ours},
        }
        atomic.write_json(path, content)


def recorded(settings: Sequence[Any], seed: int, path: Path = RECORD) -> dict[str, float | None]:
    """{"oracle_success", "oracle_base"} recorded for these very settings and seed, else None each.

    "oracle_base" is the clone that the oracle refined: processors round differently, so another
    machine's clone of the same seed is another policy.
    """
    found = atomic.read_json(path) if path.is_file() else None
    if found is None or found["fingerprint"] != config.fingerprint(*settings):
        return {"oracle_success": None, "oracle_base": None}
    return {f"oracle_{name}": found[name].get(str(seed)) for name in ("success", "base")}
