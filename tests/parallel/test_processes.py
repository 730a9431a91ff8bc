"""Two processes over the loopback interface take the loss that one process takes."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def start(coordinator: str, count: int, number: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(HERE / "one_process.py"), coordinator, str(count), str(number)],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1]), "LRM_JAX_CACHE": "off"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def losses(processes: list[subprocess.Popen]) -> list[float]:
    try:
        outputs = [p.communicate(timeout=400) for p in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [float(re.search(r"loss (\S+)", out)[1]) for out, _ in outputs]


def test_two_processes_agree_with_one():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    both = losses([start(coordinator, 2, number) for number in range(2)])
    (alone,) = losses([start("", 1, 0)])
    assert both[0] == both[1]
    # The same program on the same mesh; only sums between processes may be taken in another order.
    assert abs(both[0] - alone) <= 4e-6 * abs(alone)
