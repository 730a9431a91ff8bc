"""Two processes share a work folder: one writes, both wait and read the same."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap

import pytest

from lrm_jax.parallel.joining import join_from_environment
from lrm_jax.run.errors import UserError

PROGRAM = """
import json, os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
import lrm_jax
import numpy as np
from lrm_jax.parallel.joining import join_from_environment
join_from_environment()
import jax
from lrm_jax.run import manifest
from lrm_jax.run.checkpoints import Checkpoints
from lrm_jax.run.workdir import Workdir

me, out = jax.process_index(), {}
with Workdir(sys.argv[1]) as work, manifest.recording(work.path, config={}):
    stage = work.stage("numbers", {"a": 1})
    out["before"] = stage.done

    def compute(folder):
        with Checkpoints(stage.scratch / "checkpoints", {}) as checkpoints:
            state = {"w": np.arange(3.0)}
            checkpoints.save(1, state, data=[me, "x" * (me + 1)])
            out["data"] = checkpoints.latest_valid(state).data
        (folder / "who").write_text(str(me))

    out["who"] = stage.run(compute, lambda folder: (folder / "who").read_text())
    out["after"] = work.stage("numbers", {"a": 1}).done
print(json.dumps(out), flush=True)
"""


def started(program: str, *arguments: str) -> list[subprocess.Popen]:
    """Two processes of one run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"

    def start(number):
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join(sys.path),
            "LRM_JAX_PROCESSES": f"{address},2,{number}",
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), *arguments],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return [start(0), start(1)]


def ended(both: list[subprocess.Popen]) -> list[tuple[str, str]]:
    """Standard output and errors of each, at its end."""
    try:
        return [p.communicate(timeout=200) for p in both]
    finally:
        for process in both:
            process.kill()


def test_two_processes_in_one_folder(tmp_path):
    both = started(PROGRAM, str(tmp_path / "run"))
    for number, (out, errors) in enumerate(ended(both)):
        assert both[number].returncode == 0, errors[-3000:]
        data = [number, "x" * (number + 1)]
        found = json.loads(out.splitlines()[-1])
        assert found == {"before": False, "data": data, "who": "0", "after": True}
    runs = json.loads((tmp_path / "run" / "manifest.json").read_text())["runs"]
    assert [run["status"] for run in runs] == ["done"]


LEAVING = """
import os
os.environ["JAX_PLATFORMS"] = "cpu"
import lrm_jax
from lrm_jax.parallel.joining import join_from_environment
from lrm_jax.run import preemption, processes
from lrm_jax.run.cli import run_app
from lrm_jax.run.errors import UserError

def main(argv):
    join_from_environment()
    import jax
    if jax.process_index() == int(argv[1]):
        raise preemption.Terminated if argv[2] == "143" else UserError("nothing is right")
    processes.wait_for_all("work")

run_app(main)
"""


@pytest.mark.parametrize(("leaver", "status"), [(0, 2), (1, 2), (1, 143)])
def test_one_that_leaves_is_not_waited_for(leaver, status):
    # Without a word they would end by SIGABRT, after the five minutes that JAX's shutdown takes.
    both = started(LEAVING, str(leaver), str(status))
    errors = [errors for _, errors in ended(both)]
    assert [process.returncode for process in both] == [status, status], errors
    said = f"process {leaver} ended with status 2" if status == 2 else "terminated: the same"
    assert said in errors[1 - leaver] and "Traceback" not in "".join(errors)


@pytest.mark.parametrize("value", ["127.0.0.1:1", "a:1,2", "a:1,two,0", "a:1,2,-1", "yes"])
def test_a_variable_that_says_nothing(monkeypatch, value):
    monkeypatch.setenv("LRM_JAX_PROCESSES", value)
    with pytest.raises(UserError, match="give auto, or HOST:PORT,COUNT,NUMBER"):
        join_from_environment()


def test_no_variable(monkeypatch):
    monkeypatch.delenv("LRM_JAX_PROCESSES", raising=False)
    join_from_environment()
