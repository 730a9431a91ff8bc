"""The doctor finds nothing wrong with lrm-nano, and every planted fault."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

import lrm_jax
from lrm_jax.jobs import doctor
from lrm_jax.rewards.scores import NAMES


@pytest.fixture(scope="module")
def model():
    return lrm_jax.load_reward_model("lrm-nano")


@pytest.fixture(scope="module")
def sample():
    return doctor.read_sample()


def statuses(found):
    return {f.check: f.status for f in found}


def changed(scores, **values):
    """Scores with other values; what is NaN is invalid."""
    new = {k: np.asarray(v, np.float32) for k, v in values.items()}
    valid = scores.valid | {k: np.isfinite(v) for k, v in new.items()}
    return dataclasses.replace(scores, valid=valid, **new)


def faulty(judge, **change):
    """A judge whose scores are changed by functions of them."""

    def score(frames, task):
        scores = judge(frames, task)
        return changed(scores, **{k: f(np.asarray(getattr(scores, k))) for k, f in change.items()})

    return score


def test_the_shipped_model_is_healthy(model, sample):
    found = doctor.examine_model(model, sample)
    assert doctor.healthy(found)
    assert statuses(found)["bfloat16"] == statuses(found)["adapters"] == "skipped"
    assert {"ok", "skipped"} == {f.status for f in found}
    assert "antisymmetry" in doctor.table(found)


def test_so_is_the_model_of_the_suite(sample):
    found = doctor.examine_model(lrm_jax.load_reward_model("lrm-nano-suite"), sample)
    assert {"ok", "skipped"} == {f.status for f in found}, doctor.table(found)


@pytest.mark.parametrize("head", ["progress", "completion", "contrastive"])
def test_constant_output(model, sample, head):
    judge = faulty(model.score, **{head: lambda v: np.full_like(v, 0.4)})
    assert statuses(doctor.examine(judge, sample))[f"constant {head}"] == "fault"


def test_invalid_scores(model, sample):
    judge = faulty(model.score, progress=lambda v: np.where(v > 0.5, np.nan, v))
    assert statuses(doctor.examine(judge, sample))["valid scores"] == "fault"


def test_a_preference_for_one_place(model, sample):
    judge = faulty(model.score, contrastive=lambda v: v + 0.05)
    assert statuses(doctor.examine(judge, sample))["antisymmetry"] == "fault"


def test_a_model_that_does_not_listen(model, sample):
    def deaf(frames, task):
        return model.score(frames, [sample.task] * len(frames) if frames.ndim == 5 else sample.task)

    found = statuses(doctor.examine(deaf, sample))
    assert found["wrong sentence"] == "fault" and found["antisymmetry"] == "ok"


def test_a_blank_frame_that_counts_as_done(model, sample):
    judge = faulty(model.score, completion=lambda v: 0.5 + v / 2)
    assert statuses(doctor.examine(judge, sample))["blank frame"] == "fault"


@pytest.mark.parametrize(
    "check, turn",
    [("channel order", lambda f: f[..., ::-1]), ("orientation", lambda f: f[:, ::-1])],
)
def test_frames_that_came_the_wrong_way_round(model, sample, check, turn):
    turned = dataclasses.replace(sample, frames=np.ascontiguousarray(turn(sample.frames)))
    assert statuses(doctor.examine(model.score, turned))[check] == "fault"


def test_a_model_without_colours(model, sample):
    def grey(frames, task):
        mean = frames.mean(-1, keepdims=True).astype(np.uint8)
        return model.score(np.broadcast_to(mean, frames.shape).copy(), task)

    assert statuses(doctor.examine(grey, sample))["channel order"] == "fault"


def test_scores_that_depend_on_the_batch(model, sample):
    def leaky(frames, task):
        scores = model.score(frames, task)
        return changed(
            scores, progress=np.asarray(scores.progress) * (1 - 0.01 * (frames.ndim == 5))
        )

    assert statuses(doctor.examine(leaky, sample))["batch invariance"] == "fault"


def test_precision_and_adapters(model, sample):
    drifted = faulty(model.score, progress=lambda v: np.clip(v + 0.2, 0, 1))
    found = doctor.examine(
        model.score, sample, base=model.score, adapters=["progress"], rounded=drifted
    )
    assert statuses(found)["bfloat16"] == "fault"
    assert statuses(found)["adapter progress"] == "fault"
    found = doctor.examine(model.score, sample, base=drifted, adapters=["progress"])
    assert statuses(found)["adapter progress"] == "ok"


def test_pictures_of_another_world_are_a_warning(model, sample):
    noise = np.random.default_rng(0).integers(0, 256, sample.frames.shape, np.uint8)
    other = dataclasses.replace(sample, frames=noise)
    found = doctor.examine(model.score, other, domain=sample.frames)
    assert statuses(found)["domain"] == "warning"


@pytest.mark.slow
def test_the_door(tmp_path, sample):
    def run(*words):
        return subprocess.run(
            [sys.executable, "-m", "lrm_jax.doctor", *words],
            capture_output=True, text=True, cwd=tmp_path, check=False,
        )  # fmt: skip

    done = run("--json=out/doctor.json")
    assert done.returncode == 0, done.stderr
    stored = json.loads((tmp_path / "out/doctor.json").read_text())
    assert stored["healthy"] and len(stored["findings"]) >= 10
    assert "batch invariance" in done.stdout
    # The video backwards and told as if it had been done: a fault, and exit status 1.
    np.save(tmp_path / "back.npy", sample.frames[::-1])
    words = ["--frames=back.npy", f"--task={sample.wrong}", f"--wrong_task={sample.task}"]
    assert run(*words).returncode == 1
    for words in (["--frames=none.npy", "--task=a", "--wrong_task=b"], ["--frames=back.npy"]):
        bad = run(*words)
        assert bad.returncode == 2 and bad.stderr.startswith("error:")
        assert "Traceback" not in bad.stderr


def test_the_sample_is_a_task_of_held_out_colours(sample):
    assert sample.frames.dtype == np.uint8 and len(sample.frames) >= 8
    held_out = lrm_jax.envs.make("PutOnPlate", combos="held_out").sentences_in_use()
    assert sample.task in held_out and sample.wrong != sample.task
    assert set(NAMES) == {"progress", "completion", "contrastive", "tri"}
