"""Stages and the lock: caching, invalidation, damage, and a kill at every point of a write."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import lrm_jax
from lrm_jax.run.errors import UserError
from lrm_jax.run.trees import load_tree, save_tree
from lrm_jax.run.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Settings:
    episodes: int = 3
    seed: int = 0


def _compute(log, value):
    def compute(folder):
        log.append(value)
        (folder / "sub").mkdir()
        (folder / "sub" / "note.txt").write_text(str(value))
        save_tree(folder / "data.safetensors", {"x": np.full(100, value)})

    return compute


def _load(folder):
    return int(load_tree(folder / "data.safetensors")["x"][0])


def test_a_stage_is_computed_once(tmp_path, capsys):
    log = []
    for _ in range(2):
        with Workdir(tmp_path / "run") as work:
            assert work.stage("demos", Settings()).run(_compute(log, 7), _load) == 7
    assert log == [7]
    assert capsys.readouterr().err == ""


def test_a_changed_stage_and_those_after_it_are_computed_again(tmp_path, capsys):
    def go(demos, reward, log):
        with Workdir(tmp_path) as work:
            first = work.stage("demos", demos)
            first.run(_compute(log, 1), _load)
            second = work.stage("reward", reward, after=[first])
            second.run(_compute(log, 2), _load)
            third = work.stage("policy", {}, after=[second])
            third.run(_compute(log, 3), _load)

    log = []
    go(Settings(), {"lr": 0.1}, log)
    go(Settings(), {"lr": 0.1}, log)
    assert log == [1, 2, 3]
    capsys.readouterr()

    log.clear()
    go(Settings(), {"lr": 0.2}, log)
    assert log == [2, 3]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "reward: settings changed (lr: 0.1 -> 0.2); computing it again",
        "policy: stage reward before it changed; computing it again",
    ]

    log.clear()
    go(Settings(episodes=4), {"lr": 0.2}, log)
    assert log == [1, 2, 3]
    assert "demos: settings changed (episodes: 3 -> 4)" in capsys.readouterr().err


def test_a_new_version_computes_again(tmp_path, capsys, monkeypatch):
    log = []
    for version in ("1.0", "1.1"):
        monkeypatch.setattr(lrm_jax, "__version__", version)
        with Workdir(tmp_path) as work:
            work.stage("demos", {}).run(_compute(log, 1), _load)
    assert log == [1, 1]
    assert "demos: made by lrm_jax 1.0, this is 1.1" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "mark"])
def test_damage_is_seen_and_mended(tmp_path, capsys, damage):
    log = []
    with Workdir(tmp_path) as work:
        work.stage("demos", {}).run(_compute(log, 1), _load)
        data = work / "stages" / "demos" / "data.safetensors"
        content = bytearray(data.read_bytes())
        if damage == "truncate":
            data.write_bytes(content[:-10])
        elif damage == "flip":
            content[-5] ^= 1
            data.write_bytes(content)
        elif damage == "delete":
            data.unlink()
        else:
            (work / "stages" / "demos" / "stage.json").write_text('{"finger')
        assert work.stage("demos", {}).run(_compute(log, 2), _load) == 2
    assert log == [1, 2]
    line = capsys.readouterr().err
    assert "demos: " in line and ("damaged" in line or "missing" in line) and line.count("\n") == 1


def test_an_error_in_a_stage_keeps_the_old_result(tmp_path):
    with Workdir(tmp_path) as work:
        work.stage("demos", {"a": 1}).run(_compute([], 1), _load)
        with pytest.raises(ZeroDivisionError), work.stage("demos", {"a": 2}).write() as folder:
            (folder / "half").write_text("x")
            raise ZeroDivisionError
        assert work.stage("demos", {"a": 1}).done
        assert os.listdir(tmp_path / "stages") == ["demos"]


def test_scratch_survives_until_the_stage_is_done(tmp_path, capsys):
    with Workdir(tmp_path) as work:
        stage = work.stage("reward", {"lr": 1})
        (stage.scratch / "step_1").write_text("1")
        assert (work.stage("reward", {"lr": 1}).scratch / "step_1").exists()
        other = work.stage("reward", {"lr": 2})
        assert not (other.scratch / "step_1").exists()
        assert "settings changed since it was interrupted" in capsys.readouterr().err
        other.run(_compute([], 1), _load)
        assert os.listdir(tmp_path / "stages") == ["reward"]
        assert other.seconds > 0


def test_stage_names_are_file_names(tmp_path):
    with Workdir(tmp_path) as work:
        for name in ("", "a/b", "../a", ".a"):
            with pytest.raises(ValueError, match="not a stage name"):
                work.stage(name, {})


@pytest.mark.parametrize("path", ["file/below", "file", "/proc/nowhere/run"])
def test_a_folder_that_cannot_be_written(tmp_path, path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*--workdir=DIR") as error:
        Workdir(tmp_path / path)
    assert "\n" not in str(error.value)


def test_a_full_disk_is_the_users_to_mend(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    with Workdir(tmp_path) as work:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="the disk is full"):
            work.stage("demos", {}).run(lambda folder: (folder / "x").write_text("x"), str)
        monkeypatch.undo()
        assert not work.stage("demos", {}).done


def test_an_unused_folder_is_removed(tmp_path):
    with Workdir(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with Workdir(tmp_path / "old"):
        pass
    assert (tmp_path / "old").exists()


def test_two_runs_in_one_folder(tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\nfrom lrm_jax.run.workdir import Workdir\n"
            "w = Workdir(sys.argv[1])\nprint('held', flush=True)\ntime.sleep(60)",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=rf"in use by process {holder.pid} on .*--workdir=DIR"):
        Workdir(tmp_path)
    holder.send_signal(signal.SIGKILL)  # leaves its lock file behind
    holder.wait()
    assert (tmp_path / ".lock").read_text().startswith(f"process {holder.pid}")
    with Workdir(tmp_path):
        with pytest.raises(UserError, match="in use"):  # the same process counts as well
            Workdir(tmp_path)
    Workdir(tmp_path).close()


# Runs one write of a stage in a forked child for n = 1, 2, ...: the child kills itself with SIGKILL
# at the n-th call of any function that changes the disk. After each, the parent looks at what is
# left.
KILL_EVERYWHERE = """
import builtins, json, os, shutil, signal, sys
from pathlib import Path
from lrm_jax.run.workdir import Workdir

