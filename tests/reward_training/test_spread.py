"""The training from scratch on one device, on eight, and in two and four processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def start(
    devices: int, mesh: str, folder: Path, count: int = 1, program: str = "spread.py", *more: str
) -> list[subprocess.Popen]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, str(HERE / program), str(devices), mesh, str(folder)]
    environment = {
        **os.environ, "PYTHONPATH": str(HERE.parents[1]), "LRM_JAX_CACHE": str(folder / "cache")
    }  # fmt: skip
    return [
        subprocess.Popen(
            [*command, coordinator, str(count), str(number), *more], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number in range(count)
    ]  # fmt: skip


def outcome(processes: list[subprocess.Popen]) -> dict:
    """What process 0 printed; all of them end well and with the same parameters."""
    try:
        outputs = [p.communicate(timeout=1200) for p in processes]
    finally:
        for process in processes:
            process.kill()
    found = []
    for process, (out, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
        found.append(json.loads(out.splitlines()[-1]))
    assert len({one["whole"]["digest"] for one in found}) == 1
    for one in found:  # killed and resumed, bit for bit
        assert one["resumed"]["digest"] == one["whole"]["digest"]
    assert found[0]["resumed"]["losses"] == found[0]["whole"]["losses"]
    return found[0]["whole"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return outcome(start(1, "", tmp_path_factory.mktemp("alone")))


@pytest.mark.slow
@pytest.mark.parametrize(
    "devices, mesh, count",
    [(8, "data=2,fsdp=2,tensor=2", 1), (4, "data=2,fsdp=2", 2), (4, "fsdp=4", 4)],
)
def test_it_learns_what_one_device_learns(alone, tmp_path, devices, mesh, count):
    found = outcome(start(devices, mesh, tmp_path, count))
    assert len(alone["losses"]) == 4 and alone["losses"][0] != alone["losses"][-1]
    # The first loss: sums in another order, as in tests/parallel. Adam's first steps are signs of
    # gradients, so a rate of 6e-5 a step (3e-3 over a warm-up of 50) is what rounding can move an
    # entry by; that moves a loss by far less than this.
    assert abs(found["losses"][0] - alone["losses"][0]) < 4e-5 * alone["losses"][0]
    for ours, theirs in zip(found["losses"], alone["losses"], strict=True):
        assert abs(ours - theirs) < 1e-3 * theirs
    for name, value in alone["validation"].items():
        assert abs(found["validation"][name] - value) < 1e-2, name
