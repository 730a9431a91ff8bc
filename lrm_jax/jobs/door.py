"""What the doors share: from a parsed command line to the job that its config names.

Each door defines its own flags, so that its --help lists them.
"""

import importlib
from collections.abc import Sequence

from absl import flags

from lrm_jax.parallel.joining import join_from_environment
from lrm_jax.parallel.mesh import ask_for_cores
from lrm_jax.run import cli, manifest
from lrm_jax.run.errors import UserError, did_you_mean
from lrm_jax.run.workdir import Workdir

HEADS_FILE = (
    "Questions in place of the model's own: default, joint, nano, or a file in the format of "
    "reward_heads.json."
)


def run_job(
    argv: Sequence[str],
    jobs: Sequence[str],
    config: flags.FlagHolder,
    workdir: flags.FlagHolder,
) -> None:
    """Runs `lrm_jax.jobs.JOB.run(config, workdir)` for the config's job, one of ``jobs``.

    UserError for another job or words left over on the command line.
    """
    cli.reject_arguments(argv)
    job = config.value.get("job", None)
    if job not in jobs:
        raise UserError(f"config.job is {job!r}: {did_you_mean(str(job), jobs)}")
    join_from_environment()
    ask_for_cores(config.value.get("mesh", ""))  # the manifest starts JAX's backends
    module = importlib.import_module(f"lrm_jax.jobs.{job}")
    with Workdir(workdir.value or f"runs/{cli.config_name()}") as folder:
        with manifest.recording(folder.path, config=config.value, job=job):
            module.run(config.value, folder)


def adapter_folders(given: list[str]) -> dict[str, str]:
    """{head: folder} of HEAD=FOLDER words; UserError where one is not of this form."""
    return named(given, "adapter", "progress=adapters/progress", "FOLDER")


def named(given: list[str], flag: str, example: str, what: str = "NAME") -> dict[str, str]:
    """{head: word} of a flag's HEAD=... words; UserError where one is not of this form."""
    found: dict[str, str] = {}
    for pair in given:
        head, sign, word = pair.partition("=")
        if not (sign and head and word):
            raise UserError(f"--{flag}={pair}: give HEAD={what}, such as {example}")
        if head in found:
            raise UserError(f"--{flag}: head {head!r} is given twice")
        found[head] = word
    return found
