"""manifest.json: what it holds and how it keeps history."""

from __future__ import annotations

import json
import subprocess

import jax
import ml_collections
import numpy as np
import pytest

import lrm_jax
from lrm_jax.run import manifest
from lrm_jax.run.errors import UserError


def test_content(tmp_path):
    jax.devices()
    config = ml_collections.ConfigDict({"lr": 0.1, "inner": {"sizes": (1, 2)}})
    manifest.write(tmp_path, config=config, hashes={"model": "ab"}, seeds={"eval": np.int64(3)})
    manifest.update(tmp_path, hashes={"prompt": "cd"}, note="x")
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content["config"] == {"lr": 0.1, "inner": {"sizes": [1, 2]}}
    assert len(content["config_fingerprint"]) == 16
    assert content["hashes"] == {"model": "ab", "prompt": "cd"}
    assert content["seeds"] == {"eval": 3}
    assert content["package"]["version"] == lrm_jax.__version__
    assert content["versions"]["jax"] == jax.__version__
    assert content["device"]["platform"] == jax.default_backend()
    assert content["device"]["count"] == jax.device_count()
    assert content["host"]["cpus"] >= 1


def test_history_of_runs(tmp_path):
    with pytest.raises(UserError), manifest.recording(tmp_path):
        raise UserError("no plates")
    with pytest.raises(KeyboardInterrupt), manifest.recording(tmp_path):
        raise KeyboardInterrupt
    with pytest.raises(ZeroDivisionError), manifest.recording(tmp_path):
        raise ZeroDivisionError("by zero")
    with manifest.recording(tmp_path, job="refine"):
        running = json.loads((tmp_path / "manifest.json").read_text())["runs"]
        assert [r["status"] for r in running] == ["failed", "interrupted", "failed", "running"]
        manifest.update(tmp_path, hashes={"model": "ab"})
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert [r["status"] for r in content["runs"]] == ["failed", "interrupted", "failed", "done"]
    assert content["runs"][0]["error"] == "no plates"
    assert content["runs"][2]["error"] == "ZeroDivisionError: by zero"
    assert content["runs"][3]["seconds"] >= 0
    assert content["hashes"] == {"model": "ab"}


def test_git_revision(tmp_path, monkeypatch):
    repository = tmp_path / "clone"
    (repository / "lrm_jax" / "run").mkdir(parents=True)
    monkeypatch.setattr(manifest, "__file__", str(repository / "lrm_jax" / "run" / "manifest.py"))
    assert manifest.git_revision() is None

    def git(*args):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *args], cwd=repository, check=True, capture_output=True)

    git("init")
    assert manifest.git_revision() is None  # no commit yet
    (repository / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "one")
    revision = manifest.git_revision()
    assert len(revision["commit"]) == 40 and revision["dirty"] is False
    (repository / "file").write_text("2")
    assert manifest.git_revision()["dirty"] is True
