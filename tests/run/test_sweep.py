"""launch/sweep.py: expansion of values, one folder a run, and going on after a failure."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "sweep.py"
RUN = """
import json, pathlib, sys
seed, folder = int(sys.argv[1].split("=")[1]), pathlib.Path(sys.argv[-1].split("=", 1)[1])
if seed == 1 and not (folder.parent / "mended").exists():
    sys.exit(2)
folder.mkdir()
(folder / "summary.json").write_text(json.dumps({"score": seed * 10}))
"""


def test_expand():
    spec = importlib.util.spec_from_file_location("sweep", SCRIPT)
    sweep = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sweep)
    runs = sweep.expand(["x", "--config.seed={0,1}", "--config.ppo.lr={1e-3,1e-4}", "{}"])
    assert [values for values, _ in runs] == [
        {"seed": "0", "ppo.lr": "1e-3"},
        {"seed": "0", "ppo.lr": "1e-4"},
        {"seed": "1", "ppo.lr": "1e-3"},
        {"seed": "1", "ppo.lr": "1e-4"},
    ]
    assert runs[3][1] == ["x", "--config.seed=1", "--config.ppo.lr=1e-4", "{}"]
    assert sweep.expand(["x"]) == [({}, ["x"])]


def test_runs_are_kept_and_failures_tried_again(tmp_path):
    (tmp_path / "run.py").write_text(RUN)
    command = [
        sys.executable, str(SCRIPT), f"--out={tmp_path / 'out'}", "--",
        sys.executable, str(tmp_path / "run.py"), "--config.seed={0,1,2}",
    ]  # fmt: skip
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 1
    assert "seed=1 failed with exit status 2" in first.stderr
    (tmp_path / "out" / "mended").touch()
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 0
    assert second.stderr == "sweep: seed=1\n"  # only that one runs again
    rows = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [(r["seed"], r["score"]) for r in rows] == [("0", 0), ("1", 10), ("2", 20)]
