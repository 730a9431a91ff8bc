"""Checkpoints of a loop: exact resumption, damage passed over, SIGKILL during saves."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lrm_jax.run.checkpoints import Checkpoints, _digests
from lrm_jax.run.errors import UserError

SETTINGS = {"lr": 0.1}


def _state(step):
    params = {"w": jnp.full((4, 3), step, jnp.float32), "b": jnp.full(2, step, jnp.bfloat16)}
    return {
        "params": params,
        "opt": optax.adam(1e-3).init(params),
        "key": jax.random.key(step),
        "step": step,
        "count": np.int64(2**40 + step),
    }


def _bytes(state):
    state = {**state, "key": jax.random.key_data(state["key"])}
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A folder with the checkpoints of steps 10, 11, 12."""
    folder = tmp_path_factory.mktemp("three")
    with Checkpoints(folder, SETTINGS, keep=3) as checkpoints:
        for step in (9, 10, 11, 12):
            checkpoints.save(step, _state(step), {"reward": step / 2, "bad": float("nan")})
    return folder


@pytest.fixture
def copy(three, tmp_path):
    return shutil.copytree(three, tmp_path / "c")


def test_restores_the_latest_exactly(three):
    with Checkpoints(three, SETTINGS) as checkpoints:
        assert checkpoints.steps() == [10, 11, 12]
        assert sorted(p.name for p in three.iterdir()) == [
            "step_000010",
            "step_000011",
            "step_000012",
        ]
        found = checkpoints.latest_valid(_state(0))
    assert found.step == 12
    assert found.metadata == {"reward": 6.0, "bad": None}
    assert _bytes(found.state) == _bytes(_state(12))
    assert type(found.state["step"]) is int and found.state["count"] == 2**40 + 12
    assert isinstance(found.state["params"]["w"], jax.Array)


def test_a_save_does_not_wait_for_the_disk(tmp_path):
    """Buffers are donated and numpy leaves overwritten while the save is under way."""
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    with Checkpoints(tmp_path, SETTINGS, keep=5) as checkpoints:
        early = 0
        state = {"jax": jnp.zeros((300, 1000)), "numpy": np.zeros(300_000)}
        for step in range(4):
            checkpoints.save(step, state)
            early += step not in committed(tmp_path)
            state["jax"] = add(state["jax"])
            state["numpy"] += 1
        assert early >= 2  # 4 MB are not written in no time
        checkpoints.wait()
        assert committed(tmp_path) == {0, 1, 2, 3}
        found = checkpoints.latest_valid(state)
    assert found.step == 3
    assert (found.state["jax"] == 3).all() and (found.state["numpy"] == 3).all()


def committed(folder):
    return {int(p.name[-6:]) for p in folder.glob("step_??????")}


def test_a_save_that_fails_is_told_later(tmp_path, monkeypatch):
    with Checkpoints(tmp_path / "c", SETTINGS) as checkpoints:
        checkpoints.save(0, _state(0))
        checkpoints.wait()
        import orbax.checkpoint as ocp

        def full(*args):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", full)
        with pytest.raises(UserError, match="the disk is full"):
            checkpoints.wait()
        monkeypatch.undo()


@pytest.mark.parametrize("data", [b"\x00\xffgrain", {"next": 7, "of": [1, None]}, None])
def test_the_iterators_state_is_kept(tmp_path, data):
    with Checkpoints(tmp_path, SETTINGS) as checkpoints:
        checkpoints.save(1, _state(1), data=data)
        assert checkpoints.latest_valid(_state(0)).data == data


