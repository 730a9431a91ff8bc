"""TOPReward: how likely a plain Qwen3-VL finds it that the task was done, log P("True").

Published definition (the released LRM server's reading of github.com/TOPReward/TOPReward): the
video, a text that claims it shows the task being completed and asks whether that is so, and l, the
log-probability of the token "True" after it; nothing is generated. The answer stands in the user's
turn, without a generation prompt. TOPReward itself rescales by the least and the largest l of a
trajectory's windows, in hindsight (`by_trajectory`); a reward while the robot acts needs a fixed
map, clip((l + 25) / 20, 0, 1), whose bounds bracket what was seen with the 8B model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from lrm_jax.rewards.judges.judge import Judged, VideoJudge, Window, asked, masked
from lrm_jax.rewards.judges.paths import Path, Rows, Writer
from lrm_jax.run.errors import UserError

ANSWER = " True"


@dataclasses.dataclass(frozen=True, eq=False)
class TOPReward(VideoJudge):
    """`Judged.raw` is l, nats; the value is (l - low) / (high - low) within [0, 1].

    An answer of several tokens counts as their product (with Qwen's vocabulary it is one).
    """

    max_frames: int = 15
    fps: float = 2.0
    low: float = -25.0
    high: float = -5.0

    name = "topreward"

    def __post_init__(self):
        super().__post_init__()
        if not self.low < self.high:
            raise UserError(f"topreward: low is {self.low}, it must be below high, {self.high}")

    def paths_of(
        self, writer: Writer, window: Window, numbers: list[int], fps: float
    ) -> list[Path]:
        parts, before, _ = self.parts_of(window, numbers, fps)
        ids, starts = self.tokenizer.encode(before + ANSWER)
        ahead = sum(start < len(before) for start in starts)
        answer = ids[ahead:]
        path = writer.path(parts, ids[:-1])
        return [asked(path, len(path.tokens) - len(answer) + 1, [answer], 0)]

    def judge_rows(self, rows: Rows, features: Any, paths: Sequence[Sequence[Path]]) -> Judged:
        raw = self._log_probabilities(rows, features)[:, 0]
        valid = np.isfinite(raw)
        scaled = np.clip((raw - self.low) / (self.high - self.low), 0.0, 1.0)
        return Judged(masked(scaled, valid), valid, masked(raw, valid))


def by_trajectory(raw: np.ndarray) -> np.ndarray:
    """TOPReward's own scale: raw [..., T] over each trajectory's range, float32 in [0, 1].

    It needs the whole trajectory, so it judges in hindsight. NaN where raw is, and where a
    trajectory has no range.
    """
    raw = np.asarray(raw, np.float32)
    finite = np.isfinite(raw)
    low = np.min(np.where(finite, raw, np.inf), -1, keepdims=True)
    span = np.max(np.where(finite, raw, -np.inf), -1, keepdims=True) - low
    return masked((raw - low) / np.where(span > 0, span, np.nan), finite)
