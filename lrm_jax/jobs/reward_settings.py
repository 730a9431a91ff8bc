"""Where the reward of refinement comes from: the arms, and their settings."""

import dataclasses
from typing import Literal

from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError

MODEL_ARMS = ("vlm", "wrong_sentence", "shuffled", "untrained")
JUDGE_ARMS = ("roboreward", "robometer", "topreward")
ORACLES = ("oracle", "oracle_sparse")
# Whoever learns from one of these knows nothing of the task: its gain must be no gain.
CONTROLS = ("wrong_sentence", "shuffled", "untrained", "constant", "time_ramp")
ARMS = (*MODEL_ARMS, "constant", "time_ramp", *ORACLES, *JUDGE_ARMS)


@dataclasses.dataclass(frozen=True)
class RewardSettings:
    """Where the reward of refinement comes from.

    arm: "vlm"; a published judge, "roboreward", "robometer" or "topreward"; an oracle, privileged:
    "oracle" (gain of the simulator's dense progress) or "oracle_sparse" (1 in the decision that
    first succeeds); or a control: "wrong_sentence" (the same model told another sentence of the
    scene), "shuffled" (its rewards, dealt to other environments of the iteration), "untrained" (the
    same network with random weights), "constant" (1 a decision), "time_ramp" (t / T).
    model: a reward model's name or folder; judge: a judge's folder. signal: which scores make the
    potential Phi; sums are means of their parts (judges have one score).
    transform: "delta", gamma Phi(s') - Phi(s); "hold", the paper's, every ``interval`` decisions,
    where only the frames of triggers are judged; "dense", the score itself.
    per_step: with "hold" and "dense", a decision earns the sum over its control steps of the score
    held in each, as the paper's chunk rewards; else one score.
    bonus: paid once an episode when completion reaches one half (needs completion among the
    scores). uncertainty: how many standard deviations of the answer distributions Phi lies below
    the scores (a lower confidence bound); 0 is the scores themselves.
    """

    arm: Literal[
        "vlm", "wrong_sentence", "shuffled", "untrained", "constant", "time_ramp",
        "oracle", "oracle_sparse", "roboreward", "robometer", "topreward",
    ] = "vlm"  # fmt: skip
    model: str = "lrm-nano"
    judge: str = ""
    signal: Literal["progress", "completion", "contrastive", "progress+completion", "tri"] = (
        "progress+completion"
    )
    transform: Literal["delta", "hold", "dense"] = "delta"
    interval: int = field(1, ge=1)
    per_step: bool = False
    bonus: float = field(0.0, ge=0)
    uncertainty: float = field(0.0, ge=0)

    def validate(self) -> None:
        """UserError for settings that cannot be together."""
        if self.arm in JUDGE_ARMS:
            if not self.judge:
                raise UserError(f"arm {self.arm!r} needs judge, a folder with its checkpoint")
            if self.bonus > 0 or self.uncertainty > 0:
                raise UserError(f"arm {self.arm!r} has one score: bonus and uncertainty must be 0")
        if self.per_step and self.transform == "delta":
            raise UserError("per_step needs transform 'hold' or 'dense'")

    @property
    def every(self) -> int:
        """Decisions from one judged frame to the next."""
        return self.interval if self.transform == "hold" else 1
