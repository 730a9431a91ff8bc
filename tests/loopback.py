"""Programs of several processes on this machine, and what each of them printed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


def outputs(program: Path, arguments: list[str], count: int, cache: str = "off") -> list[str]:
    """Standard output of each of `count` processes `program ARGUMENTS COORDINATOR COUNT NUMBER`.

    All of them have to end well within 20 minutes; cache: a folder for compiled programs.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    root = Path(__file__).parents[1]
    started = [
        subprocess.Popen(
            [sys.executable, str(program), *arguments, coordinator, str(count), str(number)],
            env={**os.environ, "PYTHONPATH": str(root), "LRM_JAX_CACHE": cache},
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
    return [out for out, _ in found]
