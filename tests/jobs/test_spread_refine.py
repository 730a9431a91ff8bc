"""A refinement on one device and in two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from loopback import outputs

PROGRAM = Path(__file__).parent / "spread_refine.py"


def outcomes(devices: int, mesh: str, folder: Path, count: int) -> list[dict]:
    """What each process printed."""
    arguments = [str(devices), mesh, str(folder)]
    found = outputs(PROGRAM, arguments, count, cache=str(folder / "cache"))
    return [json.loads(out.splitlines()[-1]) for out in found]


@pytest.mark.slow
def test_two_processes_refine_as_one_device_does(tmp_path):
    (one,) = outcomes(1, "", tmp_path / "alone", 1)
    ours, other = outcomes(2, "data=2", tmp_path / "spread", 2)
    assert ours["rows"] == other["rows"] and ours["digests"] == other["digests"]
    assert len(ours["digests"]) == len(set(ours["digests"].values())) == 4  # each its own policy
    first, alone = ours["iterations"][0], one["iterations"][0]
    # The first iteration acts with the same policy on the same worlds: float32 sums in another
    # order. The scores pass through a network: bounds as for logits in tests/parallel.
    assert alone["reward_std"] > 1e-3  # lrm-nano says something
    for name in ("reward_mean", "return_mean", "final_progress"):
        name = name if name in alone else f"reward/{name}"
        assert abs(first[name] - alone[name]) < 2e-5, name
    for name in ("success_end", "valid_decisions", "reward/judgements"):
        assert first[name] == alone[name], name
    # Later ones act on actions that differ by rounding.
    for ours_at, alone_at in zip(ours["iterations"], one["iterations"], strict=True):
        assert abs(ours_at["reward_mean"] - alone_at["reward_mean"]) < 0.02 * alone["reward_std"]
    for row, alone_row in zip(ours["rows"], one["rows"], strict=True):
        assert row["base_success"] == alone_row["base_success"]
    # The first process alone writes: each iteration stands there once.
    assert [row["iteration"] for row in ours["iterations"]] == [1, 2, 3]
    assert len(list((tmp_path / "spread" / "run" / "tensorboard").rglob("events*"))) == 4
