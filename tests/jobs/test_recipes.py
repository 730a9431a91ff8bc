"""Reward models trained through the doors: from scratch, and adapters by the paper's recipe."""

import json
import shutil

import numpy as np
import peft
import pytest
import safetensors.numpy
from doors import finish, small_checkpoint, start

from lrm_jax.run import metrics


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
