"""The verdict over tasks, arms and seeds, on outcomes made by hand and by simulation."""

import json

import numpy as np
import pytest

from lrm_jax.evaluation import evidence, stats


def world(seed=0, seeds=6, episodes=500):
    """Two tasks: an arm that gains 20 points, an oracle that gains 30, a control that does not."""
    rng = np.random.default_rng(seed)
    found = {}
    for task, rate in (("one", 0.4), ("two", 0.5)):
        ability = rng.normal(0, 0.02, (seeds, 1)) + rng.normal(0, 0.25, (1, episodes))

        def play(gain, rate=rate, ability=ability):
            return rng.random((seeds, episodes)) < rate + gain + ability

        found[task] = {
            "base": play(0), "vlm": play(0.2), "oracle": play(0.3), "constant": play(0),
        }  # fmt: skip
    return found


@pytest.fixture(scope="module")
def summary():
    return evidence.summarise(world(), "oracle", reps=1000)


def test_estimates_are_means_and_their_intervals_hold_them(summary):
    outcomes = world()
    for task in ("one", "two"):
        row = summary["arms"]["vlm"]["tasks"][task]
        a, b = outcomes[task]["vlm"], outcomes[task]["base"]
        assert row["gain"] == pytest.approx(a.mean() - b.mean())
        assert row["gain_interval"][0] < 0.2 < row["gain_interval"][1]
        pooled = stats.mcnemar(a.ravel(), b.ravel())
        assert row["mcnemar_p"] == pooled.pvalue and row["only_arm"] == pooled.only_a
        np.testing.assert_allclose(row["seed_gains"], a.mean(1) - b.mean(1))
    both = summary["arms"]["vlm"]["all"]
    tasks = summary["arms"]["vlm"]["tasks"].values()
    assert both["gain"] == pytest.approx(np.mean([r["gain"] for r in tasks]))
    # Two tasks know more than one.
    width = both["gain_interval"][1] - both["gain_interval"][0]
    assert width < min(r["gain_interval"][1] - r["gain_interval"][0] for r in tasks)
    rates = np.stack([outcomes[t]["vlm"].mean(1) for t in ("one", "two")], 1)
    assert both["iqm"] == pytest.approx(stats.iqm(rates))
    assert both["improvement"] > 0.95


def test_the_share_of_the_oracles_gain(summary):
    both = summary["arms"]["vlm"]["all"]
    expected = both["gain"] / summary["arms"]["oracle"]["all"]["gain"]
    assert both["recovered"] == pytest.approx(expected)
    assert both["recovered_interval"][0] < 2 / 3 < both["recovered_interval"][1]
    assert "recovered" not in summary["arms"]["oracle"]["all"]


def test_the_bars(summary):
    found = evidence.bars(summary, ["vlm"], ["constant"])
    assert len(found) == 2 * (2 + 1)
    assert all(b["met"] for b in found)
    # A control held to the claim's bars, and the other way round, fails.
    wrong = evidence.bars(summary, ["constant"], ["vlm"])
    assert not any(b["met"] for b in wrong)


def test_sentences_are_parts_of_the_whole():
    tables = world()["one"]
    ids = np.arange(500) % 3
    found = evidence.by_sentence(tables, ids, ("a", "b", "c"))
    assert set(found) == {"vlm", "oracle", "constant"} and set(found["vlm"]) == {"a", "b", "c"}
    rows = found["vlm"].values()
    assert sum(r["episodes"] for r in rows) == 500
    whole = tables["vlm"].mean() - tables["base"].mean()
    weighted = sum(r["gain"] * r["episodes"] for r in rows) / 500
    assert weighted == pytest.approx(whole)
    own = stats.mcnemar(tables["vlm"][:, ids == 1].ravel(), tables["base"][:, ids == 1].ravel())
    assert found["vlm"]["b"]["mcnemar_p"] == own.pvalue
    assert all(r["gain_interval"][0] < r["gain"] < r["gain_interval"][1] for r in rows)


def test_power_is_that_of_the_paired_test(summary):
    row = summary["power"]["vlm"]
    outcomes = world()
    differ = np.mean([np.mean(t["vlm"] != t["base"]) for t in outcomes.values()])
    assert row["discordant"] == pytest.approx(differ)
    needed = stats.required_pairs((differ + 0.05) / 2, (differ - 0.05) / 2)
    assert row["episodes_needed"] == needed and row["episodes"] == 500 and row["seeds"] == 6
    assert 0 < row["detectable"] < 0.2 and row["seeds_needed"] >= 2


def test_one_seed_and_equal_policies_are_summarised_as_well():
    same = np.random.default_rng(0).random((1, 50)) < 0.5
    found = evidence.summarise({"t": {"base": same, "vlm": same, "oracle": same}}, "oracle")
    row = found["arms"]["vlm"]["all"]
    assert row["gain"] == 0 and row["gain_interval"] == [0.0, 0.0] and row["recovered"] is None
    assert found["power"]["vlm"]["seeds_needed"] is None
    assert found["power"]["vlm"]["detectable"] is None
    json.dumps(found, allow_nan=False)


def test_tables_must_fit():
    table = np.zeros((2, 3), bool)
    with pytest.raises(ValueError, match="arms"):
        evidence.summarise({"a": {"base": table, "x": table}, "b": {"base": table}})
    with pytest.raises(ValueError, match="one shape"):
        evidence.summarise({"a": {"base": table, "x": table[:1]}})