root = Path(sys.argv[1])
OLD, NEW = {"v": "old"}, {"v": "new"}

def fill(value):
    def compute(folder):
        for i in range(3):
            (folder / f"{i}.txt").write_text(value * 1000)
    return compute

def load(folder):
    texts = {(folder / f"{i}.txt").read_text() for i in range(3)}
    assert len(texts) == 1, texts
    return texts.pop()[:3]

def child(n):
    calls = 0
    def counted(function):
        def wrapper(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return wrapper
    for name in ("replace", "fsync", "mkdir", "rename", "unlink", "rmdir", "open", "chmod"):
        setattr(os, name, counted(getattr(os, name)))
    with Workdir(root) as work:
        work.stage("demos", NEW).run(fill("new"), load)
    os._exit(0)

left = {"old": 0, "new": 0, "none": 0}
for n in range(1, 1000):
    shutil.rmtree(root, ignore_errors=True)
    with Workdir(root) as work:
        work.stage("demos", OLD).run(fill("old"), load)
    pid = os.fork()
    if pid == 0:
        child(n)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with Workdir(root) as work:   # the lock of the dead is no obstacle
        names = set(os.listdir(root / "stages"))
        assert names <= {"demos"}, names   # leftovers are swept
        if work.stage("demos", OLD).done:
            left["old"] += 1
            assert load(root / "stages/demos") == "old"
        elif work.stage("demos", NEW).done:
            left["new"] += 1
            assert load(root / "stages/demos") == "new"
        else:
            left["none"] += 1
        assert work.stage("demos", NEW).run(fill("new"), load) == "new"
    if status == 0:
        break
    assert status == -signal.SIGKILL, status
print(json.dumps({"kills": n - 1, **left}))
"""


def test_killed_at_every_point_of_a_write(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILL_EVERYWHERE), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    counts = json.loads(result.stdout)
    assert counts["kills"] > 20  # the counter saw the writes
    assert counts["old"] > 10 and counts["new"] >= 1
    # Between the two renames of a replacement there is neither; that is one point, not a stretch.
    assert counts["none"] <= 3
