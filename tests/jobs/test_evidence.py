"""The evidence job on a toy task: cells, resumption, budgets, tables and report."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from lrm_jax.jobs import evidence, evidence_report
from lrm_jax.jobs.base_policy import World
from lrm_jax.jobs.refine import RefineJob
from lrm_jax.jobs.settings import EnvSettings
from lrm_jax.policies import Policy, Vocabulary
from lrm_jax.run import config, manifest
from lrm_jax.run.errors import UserError
from lrm_jax.run.workdir import Workdir

sys.path.append(str(Path(__file__).resolve().parents[1] / "rl"))
from pixel_point import SENTENCES, PixelPoint, draw

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "any.py"
TOY = {
    "job": "evidence",
    "tasks": {"left": {"size": 32}, "right": {"size": 32}},
    "arms": {
        "oracle": {"reward": {"arm": "oracle"}},
        "constant": {"reward": {"arm": "constant"}},
    },
    "seeds": (0, 1),
    "policy": {"chunk": 4, "waypoints": 0, "image_size": 32, "channels": 8, "blocks": 1,
               "keypoints": 4, "sentence_size": 16, "hidden": 32},
    "refine": {"iterations": 2, "num_envs": 8, "num_chunks": 5, "ppo": {"minibatches": 2}},
    "evaluation": {"episodes": 12, "batch": 12, "seed": 7},
}  # fmt: skip
ENV = PixelPoint(radius=0.3)


@pytest.fixture
def toy(monkeypatch):
    """The job's world is a point among two dots, its clone an untrained policy."""
    vocabulary = Vocabulary.of(SENTENCES)

    def make(env, policy, mesh):
        return World(ENV, draw, Policy(policy, vocabulary.size, 2), vocabulary)

    def clone(workdir, job, seed, world):
        stage = workdir.stage(f"base_policy_{seed}", {"seed": seed})
        stage.run(lambda folder: (folder / "empty").write_text(""), lambda folder: None)
        return stage, world.fresh(seed), {}

    monkeypatch.setattr(evidence.World, "make", staticmethod(make))
    monkeypatch.setattr(evidence, "clone_stage", clone)
    monkeypatch.setattr(EnvSettings, "make", lambda self: ENV)


def played(folder, raw=TOY):
    with Workdir(folder) as workdir, manifest.recording(workdir.path, config=raw, job="evidence"):
        return evidence.run(ConfigDict(raw), workdir)


