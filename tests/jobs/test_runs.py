"""The doors end to end on a few episodes: files, resumption, bad input."""

import json
import os
import signal
import time

import numpy as np
import pytest
from doors import finish, start

from lrm_jax.episodes import SourceSettings, open_source
from lrm_jax.policies import load_policy

KEYS = {
    "base_success", "refined_success", "episodes", "wilson_base", "wilson_refined", "mcnemar_p",
    "oracle_success", "iterations", "wall_seconds", "env_steps", "vlm_scores", "invalid_scores",
}  # fmt: skip


@pytest.mark.slow
def test_the_flow_head_takes_the_same_road(tmp_path):
    arguments = ("--config=configs/flow.py:small", "--config.job=refine")
    code, _, err = finish(start(*arguments, f"--workdir={tmp_path}"))
    assert code == 0, err[-2000:]
    policy, _, variables = load_policy(tmp_path / "stages" / "base_policy_0" / "policy")
    assert policy.config.head == "flow" and policy.config.flow.steps == 4
    assert {"velocity", "noise", "raw_std"} == set(variables["params"]["actor"])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows = [r for r in rows if r["series"] == "refine_vlm_0"]
    assert [r["step"] for r in rows] == [1, 2] and rows[0]["updates"] >= 1


@pytest.mark.slow
def test_quickstart_survives_a_kill_and_writes_what_the_contract_names(tmp_path):
    arguments = ("--config=configs/quickstart.py:small", f"--workdir={tmp_path}")
    first = start(*arguments)
    # Killed as soon as the first iteration of the refinement is on the disk.
    checkpoints = tmp_path / "stages" / ".refine_vlm_0.work" / "checkpoints"
    deadline = time.monotonic() + 1200
    while first.poll() is None and time.monotonic() < deadline:
        if checkpoints.is_dir() and any(p.name.startswith("step_") for p in checkpoints.iterdir()):
            break
        time.sleep(0.2)
    assert first.poll() is None, "it ended before it could be killed"
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert not (tmp_path / "summary.json").exists()
    kept = (tmp_path / "stages" / "base_policy_0" / "stage.json").stat().st_mtime_ns
    report = json.loads((tmp_path / "stages" / "base_policy_0" / "report.json").read_text())
    assert [0 <= row["trial"] <= 1 for row in report["curve"]] == [True]
    # It goes on, and may do so over another number of devices.
    code, _, err = finish(start(*arguments, "--config.mesh=data=2"))
    assert code == 0, err[-2000:]
    assert (tmp_path / "stages" / "base_policy_0" / "stage.json").stat().st_mtime_ns == kept
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert KEYS <= set(summary)
    assert summary["iterations"] == 2 and summary["episodes"] == 8
    assert summary["env_steps"] == 2 * 8 * 80
    assert summary["vlm_scores"] == 2 * 11 * 8 * 2
    iterations = [
        json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert [r["step"] for r in iterations if r["series"] == "refine_vlm_0"] == [1, 2]
    for name in ("report.html", "manifest.json", "episode.mp4"):
        assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.slow
def test_collected_episodes_are_data_sets_too(tmp_path):
    """RLDS and LeRobot from one collection, both read back."""
    arguments = ("--config=configs/collect.py:small", f"--workdir={tmp_path}")
    dataset = tmp_path / "stages" / "dataset" / "lrm_sim"
    for write in ("tfrecord", "lerobot"):
        code, _, err = finish(
            start(*arguments, f"--config.write={write}", "--config.validation=0.25")
        )
        assert code == 0, err[-2000:]
        assert json.loads((tmp_path / "summary.json").read_text())["dataset"] == str(dataset)
        arrays = tmp_path / "stages" / "episodes"
        frames = np.load(arrays / "frames.npy", mmap_mode="r")
        source = open_source(SourceSettings(name="sim", path=str(dataset)))
        # RLDS keeps two for its split "val", and has an order of its own; pixels are exact.
        assert len(source) == (6 if write == "tfrecord" else 8)
        actions = np.load(arrays / "actions.npy")
        for i, episode in enumerate(source.good()):
            seen = np.asarray(episode.frames)
            flat = episode.actions.reshape(-1, actions.shape[-1])
            own = [e for e in range(8) if np.array_equal(flat, actions[e])]
            assert len(own) == 1 and (write == "tfrecord" or own == [i])
            error = np.abs(seen.astype(int) - frames[own[0]])
            assert error.max() == 0 if write == "tfrecord" else error.mean() < 4
        assert source.broken == 0
    code, _, err = finish(start(*arguments, "--config.write=zip"))
    assert code == 2 and "lerobot" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--config=configs/reward_qwen3vl_8b.py:small",), "config.model"),
        (
            ("--config=configs/reward_qwen3vl_8b.py:small", "--config.model=lrm-nano",
             "--config.data.source.path=/no/data"),
            "/no/data",
        ),
        (("--config=configs/quickstart.py:small", "--config.refine.ppo.lr=-1"), "lr"),
        (("--config=configs/flow.py:small", "--config.policy.head=flows"), "flow"),
        (("--config=configs/flow.py:small", "--config.policy.flow.steps=0"), "policy.flow.steps"),
        (("--config=configs/flow.py:small", "--config.clone.flow_times=betta"), "beta"),
        (("--config=configs/quickstart.py:small", "--config.polic.chunk=5"), "polic"),
        (("--config=configs/quickstart.py:small", "--config.policy.chunk=7"), "num_chunks"),
        (("--config=configs/quickstart.py:small", "--config.reward.model=/no/such"), "/no/such"),
        (("--config=configs/evidence.py:small", "--config.oracle=orakel"), "orakel"),
        (("--config=configs/evidence.py:LiftPegs,vlm,0",), "LiftPegs"),
        (("--config=configs/evidence.py:LiftPeg,vlm",), "TASKS,ARMS,SEEDS"),
        (("--config=configs/evidence.py:LiftPeg,vlm,-1",), "seeds"),
        (("--config=configs/missing.py",), "missing.py"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_status_2(tmp_path, arguments, says):
    code, _, err = finish(start(*arguments, f"--workdir={tmp_path / 'w'}"), timeout=120)
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2, err
    assert len(lines) == 1 and says in lines[0], err
