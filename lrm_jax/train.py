"""Runs the job that a config names: `python -m lrm_jax.train --config=configs/quickstart.py`.

The same command resumes a run that was interrupted or killed.
"""

from __future__ import annotations

from absl import flags

from lrm_jax.jobs import door
from lrm_jax.run import cli

JOBS = (
    "quickstart", "collect", "reward", "learning_curve", "adapters", "base_policy", "refine",
    "evidence",
)  # fmt: skip

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where results go (default: runs/NAME of the config)."
)


def main(argv: list[str]) -> None:
    """Dispatches to `lrm_jax.jobs.JOB.run(config, workdir)`."""
    door.run_job(argv, JOBS, _CONFIG, _WORKDIR)


if __name__ == "__main__":
    cli.run_app(main)
