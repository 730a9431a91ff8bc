"""Adapters trained on one device and in two processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from .test_spread import outcome, start

PROGRAM = "spread_adapters.py"


def saved(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*.safetensors")
    }  # fmt: skip


@pytest.mark.slow
def test_two_processes_learn_what_one_device_learns(tmp_path):
    """One device and eight in one process: tests/parallel/trained.py."""
    one = outcome(start(1, "", tmp_path / "alone", 1, PROGRAM))
    count, folder = 2, tmp_path / "spread"
    found = outcome(start(4, "data=2,fsdp=2", folder, count, PROGRAM))
    assert found["cut"] and not one["cut"]
    assert len(one["losses"]) == 4 and one["losses"][0] != one["losses"][-1]
    # The first loss: sums in another order, as in tests/parallel. Afterwards Adam's first steps are
    # signs of gradients, which rounding may turn where these are nearly zero.
    assert abs(found["losses"][0] - one["losses"][0]) < 4e-5 * one["losses"][0]
    for ours, theirs in zip(found["losses"], one["losses"], strict=True):
        assert abs(ours - theirs) < 2e-3 * theirs
    assert len(one["validation"]) == 2
    for ours, theirs in zip(found["validation"], one["validation"], strict=True):
        assert set(ours) == set(theirs)
        for name, value in theirs.items():
            if name.endswith("loss"):
                assert abs(ours[name] - value) < 2e-3 * value, name
    # Videos scored over both processes' devices; bounds as for logits in tests/parallel.
    for name in ("progress", "contrastive"):
        np.testing.assert_allclose(found[name], one[name], atol=2e-5)
        assert np.ptp(one[name]) > 1e-3
    # Every process writes the same adapters (into folders of its own here, as stages have it).
    own = [saved(folder / "whole" / f"saved_{k}") for k in range(count)]
    assert own[0] and all(one == own[0] for one in own)
    # Metrics and TensorBoard's events come from the first process alone.
    assert (folder / "whole" / "metrics.jsonl").read_text().count('"step": 4') == 2
    assert len(list((folder / "whole" / "tensorboard").rglob("events*"))) == 1
