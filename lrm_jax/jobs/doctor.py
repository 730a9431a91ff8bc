"""What the door `doctor` does: checks of a reward model before anyone trusts it.

Every check is a function of a judge (frames and a sentence to scores) and a short video in which
the task is done at the end. It gives one finding: a number, the bar for it, and what it means. None
of them proves that a model is right (`evaluation/open_loop.py` measures that); each catches a fault
that has made real reward models useless without an error.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lrm_jax.evaluation import metrics
from lrm_jax.rewards.engine import HEADS
from lrm_jax.rewards.model import NANO, NANO_FOLDER, RewardModel
from lrm_jax.rewards.scores import NAMES, Scores
from lrm_jax.run.errors import UserError

SAMPLE = NANO_FOLDER / "sample.npz"
Judge = Callable[..., Scores]  # (frames uint8 [T,H,W,3] or [B,T,H,W,3], task(s)) -> Scores


class Finding(NamedTuple):
    """status: "ok", "fault", "warning" or "skipped". value, bar: what was measured and what it is
    held against (None where skipped). says: one sentence."""

    check: str
    status: str
    value: float | None
    bar: float | None
    says: str


@dataclasses.dataclass(frozen=True)
class Sample:
    """frames: uint8 [T, H, W, 3] of a task that is done at the end. task: its sentence; wrong:
    another sentence about the same scene."""

    frames: np.ndarray
    task: str
    wrong: str


def read_sample() -> Sample:
    """The episode of held-out colours that ships with lrm-nano."""
    with np.load(SAMPLE) as stored:
        return Sample(stored["frames"], str(stored["task"]), str(stored["wrong"]))


def examine(
    judge: Judge,
    sample: Sample,
    *,
    base: Judge | None = None,
    adapters: Sequence[str] = (),
    rounded: Judge | None = None,
    domain: np.ndarray | None = None,
) -> list[Finding]:
    """All checks of a judge.

    Args:
      judge: the model, at full precision.
      sample: what it is asked about.
      base: the model without adapters; adapters: the heads that have one.
      rounded: the model in bfloat16.
      domain: uint8 [F, H, W, 3], pictures like those the model was trained on, if it knows only
        such.
    """
    scores = judge(sample.frames, sample.task)
    found = [*_adapters(judge, base, adapters, sample, scores), *_constant(scores)]
    found += [
        _invalid(scores),
        _antisymmetry(judge, sample, scores),
        _wrong_sentence(judge, sample, scores),
        _blank(judge, sample),
        _turned(judge, sample, scores, "channel order", lambda f: f[..., ::-1], "RGB", "BGR"),
        _turned(judge, sample, scores, "orientation", lambda f: f[:, ::-1], "upright", "flipped"),
        _batch(judge, sample, scores),
        _rounding(rounded, sample, scores),
        _domain(sample, domain),
    ]
    return found


def examine_model(
    model: RewardModel, sample: Sample, rounded: RewardModel | None = None
) -> list[Finding]:
    """`examine` for a loaded model; lrm-nano's frames are compared with its own scenes.

    Heads that show a goal are shown the sample's last frame.
    """
    plain = dataclasses.replace(model, adapters={}, adapter_folders={}, _engines={})
    shows_goal = any("goal" in head.images for head in model.heads)
    goal = {"goal": sample.frames[-1]} if shows_goal else {}
    return examine(
        functools.partial(model.score, **goal),
        sample,
        base=functools.partial(plain.score, **goal),
        adapters=tuple(model.adapters),
        rounded=None if rounded is None else functools.partial(rounded.score, **goal),
        domain=read_sample().frames if model.name == NANO else None,
    )


def table(found: Sequence[Finding]) -> str:
    """The findings as lines of text."""
    rows = [("check", "status", "value", "bar", "")]
    for f in found:
        numbers = ("" if v is None else f"{v:.3g}" for v in (f.value, f.bar))
        rows.append((f.check, f.status, *numbers, f.says))
    widths = [max(len(r[i]) for r in rows) for i in range(4)]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=False)) + "  " + r[4] for r in rows
    )


def _judged(check: str, ok: bool, value: float, bar: float, good: str, bad: str) -> Finding:
    value = float(value)
    return Finding(check, "ok" if ok else "fault", value, bar, good if ok else bad)


def _values(scores: Scores, name: str) -> np.ndarray:
    return np.asarray(getattr(scores, name), np.float64)


def _apart(a: Scores, b: Scores, names: Sequence[str] = NAMES) -> float:
    """The largest difference of two sets of scores; infinite where only one of them is valid."""
    worst = 0.0
    for name in names:
        x, y = _values(a, name), _values(b, name)
        if (np.isnan(x) != np.isnan(y)).any():
            return np.inf
        worst = max(worst, float(np.nanmax(np.abs(x - y), initial=0.0)))
    return worst


def _adapters(judge, base, adapters, sample, scores) -> list[Finding]:
    if not adapters or base is None:
        return [Finding("adapters", "skipped", None, None, "the model has none")]
    plain = base(sample.frames, sample.task)
    found = []
    for head in adapters:
        moved = _apart(scores, plain, (head,))
        found.append(
            _judged(
                f"adapter {head}", moved > 1e-4, moved, 1e-4,
                "it changes its head's answers",
                "its head answers as the base does: the adapter does nothing",
            )
        )  # fmt: skip
    return found


def _constant(scores: Scores) -> list[Finding]:
    found = []
    for name in HEADS:
        values = _values(scores, name)
        values = values[np.isfinite(values)]
        spread = float(np.ptp(values)) if len(values) else 0.0
        found.append(
            _judged(
                f"constant {name}", spread > 0.02, spread, 0.02,
                "its answers differ over the video",
                "it gives the same answer to every frame",
            )
        )  # fmt: skip
    return found


def _invalid(scores: Scores) -> Finding:
    # Contrastive has nothing to compare the first frame with.
    count = sum(int(np.isnan(_values(scores, n)).sum()) for n in ("progress", "completion"))
    count += int(np.isnan(_values(scores, "contrastive")[1:]).sum())
    return _judged("valid scores", count == 0, count, 0, "none is invalid", "some are invalid")


def _antisymmetry(judge, sample, scores) -> Finding:
    back = judge(sample.frames[::-1], sample.task)
    there, again = _values(scores, "contrastive")[1:], _values(back, "contrastive")[1:][::-1]
    off = np.abs(there + again)
    worst = float(off.max()) if np.isfinite(off).all() else np.inf
    return _judged(
        "antisymmetry", worst <= 1e-4, worst, 1e-4,
        "a video played backwards turns every comparison over",
        "a comparison depends on the order in which its frames are shown",
    )  # fmt: skip


def _wrong_sentence(judge, sample, scores) -> Finding:
    wrong = judge(sample.frames, sample.wrong)
    gap = _values(scores, "progress")[-1] - _values(wrong, "progress")[-1]
    return _judged(
        "wrong sentence", gap >= 0.1, gap, 0.1,
        "final progress is lower under a sentence that was not done",
        "it does not listen: another sentence is as done as the true one",
    )  # fmt: skip


def _blank(judge, sample) -> Finding:
    shades = [np.full_like(sample.frames[:2], level) for level in (0, 128, 255)]
    done = max(float(_values(judge(f, sample.task), "completion").max()) for f in shades)
    return _judged(
        "blank frame", done < 0.5, done, 0.5,
        "an empty picture is not taken for a finished task",
        "an empty picture counts as a finished task",
    )  # fmt: skip


def _turned(judge, sample, scores, check, turn, as_given, other) -> Finding:
    """Frames as they came should make more sense than turned ones: progress rises with time."""
    changed = judge(np.ascontiguousarray(turn(sample.frames)), sample.task)
    if _apart(scores, changed, ("progress", "completion")) <= 1e-3:
        says = f"{as_given} or {other} makes no difference to it"
        return Finding(check, "fault", 0.0, 1e-3, says)

    def sense(scores):
        values = _values(scores, "progress")
        values = values[np.isfinite(values)]  # invalid ones have a check of their own
        if not len(values):
            return -np.inf
        return float(metrics.voc(values, undefined="zero")) + values[-1]

    gain = sense(scores) - sense(changed)
    return _judged(
        check, gain > 0, gain, 0.0,
        f"progress makes more sense {as_given} than {other}",
        f"progress makes more sense {other}: are the frames {as_given}?",
    )  # fmt: skip


def _batch(judge, sample, scores) -> Finding:
    frames = sample.frames
    company = np.stack([frames[::-1], frames, np.roll(frames, 3, axis=0)])
    together = judge(company, [sample.wrong, sample.task, sample.task])
    own = dataclasses.replace(
        together,
        **{n: np.asarray(getattr(together, n))[1] for n in NAMES},
        valid={n: np.asarray(v)[1] for n, v in together.valid.items()},
    )
    off = _apart(scores, own)
    return _judged(
        "batch invariance", off <= 1e-4, off, 1e-4,
        "a video is judged alike alone and in company",
        "a video's scores depend on what else is in the batch",
    )  # fmt: skip


def _rounding(rounded, sample, scores) -> Finding:
    if rounded is None:
        return Finding("bfloat16", "skipped", None, None, "it was not loaded in bfloat16")
    off = _apart(scores, rounded(sample.frames, sample.task), ("progress", "completion"))
    return _judged(
        "bfloat16", off <= 0.15, off, 0.15,
        "bfloat16 gives nearly the same scores",
        "scores move with the precision: stay with float32",
    )  # fmt: skip


def histogram(frames: np.ndarray) -> np.ndarray:
    """Shares of 4x4x4 colour cells, float64 [F, 64], of frames uint8 [F, H, W, 3]."""
    cells = (frames.astype(np.int64) // 64) @ np.array([16, 4, 1])
    return np.stack([np.bincount(c.ravel(), minlength=64) / c.size for c in cells])


def _domain(sample, domain) -> Finding:
    """Half of a frame's pixels in colours that no known picture has so many of: another world."""
    if domain is None:
        return Finding("domain", "skipped", None, None, "the model is not tied to known scenes")
    ours, known = histogram(sample.frames), histogram(domain)
    apart = np.abs(ours[:, None] - known[None]).sum(-1).min(1) / 2  # total variation
    far = float(np.median(apart))
    if far <= 0.5:
        return Finding("domain", "ok", far, 0.5, "the colours are those of the scenes it knows")
    says = "these pictures look unlike the simulated scenes that lrm-nano knows: do not trust it"
    return Finding("domain", "warning", far, 0.5, says)


def as_json(found: Sequence[Finding], facts: dict[str, Any]) -> dict[str, Any]:
    """The content of doctor.json."""
    return {**facts, "healthy": healthy(found), "findings": [f._asdict() for f in found]}


def healthy(found: Sequence[Finding]) -> bool:
    """Whether no check found a fault (a warning is none)."""
    return all(f.status != "fault" for f in found)


def need_sample(frames: np.ndarray, task: str | None, wrong: str | None) -> Sample:
    """A user's own sample; UserError where it is too short or a sentence is missing."""
    if not task or not wrong:
        raise UserError("--frames needs --task, and --wrong_task: a sentence that was not done")
    if len(frames) < 4:
        raise UserError(f"--frames: {len(frames)} frames are too few to judge by; give at least 4")
    return Sample(frames, task, wrong)
