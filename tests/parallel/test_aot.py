"""The door `python -m lrm_jax.parallel.aot`: wrong input, and one real compilation."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A package that is found, so that wrong input is seen before its absence.
PRESENT = "libtpu stands for itself here"


def door(*arguments, path=(), **extra):
    path = os.pathsep.join([str(ROOT), *map(str, path), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "lrm_jax.parallel.aot", *arguments],
        env={**os.environ, "PYTHONPATH": path, **extra},
        capture_output=True,
        text=True,
        timeout=1500,
    )


def test_help():
    done = door("--help")
    assert done.returncode == 0
    for flag in ("--topology", "--program", "--mesh", "--batch", "--json"):
        assert flag in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--json"),
        (["--json=x", "--program=train"], "lora_train"),
        (["--json=x", "--program=refine", "--tokenizer=nowhere"], "no tokenizer.json in nowhere"),
        (["--json=x", "--topology=v5e:4"], "v5e takes 2 sizes"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, arguments, says):
    (tmp_path / "libtpu.py").write_text(f'"""{PRESENT}"""')
    done = door(*arguments, path=[tmp_path])
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(lines) == 1 and says in lines[0]


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_the_extra_is_named(tmp_path):
    done = door(f"--json={tmp_path / 'x.json'}")
    assert done.returncode == 2 and "lrm_jax[tpu]" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_small_slice_compiles(tmp_path):
    """Scoring with the 2B on four chips: it fits, and the compiler gathers what the rules cut."""
    file = tmp_path / "x.json"
    done = door(
        "--model=qwen3-vl-2b", "--topology=v5e:2x2", "--program=score", f"--json={file}",
        LRM_JAX_CACHE="off",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(file.read_text())
    weights = 2.13e9 * 2 / 4
    assert found["fits"] and weights < found["memory"]["argument_bytes"] < weights + 100e6
    assert 0.9 < found["collective_bytes_over_predicted"] < 1.4
    assert 0 < found["roofline"]["mfu"] <= 1


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_the_renderer_compiles(tmp_path):
    """Images of 64 environments a chip: every chip draws its own, nothing goes between them."""
    file = tmp_path / "x.json"
    done = door(
        "--topology=v5e:2x2", "--program=render", "--image=64", f"--json={file}",
        LRM_JAX_CACHE="off",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(file.read_text())
    images = 64 * 64 * 64 * 3  # bytes of a chip's images
    assert found["fits"] and found["collective_bytes"] == 0
    assert images <= found["memory"]["output_bytes"] < 16 * images
