"""The table of compiled programs, from figures as the door writes them."""

import copy
import json
from pathlib import Path

import pytest

from lrm_jax import benchmarks
from lrm_jax.parallel.aot import table

RESULTS = Path(benchmarks.__file__).parent / "results/aot.json"


@pytest.fixture
def figures():
    return json.loads(RESULTS.read_text())


def test_a_row_holds_what_was_measured(figures):
    found = next(f for f in figures if "programs" not in f)
    (row,) = table.rows([found])
    cells = dict(zip(table.COLUMNS, row, strict=True))
    assert cells["slice"] == found["topology"]
    peak, hbm = cells["peak, GB"].split(" of ")
    assert float(peak) == round(found["memory"]["peak_bytes"] / 1e9, 2)
    assert float(hbm) * 1e9 == found["hbm_bytes"]
    received, by_hand = map(float, cells["received / by hand, GB"].split(" / "))
    assert received == round(found["collective_bytes"] / 1e9, 1)
    assert by_hand == round(found["predicted_collective_bytes"]["total"] / 1e9, 1)


def test_a_refinement_has_a_row_for_each_program(figures):
    one = next(f for f in figures if "programs" not in f)
    loop = {k: one[k] for k in ("model", "topology", "mesh", "hbm_bytes")}
    loop |= {"program": "refine", "environments": 128}
    bare = {k: v for k, v in one.items() if k != "roofline"}
    loop["programs"] = {"rollout": bare, "score": copy.deepcopy(one)}
    rollout, score = table.rows([loop])
    assert rollout[2] == "refine: rollout" and score[2] == "refine: score"
    assert rollout[4] == "128" and rollout[10] == "" and score[10] != ""


def test_what_has_no_model_or_does_not_fit_has_a_row_too(figures):
    one = next(f for f in figures if "programs" not in f)
    picture = {k: one[k] for k in ("topology", "mesh", "hbm_bytes", "memory", "collective_bytes")}
    picture |= {"program": "render", "environments": 64, "compile_cpu_seconds": 3.0}
    large = {k: one[k] for k in ("model", "topology", "mesh", "hbm_bytes", "rows", "program")}
    drawn, refused = table.rows([picture, large | {"fits": False, "reason": "needs 20G of 16G"}])
    assert drawn[0] == "" and drawn[2] == "render" and drawn[9] == ""
    assert "does not fit" in refused[7]


def test_a_committed_program_fits_and_is_explained(figures):
    """The bars of the table: peak within the chip, traffic within a quarter of the hand
    calculation."""
    for found in figures:
        for one in (found.get("programs") or {"": found}).values():
            assert one["fits"] and one["memory"]["peak_bytes"] <= found["hbm_bytes"]
            hand = one["predicted_collective_bytes"]["total"]
            if hand > 1e9:
                assert 0.8 <= one["collective_bytes"] / hand <= 1.25, found["topology"]
