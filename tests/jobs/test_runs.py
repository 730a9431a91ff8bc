"""The doors end to end on a few episodes: files, resumption, bad input."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import peft
import pytest
import safetensors.numpy

from lrm_jax.benchmarks import peers
from lrm_jax.episodes import SourceSettings, open_source
from lrm_jax.policies import load_policy
from lrm_jax.rewards.model import NANO_FOLDER
from lrm_jax.rewards.tokenizer import Tokenizer
from lrm_jax.run import metrics

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "base_success", "refined_success", "episodes", "wilson_base", "wilson_refined", "mcnemar_p",
    "oracle_success", "iterations", "wall_seconds", "env_steps", "vlm_scores", "invalid_scores",
}  # fmt: skip


def start(*arguments, door="train", **options):
    command = [sys.executable, "-m", f"lrm_jax.{door}", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def finish(process, timeout=1500):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


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
def test_a_reward_model_is_trained_exported_and_judged(tmp_path):
    """Held-out episodes, table and report; then the exported folder through the other door."""
    code, _, err = finish(
        start("--config=configs/reward_nano.py:small", f"--workdir={tmp_path / 'a'}")
    )
    assert code == 0, err[-2000:]
    table = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert table["episodes"] == 16 and table["successes"] + table["failures"] == 16
    assert set(table["metrics"]["direction_accuracy"]) >= {"model", "constant", "time ramp"}
    model = tmp_path / "a" / "stages" / "model"
    code, _, err = finish(
        start(
            "--config=configs/open_loop.py:small", f"--config.model={model}",
            f"--workdir={tmp_path / 'b'}", door="evaluate",
        )
    )  # fmt: skip
    assert code == 0, err[-2000:]
    again = json.loads((tmp_path / "b" / "summary.json").read_text())
    # The same episodes and weights through both doors; `bars` are the same as well.
    assert again["metrics"] == table["metrics"]
    assert (tmp_path / "b" / "report.html").stat().st_size > 1000


@pytest.mark.slow
def test_the_recipe_for_a_large_checkpoint_runs_on_a_small_one(tmp_path):
    """The paper's adapters for a random Qwen3-VL, written as PEFT reads them, judged open loop; a
    second run trains nothing again."""
    base, work = tmp_path / "base", tmp_path / "work"
    small_checkpoint(base)
    arguments = (
        "--config=configs/reward_qwen3vl_8b.py:small", f"--config.model={base}",
        f"--workdir={work}",
    )  # fmt: skip
    code, _, err = finish(start(*arguments))
    assert code == 0, err[-2000:]
    for head in ("progress", "completion", "contrastive"):
        folder = work / "stages" / f"adapter_{head}"
        assert peft.PeftConfig.from_pretrained(folder).r == 4
        tensors = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
        assert all(np.abs(v).max() > 0 for k, v in tensors.items() if "lora_B" in k)
    table = json.loads((work / "summary.json").read_text())
    assert table["episodes"] == 16 and table["invalid"]["model"]["progress"]["invalid"] == 0
    hashes = json.loads((work / "manifest.json").read_text())["hashes"]
    assert set(hashes["adapter_sha256"]) == {"progress", "completion", "contrastive"}
    made = (work / "stages" / "adapter_progress" / "stage.json").stat().st_mtime_ns
    code, _, err = finish(start(*arguments))
    assert code == 0, err[-2000:]
    assert (work / "stages" / "adapter_progress" / "stage.json").stat().st_mtime_ns == made

    # DPO goes on from the adapter that this made, with the same episodes.
    shutil.copytree(work / "stages" / "adapter_contrastive", tmp_path / "sft_contrastive")
    preferred = (
        "--config=configs/reward_qwen3vl_8b.py:dpo,small", *arguments[1:],
        f"--config.training.start={tmp_path}/sft_{{head}}",
    )  # fmt: skip
    code, _, err = finish(start(*preferred))
    assert code == 0, err[-2000:]
    rows = [row for row in metrics.read(work, "adapter_contrastive") if "loss" in row]
    assert abs(rows[-1]["loss"] - np.log(2)) < 0.1 and "preference_margin" in rows[-1]
    before, after = (
        safetensors.numpy.load_file(folder / "adapter_model.safetensors")
        for folder in (tmp_path / "sft_contrastive", work / "stages" / "adapter_contrastive")
    )
    assert set(before) == set(after) and any((before[k] != after[k]).any() for k in before)
    table = json.loads((work / "summary.json").read_text())
    assert table["invalid"]["model"]["contrastive"]["invalid"] == 0


@pytest.mark.slow
def test_the_recipe_learns_from_a_tfds_data_set_on_disk(tmp_path):
    """Open X-Embodiment's features in TFRecord, pictures of another size than the model's, one
    broken episode; then the adapters are trained on it and judged."""
    base, work, data = tmp_path / "base", tmp_path / "work", tmp_path / "data"
    small_checkpoint(base)
    write_open_x(data, (14, 9, 1, 20, 12))
    code, _, err = finish(
        start(
            "--config=configs/reward_qwen3vl_8b.py:small", f"--config.model={base}",
            f"--config.data.source.path={data}", "--config.data.source.fps=5.0",
            "--config.training.best={head}/loss", "--config.training.final=best",
            f"--workdir={work}",
        )
    )  # fmt: skip
    assert code == 0, err[-2000:]
    read = json.loads((work / "stages" / "data" / "sources.json").read_text())["data"]
    assert (read["episodes"], read["broken"], read["drawn"]) == (5, 1, 4)
    report = json.loads((work / "stages" / "data" / "quarantine" / "data.json").read_text())
    assert report["by_kind"] == {"empty": 1}
    # The last two are kept for validation; as TFDS has shuffled them, one is the broken one.
    stored = json.loads((work / "stages" / "data" / "episodes.json").read_text())
    assert (stored["validation"], len(stored["episodes"])) == (1, 4)
    named = {"progress": "mae", "completion": "accuracy", "contrastive": "accuracy"}
    for head, number in named.items():
        rows = metrics.read(work, f"adapter_{head}")
        rows = [r for r in rows if f"validation/{head}/{number}" in r]
        assert [r["step"] for r in rows] == [2, 3]
        assert all(r[f"validation/{head}/loss"] > 0 for r in rows)
        assert list((work / "tensorboard" / f"adapter_{head}").iterdir())
    assert not (work / "stages" / "episodes").exists()
    for head in ("progress", "completion", "contrastive"):
        tensors = safetensors.numpy.load_file(
            work / "stages" / f"adapter_{head}" / "adapter_model.safetensors"
        )
        assert all(np.abs(v).max() > 0 for k, v in tensors.items() if "lora_B" in k)
    assert json.loads((work / "summary.json").read_text())["episodes"] == 16


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


def write_open_x(folder, lengths):
    """A TFDS data set of demonstrations without success labels, as Open X-Embodiment's are."""
    import tensorflow_datasets as tfds

    f = tfds.features
    steps = f.Dataset(
        {
            "observation": f.FeaturesDict({"image_0": f.Image(shape=(48, 80, 3))}),
            "language_instruction": f.Text(),
        }
    )

    class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = "toy"

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict({"steps": steps}))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            rng = np.random.default_rng(0)
            for number, length in enumerate(lengths):
                step = lambda n=number: {  # noqa: E731
                    "observation": {"image_0": rng.integers(0, 255, (48, 80, 3), np.uint8)},
                    "language_instruction": f"put the {('red', 'blue')[n % 2]} cube away",
                }
                yield str(number), {"steps": [step() for _ in range(length)]}

    Toy(data_dir=str(folder), file_format="tfrecord").download_and_prepare()


def small_checkpoint(folder):
    """A random Qwen3-VL with lrm-nano's vocabulary, as transformers writes it."""
    tokenizer = Tokenizer.from_folder(NANO_FOLDER)
    tokenizer.inner.add_special_tokens(["<|video_pad|>"])
    tokens = {
        f"{field}_token_id": tokenizer.token_id(f"<|{token}|>")
        for field, token in (
            ("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }  # fmt: skip
    tiny = peers.SIZES["tiny"]
    text = dataclasses.replace(tiny.text_config, vocab_size=tokenizer.size)
    peers.random_peer(dataclasses.replace(tiny, text_config=text, **tokens), tokenizer, folder)


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
        (("--config=configs/missing.py",), "missing.py"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_status_2(tmp_path, arguments, says):
    code, _, err = finish(start(*arguments, f"--workdir={tmp_path / 'w'}"), timeout=120)
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2, err
    assert len(lines) == 1 and says in lines[0], err
