"""The privileged arm's result, run once and recorded for the settings that it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lrm_jax.run import atomic, config

if TYPE_CHECKING:
    from lrm_jax.jobs.refine import RefineJob

RECORD = Path(__file__).parent.parent / "benchmarks" / "results" / "quickstart_oracle.json"


def fingerprint(job: RefineJob) -> str:
    """What the oracle's result depends on: everything but the reward model and the arms."""
    parts = (job.env, job.demonstrations, job.policy, job.clone, job.refine, job.evaluation)
    return config.fingerprint(*parts)


def record(path: Path, job: RefineJob, rows: list[dict]) -> None:
    """Write the oracle rows of a `refine` run, in the form of `RECORD`; nothing without any."""
    success = {str(r["seed"]): r["refined_success"] for r in rows if r["arm"] == "oracle"}
    if success:
        atomic.write_json(path, {"fingerprint": fingerprint(job), "success": success})


def recorded(job: RefineJob, seed: int, path: Path = RECORD) -> float | None:
    """The oracle's success recorded for these very settings and seed, or None."""
    if not path.is_file():
        return None
    found = atomic.read_json(path)
    return found["success"].get(str(seed)) if found["fingerprint"] == fingerprint(job) else None
