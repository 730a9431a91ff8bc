"""The job `calibrate`: temperatures and monotone maps of a reward model's heads, from episodes."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from lrm_jax.evaluation.metrics import brier, crps, ece, mae, nll
from lrm_jax.jobs import simulated
from lrm_jax.jobs.collect import collect_stage
from lrm_jax.jobs.open_loop import INTERVAL, identity, truth
from lrm_jax.jobs.settings import CollectSettings, EnvSettings
from lrm_jax.labels import time_map
from lrm_jax.reward_training import objective
from lrm_jax.rewards import calibration
from lrm_jax.rewards.calibration import HeadCalibration, fit_knots, fit_temperature
from lrm_jax.rewards.heads import write_heads
from lrm_jax.rewards.model import RewardModel, load_reward_model
from lrm_jax.rewards.scoring import Distribution
from lrm_jax.run import atomic, config, manifest
from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError
from lrm_jax.run.progress import bar
from lrm_jax.run.workdir import Workdir

FILE = "calibrated_heads.json"
BATCH = 32


@dataclasses.dataclass(frozen=True)
class CalibrateJob:
    """Everything that `job="calibrate"` depends on.

    model: a reward model's name or folder. held_out, evaluate: the episodes; the first half is
    fitted to, the second judges. maps: heads that get a monotone map besides their temperature.
    """

    job: str = "calibrate"
    model: str = "lrm-nano"
    held_out: EnvSettings = field(default_factory=EnvSettings)
    evaluate: CollectSettings = field(default_factory=CollectSettings)
    maps: tuple[str, ...] = ("progress", "completion")


@dataclasses.dataclass(frozen=True)
class Answered:
    """One head's answers and the truth.

    probability: [n, A]. target: [n], in the unit of the answers' values. values: [A].
    """

    probability: np.ndarray
    target: np.ndarray
    values: tuple[float, ...]

    def corrected(self, by: HeadCalibration) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities [n, A] and values [n] under a calibration."""
        found = by.distribution(Distribution(self.probability, np.ones(len(self.target), bool)))
        return np.asarray(found.probability), np.asarray(by.value(found.expectation(self.values)))


def run(raw, workdir: Workdir) -> dict:
    """Fit ``config.model``'s calibration; writes calibrated_heads.json (for `heads=`) and
    summary.json."""
    job = config.build(CalibrateJob, raw)
    model = load_reward_model(job.model, calibrated=False)
    check_heads(model)
    judged, arrays = collect_stage(workdir, "validation_episodes", job.held_out, job.evaluate)
    facts = {"model": identity(model), "interval": INTERVAL}
    stage = workdir.stage("answers", facts, after=[judged])

    def compute(folder: Path) -> None:
        episodes = list(simulated.episodes(arrays, job.held_out.make(), job.evaluate.stride))
        np.savez(folder / "answers.npz", **answers(model, episodes))

    found = stage.run(compute, lambda folder: dict(np.load(folder / "answers.npz")))
    fitted, summary = {}, {}
    for head in model.heads:
        half = [
            Answered(found[f"{head.name}_probability"][k], found[f"{head.name}_target"][k],
                     tuple(sorted(head.values)))
            for k in (found[f"{head.name}_fit"], ~found[f"{head.name}_fit"])
        ]  # fmt: skip
        fitted[head.name] = fit(half[0], knots=head.name in job.maps)
        summary[head.name] = {
            "temperature": fitted[head.name].temperature,
            "knots": len(fitted[head.name].knots),
            "before": figures(half[1], HeadCalibration()),
            "after": figures(half[1], fitted[head.name]),
        }
    write_heads(
        workdir / FILE, model.heads,
        {"image_size": list(model.image_size) if model.image_size else None,
         calibration.ENTRY: calibration.to_plain(fitted)},
    )  # fmt: skip
    atomic.write_json(workdir / "summary.json", summary)
    manifest.update(workdir.path, hashes=model.facts)
    return summary


def answers(model: RewardModel, episodes: list) -> dict[str, np.ndarray]:
    """HEAD_probability [n, A], HEAD_target [n] and HEAD_fit bool [n] (first half of the episodes)
    for each head; answers that are not valid and comparisons without a direction are left out.
    Answers stand in the order of their values."""
    scale = time_map(episodes)
    parts: dict[str, list[tuple[Any, Any, Any]]] = {head.name: [] for head in model.heads}
    order = {head.name: np.argsort(head.values) for head in model.heads}
    for start in bar(range(0, len(episodes), BATCH), desc="scoring", unit="batch"):
        some = episodes[start : start + BATCH]
        padded = some + [some[-1]] * (BATCH - len(some))
        scores = model.score(
            np.stack([e.frames for e in padded]), [e.task for e in padded], interval=INTERVAL
        )
        for i, episode in enumerate(some):
            target, done = truth(episode, scale)
            change = np.full(len(target), np.nan)
            change[INTERVAL:] = np.sign(target[INTERVAL:] - target[:-INTERVAL])
            change[change == 0] = np.nan  # no direction
            for name, p, t in (
                ("progress", scores.distribution[i], target),
                ("completion", _pair(scores.completion[i]), done),
                ("contrastive", _pair((scores.contrastive[i] + 1) / 2), change),
            ):
                if name not in parts:
                    continue
                if name == "progress":
                    p = p[:, order[name]]
                keep = scores.valid[name][i] & np.isfinite(t)
                fitting = np.full(keep.sum(), start + i < len(episodes) // 2)
                parts[name].append((p[keep], t[keep].astype(np.float32), fitting))
    return {
        f"{name}_{what}": np.concatenate([part[k] for part in found])
        for name, found in parts.items()
        for k, what in enumerate(("probability", "target", "fit"))
    }


def check_heads(model: RewardModel) -> None:
    """UserError where a value does not say how likely the answers were."""
    for head in model.heads:
        wanted = {"completion": [0.0, 1.0], "contrastive": [-1.0, 1.0]}.get(head.name)
        if wanted is not None and sorted(head.values) != wanted:
            raise UserError(
                f"calibrate: head {head.name!r} needs two answers with values {wanted}, "
                f"not {list(head.values)}"
            )


def _pair(p: np.ndarray) -> np.ndarray:
    return np.stack([1 - p, p], -1)


def fit(answered: Answered, knots: bool) -> HeadCalibration:
    """The temperature, and with `knots` the map of the values that it leaves."""
    wanted = np.asarray(objective.target(answered.values, answered.target))
    only = HeadCalibration(fit_temperature(answered.probability, wanted))
    if not knots:
        return only
    return HeadCalibration(
        only.temperature, fit_knots(answered.corrected(only)[1], answered.target)
    )


def figures(answered: Answered, by: HeadCalibration) -> dict[str, float]:
    """How far the answers are from the truth under a calibration."""
    probability, value = answered.corrected(by)
    if len(answered.values) > 2:
        shown = np.asarray(answered.values)
        return {
            "nll": nll(probability, answered.target, shown),
            "crps": crps(probability, answered.target, shown),
            "mae": mae(value, answered.target),
        }
    low, high = answered.values
    label = answered.target > (low + high) / 2
    share = np.clip((value - low) / (high - low), 0.0, 1.0)  # what the value says P is
    return {
        "nll": nll(probability, label.astype(float), np.array([0.0, 1.0])),
        "ece": ece(share, label),
        "brier": brier(share, label),
    }
