"""The door `lrm_jax.train` with a made-up job, as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

# Puts a job of three checkpointed steps in the place of the real "refine"; argv goes to the door.
HARNESS = """
import os, sys, types, runpy
import lrm_jax
from lrm_jax.run.errors import UserError

job = types.ModuleType("lrm_jax.jobs.refine")
def run(config, work):
    if config.steps < 1:
        raise UserError(f"config.steps is {config.steps}: must be at least 1")
    done = work / "done.txt"
    for i in range(len(done.read_text()) if done.exists() else 0, config.steps):
        if i == config.stop_at:
            raise KeyboardInterrupt
        with open(done, "a") as f:
            f.write("x")
job.run = run
sys.modules["lrm_jax.jobs.refine"] = job
sys.argv[0] = "train.py"
runpy.run_module("lrm_jax.train", run_name="__main__")
"""
CONFIG = """
from ml_collections import ConfigDict
def get_config():
    return ConfigDict({"job": "refine", "steps": 3, "stop_at": -1})
"""


@pytest.fixture
def train(tmp_path):
    (tmp_path / "tiny.py").write_text(textwrap.dedent(CONFIG))

    def run(*args):
        return subprocess.run(
            [sys.executable, "-c", HARNESS, "--config=tiny.py", *args],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=False,
        )

    return run


def test_interrupted_run_resumes_and_the_manifest_tells(train, tmp_path):
    first = train("--config.stop_at=2")
    assert (first.returncode, first.stderr) == (130, "interrupted: the same command resumes\n")
    second = train()
    assert second.returncode == 0, second.stderr
    folder = tmp_path / "runs" / "tiny"  # the default, from the config's name
    assert (folder / "done.txt").read_text() == "xxx"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [r["status"] for r in manifest["runs"]] == ["interrupted", "done"]
    assert manifest["config"]["steps"] == 3
    assert manifest["job"] == "refine"
    assert manifest["versions"]["jax"]
    assert manifest["argv"][1] == "--config=tiny.py"


def test_user_errors(train, tmp_path):
    wrong = train("--config.job=refin")
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "error: config.job is 'refin': did you mean 'refine'?\n",
    )
    low = train("--config.steps=0")
    assert (low.returncode, low.stderr) == (2, "error: config.steps is 0: must be at least 1\n")
    unwritable = train("--workdir=tiny.py/below")
    assert unwritable.returncode == 2
    assert unwritable.stderr.count("\n") == 1
    assert "tiny.py/below cannot be written" in unwritable.stderr
