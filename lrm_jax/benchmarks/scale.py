"""Time and memory of a refinement iteration against the number of environments, each number in a
process of its own (`benchmarks.refine --one_scale`)."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import jax

from lrm_jax.run.errors import UserError
from lrm_jax.run.progress import note


def peak_bytes() -> int:
    """Most memory that this process has held: the device's where it counts, else resident memory of
    the host."""
    found = jax.local_devices()[0].memory_stats()
    if found and "peak_bytes_in_use" in found:
        return int(found["peak_bytes_in_use"])
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the parent held before this program began
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(numbers: list[int], iterations: int, mesh: str = "") -> list[dict]:
    """A row for each number of environments over a mesh, up to the first that does not fit."""
    rows = []
    for number in numbers:
        note(f"{number} environments")
        command = [
            sys.executable, "-m", "lrm_jax.benchmarks.refine", "--one_scale", f"--envs={number}",
            f"--iterations={iterations}", f"--mesh={mesh}", "--json=-",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            why = failure(done.returncode, done.stderr)
            rows.append({"environments": number, "fits": False, "error": why})
            break
        rows.append({"fits": True, **json.loads(done.stdout.strip().splitlines()[-1])})
    return rows


def failure(status: int, errors: str) -> str:
    """Why a process did not fit; UserError if it ended for another reason than memory."""
    if status == -9:
        return "killed: the machine's memory was at its end"
    for line in reversed(errors.splitlines()):
        if "RESOURCE_EXHAUSTED" in line or "MemoryError" in line or "bad_alloc" in line:
            return line.strip()[:200]
    last = errors.strip().splitlines()[-1:] or ["no message"]
    raise UserError(f"the process ended with status {status}: {last[0][:200]}")


def numbers_of(words: list[str]) -> list[int]:
    """The flag's numbers in order; UserError unless all are whole and at least 4."""
    try:
        numbers = [int(word) for word in words]
    except ValueError as error:
        raise UserError(f"--environments={','.join(words)}: give whole numbers") from error
    if not numbers or min(numbers) < 4:
        raise UserError(f"--environments={','.join(words)}: give numbers from 4 up")
    return sorted(numbers)