def test_cells_are_stages_and_a_new_arm_costs_its_own_cells(toy, tmp_path):
    first = played(tmp_path)
    assert len(first["cells"]) == 2 * 2 * 2
    marks = {p.parent.name: p.stat().st_mtime_ns for p in tmp_path.glob("stages/*/stage.json")}
    assert "left_refine_oracle_1" in marks and "right_evaluation_base_0" in marks
    raw = {**TOY, "arms": {**TOY["arms"], "time_ramp": {"reward": {"arm": "time_ramp"}}}}
    second = played(tmp_path, raw)
    again = {p.parent.name: p.stat().st_mtime_ns for p in tmp_path.glob("stages/*/stage.json")}
    assert {k: again[k] for k in marks} == marks
    assert set(again) - set(marks) == {
        f"{task}_{what}_time_ramp_{seed}" for task in ("left", "right") for seed in (0, 1)
        for what in ("refine", "evaluation")
    }  # fmt: skip
    for arm in ("oracle", "constant"):
        assert second["arms"][arm] == first["arms"][arm]
    row = second["arms"]["constant"]["tasks"]["left"]
    cells = [c for c in second["cells"] if c["arm"] == "constant" and c["task"] == "left"]
    assert row["gain"] == pytest.approx(np.mean([c["gain"] for c in cells]))
    assert {c["env_steps"] for c in cells} == {2 * 8 * 20}
    assert all(c["privileged"] == (c["arm"] == "oracle") for c in second["cells"])
    table = (tmp_path / "table.md").read_text()
    for heading in ("Gain over the clone", "Over all tasks", "Bars", "Sentences", "Budget", "Power",
                    "Cells"):  # fmt: skip
        assert f"## {heading}" in table
    assert "time ramp" in table
    rows = second["sentences"]["left"]["oracle"]
    assert set(rows) == set(SENTENCES) and sum(r["episodes"] for r in rows.values()) == 12
    report = (tmp_path / "report.html").read_text()
    assert all(f"Success while refining: {task}" in report for task in ("left", "right"))
    assert json.loads((tmp_path / "summary.json").read_text())["bars"] == second["bars"]
    # Two iterations show no rise: clones are handed over, and controls are judged as trained.
    third = played(tmp_path, {**raw, "keep": 0.001})
    assert {c["gain"] for c in third["cells"]} == {0.0}
    assert {c["policy"] for c in third["cells"] if c["task"] == "left" and c["seed"] == 1} == {
        "stages/left_base_policy_1/policy.safetensors"
    }
    assert [c["trained"] for c in third["cells"]] == [c["trained"] for c in second["cells"]]
    judged = [[b for b in x["bars"] if b["arm"] == "constant"] for x in (second, third)]
    assert judged[0] == judged[1] and len(judged[0]) == 2
    # One task's iterations are not the other's, though arms and seeds have the same names.
    series = [json.loads(line)["series"] for line in (tmp_path / "metrics.jsonl").open()]
    named = {s for s in series if "oracle_0" in s}
    assert named == {"left_refine_oracle_0", "right_refine_oracle_0"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"arms": {"base": {"reward": {"arm": "oracle"}}}}, "cloned policy"),
        ({"oracle": "orakel"}, "orakel"),
        ({"oracle": "constant"}, "no oracle"),
        ({"seeds": (1, 1)}, "twice"),
        ({"tasks": {}}, "at least one"),
        ({"tasks": {"a/b": {"size": 32}}}, "a/b"),
        ({"arms": {**TOY["arms"], "vlm": {"reward": {"arm": "vml"}}}}, "vml"),
        ({"tasks": {"left": {"size": 64}}}, "image_size"),
    ],
)
def test_bad_settings_are_refused(toy, change, says):
    with pytest.raises(UserError, match=says):
        config.build(evidence.EvidenceJob, ConfigDict({**TOY, **change}))


def arms(**rewards):
    more = {name: {"reward": {"arm": "vlm", **reward}} for name, reward in rewards.items()}
    return ConfigDict({**TOY, "arms": {**TOY["arms"], **more}})


def test_budgets_must_be_equal_in_the_unit_that_is_asked_for(toy):
    raw = arms(one={"signal": "progress"}, two={"signal": "progress+completion"})
    job = config.build(evidence.EvidenceJob, raw)  # as many frames
    assert job.cell("left", "one").judged_frames == job.cell("left", "two").judged_frames == 96
    assert job.cell("left", "two").judgements == 2 * job.cell("left", "one").judgements == 192
    raw.equal_budget = "judgements"
    with pytest.raises(UserError, match="one 96, two 192"):
        config.build(evidence.EvidenceJob, raw)
    raw = arms(one={}, two={"transform": "hold", "interval": 2})
    with pytest.raises(UserError, match="frames"):
        config.build(evidence.EvidenceJob, raw)
    raw.equal_budget = ""
    config.build(evidence.EvidenceJob, raw)
    # An arm's own refinement must be as long, whatever it learns from.
    raw = ConfigDict(TOY)
    raw.arms.constant.refine = ConfigDict({**TOY["refine"], "num_envs": 16})
    with pytest.raises(UserError, match="control steps"):
        config.build(evidence.EvidenceJob, raw)


def test_an_early_stop_shows_in_the_row(toy, tmp_path):
    raw = ConfigDict(TOY)
    raw.arms.constant.refine = ConfigDict({**TOY["refine"], "stop": {"kl_clone": 1e-9}})
    raw.refine.iterations = raw.arms.constant.refine.iterations = 3
    raw.tasks = {"left": {"size": 32}}
    found = played(tmp_path, raw)
    rows = {c["arm"]: c for c in found["cells"]}
    assert rows["constant"]["iterations"] < 3 and "KL" in rows["constant"]["stopped"]
    assert rows["oracle"]["iterations"] == 3 and rows["oracle"]["stopped"] is None
    assert "KL from the clone" in (tmp_path / "table.md").read_text()


