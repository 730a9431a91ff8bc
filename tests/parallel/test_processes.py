"""Two processes over the loopback interface take the loss that one process takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from loopback import outputs

HERE = Path(__file__).parent


def losses(count: int) -> list[float]:
    found = outputs(HERE / "one_process.py", [], count)
    return [float(re.search(r"loss (\S+)", out)[1]) for out in found]


def test_two_processes_agree_with_one():
    both = losses(2)
    (alone,) = losses(1)
    assert both[0] == both[1]
    # The same program on the same mesh; only sums between processes may be taken in another order.
    assert abs(both[0] - alone) <= 4e-6 * abs(alone)


@pytest.mark.slow
def test_a_process_may_come_late():
    # Gloo waits 30 s for a first meeting, whatever XLA's flags say.
    for out in outputs(HERE / "late.py", ["35"], 2):
        assert out.endswith("met\n")