def test_iterators_of_another_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("lrm_jax.run.checkpoints._gathered", lambda data: [{"json": data}] * 2)
    with Checkpoints(tmp_path, SETTINGS) as checkpoints:
        checkpoints.save(1, _state(1), data=3)
        with pytest.raises(UserError, match="of 2 processes, this run has 1"):
            checkpoints.latest_valid(_state(0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool", "float16"])
def test_the_checksum_sees_every_bit_and_place(dtype):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, (7, 5, 3)).astype(jnp.dtype(dtype))
    (one,) = _digests({"x": values}).values()
    assert _digests({"x": jnp.asarray(values)}) == {"x": one}
    seen = {one}
    for place in range(values.size):
        other = values.copy()
        flat = other.reshape(-1).view(np.uint8)
        flat[place * values.itemsize] ^= 1
        seen |= set(_digests({"x": other}).values())
    seen |= set(_digests({"x": values[::-1]}).values())
    assert len(seen) == values.size + 2


def test_nothing_there(tmp_path):
    with Checkpoints(tmp_path / "new", SETTINGS) as checkpoints:
        assert checkpoints.latest_valid(_state(0)) is None


def test_other_settings_are_not_used_and_are_replaced(copy, capsys):
    with Checkpoints(copy, {"lr": 0.2}, keep=2) as checkpoints:
        assert checkpoints.latest_valid(_state(0)) is None
        assert "step_000012: made with other settings" in capsys.readouterr().err
        checkpoints.save(0, _state(0))
        assert checkpoints.steps() == [0]


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "metadata", "empty"])
def test_damage_falls_back_loudly(copy, capsys, damage):
    newest = copy / "step_000012"
    files = sorted((f for f in newest.rglob("*") if f.is_file()), key=lambda f: -f.stat().st_size)
    arrays = [f for f in files if f.parent.name == "d"]
    assert arrays
    if damage == "truncate":
        for f in arrays:
            f.write_bytes(f.read_bytes()[: f.stat().st_size // 2])
    elif damage == "flip":
        for f in arrays:
            data = bytearray(f.read_bytes())
            data[len(data) // 2] ^= 1
            f.write_bytes(data)
    elif damage == "delete":
        for f in arrays:
            f.unlink()
    elif damage == "metadata":
        (newest / "metadata" / "metadata").write_text("{")
    else:
        for f in files:
            f.write_bytes(b"")
    with Checkpoints(copy, SETTINGS, keep=3) as checkpoints:
        found = checkpoints.latest_valid(_state(0))
        assert found is not None and found.step == 11
        assert _bytes(found.state) == _bytes(_state(11))
        if 12 in checkpoints.steps():  # Orbax itself passes over one that lost its marks
            line = capsys.readouterr().err
            assert "step_000012: damaged" in line and "going back" in line
            assert line.count("\n") == 1
        checkpoints.save(12, _state(12))
        found = checkpoints.latest_valid(_state(0))
        assert found.step == 12 and _bytes(found.state) == _bytes(_state(12))


def test_another_model_is_the_users_mistake(copy):
    other = _state(0)
    other["params"] = {"w": jnp.ones((4, 5)), "b": other["params"]["b"]}
    with Checkpoints(copy, SETTINGS) as checkpoints:
        with pytest.raises(
            UserError, match=r"'params.w' is float32\[4, 3\], expected float32\[4, 5\]"
        ):
            checkpoints.latest_valid(other)


# Saves step after step, saying so; imports are done before the fork so that a child starts at once.
LOOP = """
import os, sys
import lrm_jax, jax, jax.numpy as jnp, numpy as np
import orbax.checkpoint
from lrm_jax.run.checkpoints import Checkpoints
from lrm_jax.run.workdir import Workdir

def loop(folder):
    like = {"w": np.zeros(50_000, np.float32), "step": 0}
    with Workdir(folder) as work, Checkpoints(work / "checkpoints", {}, keep=2) as checkpoints:
        found = checkpoints.latest_valid(like)
        step = 0 if found is None else found.step
        if found is not None:
            assert found.state["step"] == step
            assert (found.state["w"] == step).all()
        print("from", step, flush=True)
        while True:
            step += 1
            state = {"w": np.full(50_000, step, np.float32), "step": step}
            checkpoints.save(step, state, {})
            checkpoints.wait()
            print("saved", step, flush=True)

for line in sys.stdin:
    if os.fork() == 0:
        print("pid", os.getpid(), flush=True)
        loop(line.strip())
    os.wait()
    print("dead", flush=True)
"""


def test_killed_while_saving(tmp_path):
    """SIGKILL at random moments: what was reported saved is never lost, and nothing torn is
    read."""
    server = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(LOOP)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    moments = random.Random(0)
    saved = 0
    for _ in range(6):
        server.stdin.write(f"{tmp_path}\n")
        server.stdin.flush()
        pid = int(server.stdout.readline().split()[1])
        words = server.stdout.readline().split()
        assert words[:1] == ["from"], (words, server.stderr.read() if not words else "")
        # One more than reported is possible: killed between the commit and the report.
        assert saved <= int(words[1]) <= saved + 1
        for _ in range(2):
            saved = int(server.stdout.readline().split()[1])
        time.sleep(moments.uniform(0, 0.08))  # a save takes about 40 ms
        os.kill(pid, signal.SIGKILL)
        while (words := server.stdout.readline().split()) != ["dead"]:
            saved = int(words[1])
    server.stdin.close()
    server.wait()
    assert saved >= 12
