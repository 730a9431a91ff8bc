"""The learning curve: which episodes a point has learnt from, and what it is judged on; on made-up
episodes, with models that know the words of their training sentences."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from test_reward_tasks import EPISODES, _arrays, _Judge, _task

from lrm_jax.jobs import learning_curve
from lrm_jax.run import config, manifest
from lrm_jax.run.errors import UserError
from lrm_jax.run.workdir import Workdir

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "any.py"


def job(sizes) -> ConfigDict:
    plain = lambda t: dataclasses.asdict(t)  # noqa: E731
    return ConfigDict(
        {
            "job": "learning_curve", "sizes": sizes,
            "reward": {
                "env": plain(_task("PutOnPlate", "train"))["env"],
                "collect": plain(_task("PutOnPlate", "train"))["collect"],
                "more": (plain(_task("LiftPeg", "train")),),
                "held_out": plain(_task("PutOnPlate", "held_out"))["env"],
                "evaluate": plain(_task("PutOnPlate", "held_out"))["collect"],
                "more_held_out": (plain(_task("LiftPeg", "held_out")),),
                "validation_episodes": 2,
                "bars": (("progress_mae", 0.1),),
            },
        }
    )  # fmt: skip


def test_every_point_is_judged_on_the_same_episodes_by_what_it_learnt(tmp_path, monkeypatch):
    seen, trained = [], []

    def collected(workdir, name, env, settings):
        arrays = _arrays(env.make(), 0)
        stage = workdir.stage(name, {"env": env, "collect": settings})
        return stage, stage.run(lambda folder: None, lambda folder: arrays)

    class Judge(_Judge):
        def __init__(self, size):
            super().__init__(("the",) if size > 2 else ("lift",))  # the small one knows one task
            self.facts = {"size": size}

        def score(self, frames, tasks, **options):
            seen.append((self.facts["size"], frames.shape, tuple(tasks)))
            return super().score(frames, tasks, **options)

    def model_stage(reward, workdir, befores, found, episodes):
        for task, arrays in found:
            kept = {name: values.shape[0] for name, values in arrays.items()}
            assert set(kept.values()) == {episodes + 2}, task.env.name
            trained.append((episodes, arrays["frames"][:, 0, 0, 0, 1].tolist()))
        stage = workdir.stage(reward.stage, {"episodes": episodes}, after=befores)
        return stage, stage.run(lambda folder: None, lambda folder: Judge(episodes))

    monkeypatch.setattr(learning_curve, "collect_stage", collected)
    monkeypatch.setattr("lrm_jax.jobs.reward.collect_stage", collected)
    monkeypatch.setattr(learning_curve, "model_stage", model_stage)
    with Workdir(tmp_path / "a") as workdir, manifest.recording(workdir.path):
        summary = learning_curve.run(job((2, 4)), workdir)
    # The first ones, and behind them the two that validate, for either task.
    assert trained == 2 * [(2, [0, 1, 4, 5])] + 2 * [(4, [0, 1, 2, 3, 4, 5])]
    asked = [[rest for size, *rest in seen if size == own] for own in (2, 4)]
    assert asked[0] == asked[1] and asked[0]
    points = summary["points"]
    assert summary["held_out_episodes"] == points["2"]["episodes"] == 2 * EPISODES
    worse, better = (points[s]["metrics"]["progress_mae"]["model"]["value"] for s in "24")
    assert better < 0.01 < 0.1 < worse
    assert points["4"]["metrics"]["progress_mae"]["met"]
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["sizes"] == [2, 4]
    table = (tmp_path / "a" / "learning_curve.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:4]] == ["2", "4"]
    assert (tmp_path / "a" / "report.html").stat().st_size > 1000


@pytest.mark.parametrize(
    ("sizes", "said"), [((), "ascending"), ((4, 2), "ascending"), ((2, 5), "has 4 episodes")]
)
def test_sizes_that_do_not_fit(sizes, said):
    with pytest.raises(UserError, match=said):
        config.build(learning_curve.LearningCurveJob, job(sizes))


def test_devices_are_named_where_the_door_looks():
    """It asks a CPU for them by the config's own "mesh", before the job begins."""
    for argument in ("", "small"):
        raw = config.sibling(str(CONFIGS), "learning_curve").get_config(argument)
        assert config.build(learning_curve.LearningCurveJob, raw).mesh == raw.mesh == "data=2"
    raw.reward.mesh = "data=2"
    with pytest.raises(UserError, match=r"config\.mesh"):
        config.build(learning_curve.LearningCurveJob, raw)


def test_the_validation_episodes_are_always_the_last():
    arrays = {"frames": np.arange(10), "task_id": np.arange(10) * 2}
    kept = learning_curve.first_episodes(arrays, 3, 2)
    np.testing.assert_array_equal(kept["frames"], [0, 1, 2, 8, 9])
    np.testing.assert_array_equal(kept["task_id"], 2 * kept["frames"])
