"""RoboReward: a discrete score of a video, 1 to 5.

Published definition (`teetone/RoboReward-8B`, a Qwen3-VL-8B, as the released LRM server asks it):
the video, a rubric of five levels for its final state, the answer "ANSWER: n" by greedy generation,
value (n - 1) / 4. Here the five answers are closed: behind "ANSWER: " the probabilities of the five
are read from one forward. `expectation=False`, the published scale, gives the likeliest score;
True the mean of (n - 1) / 4 under the distribution (our choice for a smoother reward).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from lrm_jax.rewards import scoring
from lrm_jax.rewards.judges.judge import Judged, VideoJudge, Window, asked, masked
from lrm_jax.rewards.judges.paths import Path, Rows, Writer
from lrm_jax.rewards.layout import answer_tokens
from lrm_jax.run.errors import UserError

ANSWERS = ("1", "2", "3", "4", "5")


@dataclasses.dataclass(frozen=True, eq=False)
class RoboReward(VideoJudge):
    """`Judged.raw` is the score, 1 to 5 (not whole with `expectation`); the value (raw - 1) / 4.
    `Judged.distribution` is over the five scores."""

    max_frames: int = 16
    fps: float = 1.0
    expectation: bool = False

    name = "roboreward"

    def paths_of(
        self, writer: Writer, window: Window, numbers: list[int], fps: float
    ) -> list[Path]:
        parts, before, closing = self.parts_of(window, numbers, fps)
        try:
            forced, tails = answer_tokens(self.tokenizer, before, ANSWERS, closing)
        except UserError as error:
            raise UserError(f"roboreward: {error}") from error
        made = []
        for i, tail in enumerate(tails):
            path = writer.path(parts, [*forced, *tail[:-1]])
            made.append(asked(path, len(path.tokens) - len(tail) + 1, tails, i))
        return made

    def judge_rows(self, rows: Rows, features: Any, paths: Sequence[Sequence[Path]]) -> Judged:
        found = self._log_probabilities(rows, features).reshape(len(paths), len(ANSWERS))
        answered = scoring.normalise(found)
        p, valid = np.asarray(answered.probability), np.asarray(answered.valid)
        scores = np.arange(1, 1 + len(ANSWERS), dtype=np.float32)
        raw = p @ scores if self.expectation else scores[np.argmax(np.nan_to_num(p), -1)]
        raw = masked(raw, valid)
        return Judged((raw - 1) / (len(ANSWERS) - 1), valid, raw, p)