def test_curves_go_on_where_runs_stopped_early():
    job = dataclasses.replace(evidence.EvidenceJob(), oracle="", seeds=(0, 1))
    rows = [{"episode_reward": float(i), "success_end": 0.1 * i} for i in range(8)]
    down = [{**r, "success_end": 1 - r["success_end"]} for r in rows]
    found = {("PutOnPlate", "vlm", 0): rows, ("PutOnPlate", "vlm", 1): rows[:5]}
    figures = evidence_report.curves(job, found)
    kinds = ["learning_curves", "learning_curves", "proxy_and_oracle"]
    assert [f["kind"] for f in figures] == kinds
    assert np.isnan(figures[2]["proxy"][1, 5:]).all() and figures[2]["apart"][-1] == 1.0
    found = {("PutOnPlate", "vlm", s): down for s in (0, 1)}
    assert evidence_report.curves(job, found)[2]["apart"][-1] == -1.0


@pytest.mark.parametrize("arg", ["", "core", "pilot", "small"])
def test_the_recipe_is_a_valid_job(arg):
    raw = config.sibling(str(CONFIGS), "evidence").get_config(arg)
    job = config.build(evidence.EvidenceJob, raw)
    core = {"wrong_sentence", "constant", "time_ramp"}
    everything = core | {"shuffled", "untrained"}
    assert set(job.controls) == (core if arg in ("core", "pilot") else everything)
    assert len(job.claims) == {"": 6, "core": 1, "pilot": 1, "small": 1}[arg]
    assert ("paper" in job.claims) == (arg == "")
    if arg != "small":
        assert len(job.tasks) == 4
        with raw.unlocked():  # a task may have demonstrations of its own
            raw.tasks.LiftPeg.demonstrations = {**raw.demonstrations, "episodes": 24, "batch": 24}
        own = config.build(evidence.EvidenceJob, raw)
        shown = {task: own.cell(task, "vlm").demonstrations.episodes for task in own.tasks}
        assert shown.pop("LiftPeg") == 24 and set(shown.values()) == {job.demonstrations.episodes}
        rates = {task: job.cell(task, "vlm").clone.lr for task in job.tasks}
        assert rates.pop("LiftPeg") == 1e-3 and set(rates.values()) == {job.clone.lr}
    if arg in ("", "core"):
        assert len(job.seeds) >= 5 and job.evaluation.episodes >= 1000


def test_a_part_is_cells_of_the_whole_table():
    """Each of its stages has the settings that it has in the whole, so the whole takes it over."""
    recipe = config.sibling(str(CONFIGS), "evidence")
    whole = config.build(evidence.EvidenceJob, recipe.get_config(""))
    part = config.build(
        evidence.EvidenceJob, recipe.get_config("LiftPeg+StackCubes,vlm+paper+oracle,3+1")
    )
    assert (set(part.tasks), part.seeds) == ({"LiftPeg", "StackCubes"}, (3, 1))
    assert set(part.arms) == {"vlm", "paper", "oracle"} and part.oracle == "oracle"
    for task in part.tasks:
        for arm in part.arms:
            same = dataclasses.replace(part.cell(task, arm), seeds=whole.seeds)
            assert same == whole.cell(task, arm)
    blind = recipe.get_config("LiftPeg,constant,0")
    assert blind.oracle == "" and config.build(evidence.EvidenceJob, blind).claims == []


@pytest.mark.parametrize(
    ("name", "arg"),
    [("evidence", "seeds"), ("evidence", "controls"), ("refine", ""), ("refine_paper", ""),
     ("refine_paper", "small_lr")],
)  # fmt: skip
def test_recipes_of_refinement(name, arg):
    job = config.build(RefineJob, config.sibling(str(CONFIGS), name).get_config(arg))
    if name == "refine_paper":
        c, p = job.refine, job.refine.ppo
        assert (c.num_envs, c.num_chunks, job.policy.chunk, c.iterations) == (12, 16, 5, 30)
        assert job.env_steps == 28_800  # the paper's
        assert (p.clip, p.dual_clip, p.huber, p.value_clip, p.entropy) == (0.1, 3, 10, 0.2, 5e-4)
        assert (p.discount, p.decay, p.epochs, p.grad_clip) == (0.99, 0.95, 2, 0.3)
        assert p.joint_grad_clip and p.bootstrap_truncated and not c.normalise_rewards
        assert c.num_envs * c.num_chunks // p.minibatches == 24
        assert job.reward.interval * job.policy.chunk == 10 and job.reward.per_step
