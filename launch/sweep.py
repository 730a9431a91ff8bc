"""Runs one config with several values of its keys, one process after another.

    python launch/sweep.py --out=runs/seeds -- \
        python -m lrm_jax.train --config=configs/quickstart.py --config.seed={0,1,2,3,4}

Every argument that holds {a,b,c} is expanded; several of them give the product. (Quote the braces
where the shell would expand them itself.) Each run goes to OUT/NAME, where NAME lists the values; a
run whose summary.json is there is skipped, so the same command goes on after an interruption. At
the end OUT/sweep.json holds the summaries side by side.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")


def expand(command: list[str]) -> list[tuple[dict[str, str], list[str]]]:
    """All commands that `command` stands for, each with the values chosen: ({"seed": "0"},
    [...])."""
    slots = []
    for arg in command:
        match = _CHOICE.search(arg)
        if match is None:
            slots.append([(None, arg)])
            continue
        key = arg[: match.start()].lstrip("-").removesuffix("=").removeprefix("config.") or "value"
        slots.append(
            [
                ((key, value), arg[: match.start()] + value + arg[match.end() :])
                for value in match.group(1).split(",")
            ]
        )
    return [
        (dict(pair for pair, _ in combination if pair), [arg for _, arg in combination])
        for combination in itertools.product(*slots)
    ]


def main() -> int:
    """Returns the number of runs that failed, at most 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the runs' folders")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the command to expand")
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("give the command after --")
    options.out.mkdir(parents=True, exist_ok=True)
    rows, failed = [], 0
    for values, run in expand(command):
        name = "_".join(re.sub(r"[^\w.=-]+", "-", f"{k}={v}") for k, v in values.items()) or "run"
        folder = options.out / name
        summary = folder / "summary.json"
        if not summary.exists():
            print(f"sweep: {name}", file=sys.stderr, flush=True)
            status = subprocess.run([*run, f"--workdir={folder}"], check=False).returncode
            if status == 130:
                return 130
            if status or not summary.exists():
                print(f"sweep: {name} failed with exit status {status}", file=sys.stderr)
                failed += 1
                continue
        rows.append({**values, "workdir": str(folder), **json.loads(summary.read_text())})
    (options.out / "sweep.json").write_text(json.dumps(rows, indent=2) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
