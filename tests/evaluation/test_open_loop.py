"""The open-loop table on made-up episodes whose answers are known."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lrm_jax.evaluation import clustered, metrics, stats
from lrm_jax.evaluation.open_loop import (
    ARMS,
    METRICS,
    HeadScores,
    ScoredEpisode,
    Settings,
    open_loop_markdown,
    open_loop_table,
)

QUICK = Settings(reps=200)


def episodes(n=40, frames=12, noise=0.05, seed=0, interval=3):
    """Half successes (progress rises to 1), half failures (rises to 0.4, falls back to 0.1)."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        success = i % 2 == 0
        t = np.linspace(0, 1, frames)
        target = t if success else np.where(t < 0.5, 0.8 * t, 0.8 * (0.5 - 0.75 * (t - 0.5)))
        target = np.clip(target, 0, 1)
        done = success & (target >= 0.9)

        def score(truth):
            return np.clip(truth + noise * rng.normal(size=frames), 0, 1)

        contrastive = np.full(frames, np.nan)
        contrastive[interval:] = np.sign(target[interval:] - target[:-interval])
        heads = HeadScores(score(target), score(done.astype(float)), contrastive)
        wrong = HeadScores(score(0.2 * target), score(0 * target), -contrastive)
        made.append(ScoredEpisode(heads, target, done, success, wrong, interval))
    return made


@pytest.fixture(scope="module")
def data():
    return episodes()


@pytest.fixture(scope="module")
def table(data):
    return open_loop_table(data, {"direction_accuracy": 0.85, "progress_mae": 0.01}, QUICK)


def test_values_are_those_of_the_metrics(data, table):
    cell = {name: row["model"]["value"] for name, row in table["metrics"].items()}
    progress = np.concatenate([e.scores.progress for e in data])
    completion = np.concatenate([e.scores.completion for e in data])
    target = np.concatenate([e.target for e in data])
    done = np.concatenate([e.done for e in data])
    success = np.array([e.success for e in data])
    final = np.array([e.scores.progress[-1] for e in data])
    assert cell["progress_mae"] == pytest.approx(metrics.mae(progress, target))
    for delta in (0.1, 0.2):
        expected = metrics.accuracy_within(progress, target, delta)
        assert cell[f"progress_within_{delta}"] == pytest.approx(expected)
    assert cell["completion_auc"] == pytest.approx(roc_auc_score(done, completion))
    assert cell["completion_balanced_accuracy"] == pytest.approx(
        metrics.balanced_accuracy(completion, done, 0.5)
    )
    last = [e.scores.completion[-1] for e in data]
    assert cell["completion_final_auc"] == pytest.approx(metrics.roc_auc(last, success))
    assert cell["final_gap"] == pytest.approx(metrics.success_failure_gap(final, success))
    voc = metrics.voc_summary([e.scores.progress for e in data if e.success])
    assert cell["voc"] == pytest.approx(voc.mean)
    ranks = [metrics.spearman(e.scores.progress, e.target) for e in data]
    assert cell["progress_rank"] == pytest.approx(np.mean(ranks))
    firsts = [int(np.argmax(e.done)) if e.done.any() else None for e in data]
    alarms = metrics.false_triggers([e.scores.completion for e in data], firsts, 0.5)
    assert cell["completion_false_triggers"] == pytest.approx(alarms.episode_rate)
    changes = np.concatenate([e.target[3:] - e.target[:-3] for e in data])
    votes = np.concatenate([e.scores.contrastive[3:] for e in data])
    assert cell["direction_accuracy"] == pytest.approx(
        metrics.pairwise_direction_accuracy(votes, changes, 0.05)
    )
    assert cell["direction_three_class"] == pytest.approx(
        metrics.direction_accuracy(votes, changes, 0.05, 1 / 3)
    )
    drop = final - [e.wrong.progress[-1] for e in data]
    assert cell["wrong_sentence_drop"] == pytest.approx(drop.mean())
    assert cell["wrong_sentence_drop_success"] == pytest.approx(drop[success].mean())


def test_counts(data, table):
    assert (table["episodes"], table["successes"], table["failures"]) == (40, 20, 20)
    assert table["with_wrong_sentence"] == 40
    n = {name: row["model"]["n"] for name, row in table["metrics"].items()}
    assert n["progress_mae"] == 40 * 12 and n["voc"] == 20 and n["final_gap"] == 40
    assert n["direction_three_class"] == 40 * 9
    assert table["invalid"]["model"]["contrastive"] == {"invalid": 0, "of": 40 * 9}
    assert set(table["metrics"]) == set(METRICS)
    json.dumps(table, allow_nan=False)


def test_controls_know_what_they_must(table):
    rows = table["metrics"]
    assert rows["voc"]["time ramp"]["value"] == 1.0  # by construction
    assert rows["voc"]["constant"]["value"] is None and rows["voc"]["constant"]["n"] == 0
    assert rows["completion_auc"]["constant"]["value"] == 0.5
    assert rows["completion_balanced_accuracy"]["constant"]["value"] == 0.5
    assert rows["direction_accuracy"]["constant"]["value"] == 0.5
    assert rows["direction_accuracy"]["wrong sentence"]["value"] == pytest.approx(
        1 - rows["direction_accuracy"]["model"]["value"]
    )
    for arm in ("constant", "time ramp"):
        assert rows["wrong_sentence_drop"][arm]["value"] == 0.0
        assert rows["final_gap"][arm]["value"] == 0.0
    assert rows["wrong_sentence_drop"]["wrong sentence"]["value"] is None
    assert rows["completion_final_auc"]["time ramp"]["value"] == 0.5


