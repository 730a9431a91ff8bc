"""Killed at twenty random moments, a training ends as one that was never interrupted."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lrm_jax.run import metrics

HERE = Path(__file__).parent
EVERY = 3  # steps between checkpoints, in killed_run.py


@pytest.fixture
def server(tmp_path):
    environment = {
        **os.environ, "PYTHONPATH": str(HERE.parents[1]), "LRM_JAX_CACHE": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, str(HERE / "killed_run.py")], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(tmp_path / "stderr").open("w"),
    ) as process:  # fmt: skip
        yield process
        process.stdin.close()


def start(server, folder: Path) -> int:
    folder.mkdir(exist_ok=True)
    server.stdin.write(f"{folder}\n")
    server.stdin.flush()
    return int(server.stdout.readline().split()[1])


def outcome(server) -> tuple[list[int], str | None, int]:
    """The steps that a child began, its digest if it came to the end, and its exit status."""
    begun, digest = [], None
    while True:
        word, value = server.stdout.readline().split()
        if word == "step":
            begun.append(int(value))
        elif word == "done":
            digest = value
        else:
            return begun, digest, int(value)


@pytest.mark.slow
def test_killed_at_twenty_random_moments(server, tmp_path):
    start(server, tmp_path / "whole")
    steps, whole, status = outcome(server)
    assert status == 0 and len(whole) == 64
    total = len(steps)
    moments, folder, reached = random.Random(0), tmp_path / "killed", 0
    counts = {signal.SIGKILL: 0, signal.SIGTERM: 0}
    for number in range(20):
        pid = start(server, folder)
        if number % 5:
            for _ in range(moments.randint(1, 4)):
                word, value = server.stdout.readline().split()
                assert word == "step"
                reached = int(value)
            time.sleep(moments.uniform(0, 0.03))
        else:  # while it imports, restores or compiles, say
            time.sleep(moments.uniform(0, 2))
        kind = signal.SIGKILL if number % 2 else signal.SIGTERM
        os.kill(pid, kind)
        begun, digest, status = outcome(server)
        assert digest is None, "it came to its end: take more steps"
        counts[kind] += 1
        reached = max([reached, *begun])
        if kind == signal.SIGTERM:
            assert status in (143, -signal.SIGTERM)  # its own way out, or before it had one
        else:
            assert status == -signal.SIGKILL
    assert counts == {signal.SIGKILL: 10, signal.SIGTERM: 10}
    start(server, folder)
    begun, digest, status = outcome(server)
    assert status == 0 and begun[-1] == total - 1
    # One save may be under way when a kill comes, so two intervals are lost at most.
    assert begun[0] >= reached - 2 * EVERY
    assert digest == whole
    rows = [row["step"] for row in metrics.read(folder, "reward")]
    assert rows == sorted(set(rows)) and rows[-1] == total


def test_sigterm_finishes_the_step_and_saves(server, tmp_path):
    pid = start(server, tmp_path / "run")
    for step in range(5):
        assert server.stdout.readline() == f"step {step}\n"
    os.kill(pid, signal.SIGTERM)
    begun, digest, status = outcome(server)
    assert status == 143 and digest is None
    last = max([4, *begun])
    said = (tmp_path / "stderr").read_text()
    assert f"saved after step {last + 1} of 160" in said
    assert said.endswith("terminated: the same command resumes\n")
    saved = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert saved[-1].name == f"step_{last + 1:06d}"
