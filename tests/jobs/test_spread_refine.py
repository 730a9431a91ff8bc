"""A refinement on one device and in two processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "spread_refine.py"
ROOT = PROGRAM.parents[2]


def outcomes(devices: int, mesh: str, folder: Path, count: int) -> list[dict]:
    """What each process printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(devices), mesh, str(folder), coordinator,
             str(count), str(number)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "LRM_JAX_CACHE": str(folder / "cache")},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number in range(count)
    ]  # fmt: skip
    try:
        found = [process.communicate(timeout=1200) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, found, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in found]


@pytest.mark.slow
def test_two_processes_refine_as_one_device_does(tmp_path):
    (one,) = outcomes(1, "", tmp_path / "alone", 1)
    ours, other = outcomes(2, "data=2", tmp_path / "spread", 2)
    assert ours["row"] == other["row"] and ours["digest"] == other["digest"]
    first, alone = ours["iterations"][0], one["iterations"][0]
    # The first iteration acts with the same policy on the same worlds: float32 sums in another
    # order. The scores pass through a network: bounds as for logits in tests/parallel.
    assert alone["reward_std"] > 1e-3  # lrm-nano says something
    for name in ("reward_mean", "return_mean", "final_progress"):
        name = name if name in alone else f"reward/{name}"
        assert abs(first[name] - alone[name]) < 2e-5, name
    for name in ("success_end", "valid_decisions", "reward/judgements"):
        assert first[name] == alone[name], name
    # Later ones act on actions that differ by rounding.
    for ours_at, alone_at in zip(ours["iterations"], one["iterations"], strict=True):
        assert abs(ours_at["reward_mean"] - alone_at["reward_mean"]) < 0.02 * alone["reward_std"]
    assert ours["row"]["base_success"] == one["row"]["base_success"]
    # The first process alone writes: each iteration stands there once.
    assert [row["iteration"] for row in ours["iterations"]] == [1, 2, 3]
    assert len(list((tmp_path / "spread" / "run" / "tensorboard").rglob("events*"))) == 1