def test_bars(table):
    assert table["metrics"]["direction_accuracy"]["met"] is True
    assert table["metrics"]["progress_mae"]["met"] is False  # lower is better
    assert table["metrics"]["voc"]["met"] is None
    with pytest.raises(ValueError, match="unknown metrics"):
        open_loop_table(episodes(2), {"accuracy": 1})


def test_intervals_resample_episodes(data, table):
    """A plain bootstrap over the same resampled episodes gives the same interval."""
    weights = np.concatenate(list(stats.resample_weights(len(data), QUICK.reps, QUICK.seed)))
    aucs, errors, gains = [], [], []
    ramp = np.linspace(0, 1, 12)
    for w in weights.astype(int):
        picked = [e for e, k in zip(data, w, strict=True) for _ in range(k)]
        aucs.append(
            roc_auc_score(
                np.concatenate([e.done for e in picked]),
                np.concatenate([e.scores.completion for e in picked]),
            )
        )
        errors.append(np.mean([np.abs(e.scores.progress - e.target) for e in picked]))
        gains.append(errors[-1] - np.mean([np.abs(ramp - e.target) for e in picked]))
    for name, resampled in (("completion_auc", aucs), ("progress_mae", errors)):
        cell = table["metrics"][name]["model"]
        assert (cell["low"], cell["high"]) == pytest.approx(
            tuple(np.quantile(resampled, (0.025, 0.975))), abs=1e-9
        )
    difference = table["metrics"]["progress_mae"]["time ramp"]["difference"]
    assert difference[1:] == pytest.approx(np.quantile(gains, (0.025, 0.975)), abs=1e-9)


def test_invalid_scores_are_left_out_and_counted():
    made = episodes(10)
    broken = made[0].scores.progress.copy()
    broken[[2, -1]] = np.nan
    made[0] = ScoredEpisode(
        HeadScores(broken, made[0].scores.completion, None),
        made[0].target, made[0].done, True, None, 3,
    )  # fmt: skip
    result = open_loop_table(made, settings=QUICK)
    rows = result["metrics"]
    assert result["invalid"]["model"]["progress"] == {"invalid": 2, "of": 120}
    assert result["invalid"]["model"]["contrastive"] == {"invalid": 0, "of": 9 * 9}
    assert result["with_wrong_sentence"] == 9
    for arm in ("model", "constant", "time ramp"):  # the same frames for the controls
        assert rows["progress_mae"][arm]["n"] == 118
        assert rows["final_gap"][arm]["n"] == 9
        assert rows["wrong_sentence_drop"][arm]["n"] == 9
    assert rows["progress_mae"]["wrong sentence"]["n"] == 9 * 12


def test_one_class_one_frame_and_no_scores():
    one = ScoredEpisode(HeadScores(progress=np.array([0.5])), [0.5], np.array([False]), False)
    result = open_loop_table([one], settings=QUICK)
    assert result["metrics"]["progress_mae"]["model"]["value"] == 0.0
    for name in ("voc", "final_gap", "completion_auc", "direction_accuracy", "wrong_sentence_drop"):
        assert result["metrics"][name]["model"]["value"] is None
    json.dumps(result, allow_nan=False)
    assert "–" in open_loop_markdown(result)
    with pytest.raises(ValueError, match="at least one"):
        open_loop_table([])


def test_undefined_resamples_are_counted():
    result = open_loop_table(episodes(2), settings=QUICK)  # half of the resamples hold one class
    cell = result["metrics"]["final_gap"]["model"]
    assert 50 < cell["undefined_resamples"] < 150
    assert cell["value"] is not None and cell["low"] is not None


def test_greedy_tenths_in_float32_keep_the_edge():
    target = np.array([0.7, 0.1], np.float32)
    scores = HeadScores(progress=np.array([0.9, 0.3], np.float32))
    episode = ScoredEpisode(scores, target, np.zeros(2, bool), False)
    rows = open_loop_table([episode], settings=QUICK)["metrics"]
    assert rows["progress_within_0.2"]["model"]["value"] == 1.0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"done": np.zeros(3, bool)}, "done"),
        ({"done": np.zeros(2)}, "bool"),
        ({"target": [0.1, np.nan]}, "finite"),
        ({"scores": HeadScores(progress=np.zeros(3))}, "shape"),
        ({"interval": 0}, "interval"),
    ],
)
def test_wrong_episodes_are_errors(change, message):
    good = {
        "scores": HeadScores(progress=np.zeros(2)),
        "target": np.zeros(2),
        "done": np.zeros(2, bool),
        "success": False,
    }
    with pytest.raises(ValueError, match=message):
        open_loop_table([ScoredEpisode(**{**good, **change})], settings=QUICK)


def test_markdown(table):
    text = open_loop_markdown(table)
    lines = text.splitlines()
    assert lines[0].startswith("| metric | model | constant | time ramp | wrong sentence |")
    assert len(lines) == 2 + len(METRICS) + 2
    assert all(line.count("|") == 8 for line in lines[: 2 + len(METRICS)])
    assert "≥ 0.85 ✓" in text and "≤ 0.01 ✗" in text
    assert "40 episodes, 20 of them failures" in text
    assert len(ARMS) == 4


def test_auc_with_ties_over_clusters():
    rng = np.random.default_rng(0)
    scores = [rng.integers(0, 4, k) / 4 for k in (3, 5, 1, 8)]
    labels = [rng.random(s.size) < 0.5 for s in scores]
    ones = [np.ones((1, 4))]
    cell = clustered.auc(ones, scores, labels)
    assert cell.resampled[0] == pytest.approx(cell.value)
    assert cell.value == pytest.approx(
        roc_auc_score(np.concatenate(labels), np.concatenate(scores))
    )
