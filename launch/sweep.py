"""Runs one config with several values of its keys: on this machine, or each on a TPU slice.

    python launch/sweep.py --out=runs/seeds --jobs=2 -- \
        python -m lrm_jax.train --config=configs/quickstart.py --config.seed={0,1,2,3,4}

Every argument that holds {a,b,c} is expanded; several of them give the product. (Quote the braces
where the shell would expand them itself.) Each run goes to OUT/NAME, where NAME lists the values; a
run whose summary.json is there is skipped, so the same command goes on after an interruption. At
the end OUT/sweep.json holds the summaries side by side.

With --tpu every run gets a slice of its own from launch/tpu.sh, which is taken down afterwards:

    python launch/sweep.py --out=/mnt/shared/rates --jobs=4 \
        --tpu="--zone=us-west4-a --topology=v5e:4x4 --spot" -- \
        python -m lrm_jax.train --config=configs/reward_qwen3vl_8b.py \
        --config.training.optimiser.learning_rate={1e-4,2e-4}

OUT is then a folder on a disk that the slices and this machine see.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
TPU = Path(__file__).with_name("tpu.sh")
STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM)  # by the user or the machine: so are we


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


def slice_name(prefix: str, number: int) -> str:
    """The name of a run's slice: its place in the sweep, which stays the same when it resumes."""
    return f"{prefix}-{number}"


def on_slice(options: list[str], name: str, run: list[str]) -> tuple[list[str], list[str]]:
    """(the command that runs `run` on a slice called `name`, the one that takes it down)."""
    given = [str(TPU), f"--name={name}", *options]
    watch, delete = ([given[0], action, *given[1:]] for action in ("watch", "delete"))
    return [*watch, "--", *run], delete


def main() -> int:
    """Returns 0 if every run is done, 1 if one failed, 130 or 143 if they were stopped."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the runs' folders")
    parser.add_argument("--jobs", type=int, default=1, help="so many runs at the same time")
    parser.add_argument(
        "--tpu", type=shlex.split, help='options of launch/tpu.sh, as "--zone=Z --topology=v5e:4x4"'
    )
    parser.add_argument("--prefix", default="sweep", help="of the slices' names (sweep-0, ...)")
    parser.add_argument("--dry_run", action="store_true", help="print the commands and run none")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the command to expand")
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("give the command after --")
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    if not options.dry_run:
        options.out.mkdir(parents=True, exist_ok=True)
    runs = list(enumerate(expand(command)))
    with ThreadPoolExecutor(options.jobs) as pool:
        stop: list[int] = []
        results = list(pool.map(lambda given: one(options, stop, given[0], *given[1]), runs))
    if stop:
        return stop[0]
    if options.dry_run:
        return 0
    rows = [row for row in results if row is not None]
    (options.out / "sweep.json").write_text(json.dumps(rows, indent=2) + "\n")
    return int(len(rows) < len(runs))


def one(
    options: argparse.Namespace, stop: list[int], number: int, values: dict[str, str],
    run: list[str],
) -> dict[str, Any] | None:  # fmt: skip
    """The row of one run, after running it where that is needed; None if it failed. `stop` gets the
    exit status of a run that was stopped, after which no other begins."""
    name = "_".join(re.sub(r"[^\w.=-]+", "-", f"{k}={v}") for k, v in values.items()) or "run"
    folder = options.out / name
    run = [*run, f"--workdir={folder}"]
    summary, delete = folder / "summary.json", None
    if options.tpu is not None:
        more = ["--dry_run"] if options.dry_run else []
        run, delete = on_slice([*options.tpu, *more], slice_name(options.prefix, number), run)
    if summary.exists():
        return row(values, folder)
    if stop:
        return None
    if options.dry_run:
        print(shlex.join(run), flush=True)
        for command in [run, delete] if delete else []:
            subprocess.run(command, check=False)
        return None
    print(f"sweep: {name}", file=sys.stderr, flush=True)
    try:
        status = subprocess.run(run, check=False).returncode
    finally:
        if delete is not None:
            subprocess.run(delete, check=False)
    if status in STOPPED:
        stop.append(abs(status) if status > 0 else 128 - status)
    if status or not summary.exists():
        print(f"sweep: {name} failed with exit status {status}", file=sys.stderr, flush=True)
        return None
    return row(values, folder)


def row(values: dict[str, str], folder: Path) -> dict[str, Any]:
    """A finished run's values and summary."""
    return {**values, "workdir": str(folder), **json.loads((folder / "summary.json").read_text())}


if __name__ == "__main__":
    sys.exit(main())
