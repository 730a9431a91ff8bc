"""Reward arms of refinement: the vision-language model, the privileged oracle, and the controls."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np

from lrm_jax.rewards import transforms
from lrm_jax.rewards.engine import RewardEngine
from lrm_jax.rewards.scores import tri_of
from lrm_jax.rl.refine import RewardFn
from lrm_jax.run.config import field

ARMS = ("vlm", "wrong_sentence", "constant", "time_ramp", "oracle")
HEADS_OF = {
    "progress": ("progress",),
    "completion": ("completion",),
    "contrastive": ("contrastive",),
    "progress+completion": ("progress", "completion"),
    "tri": ("progress", "completion", "contrastive"),
}


@dataclasses.dataclass(frozen=True)
class RewardSettings:
    """Where the reward of refinement comes from.

    arm: "vlm"; or a control: "wrong_sentence" (the same model told another sentence of the scene),
    "constant" (1 a decision), "time_ramp" (t / T); or "oracle", the simulator's dense progress.
    model: a reward model's name or folder. signal: which scores make the potential Phi; sums are
    means of their parts. transform: "delta", gamma Phi(s') - Phi(s); "hold", the paper's, every
    ``interval`` decisions; "dense", the score itself. bonus: paid once an episode when completion
    reaches one half (needs completion among the scores).
    """

    arm: Literal["vlm", "wrong_sentence", "constant", "time_ramp", "oracle"] = "vlm"
    model: str = "lrm-nano"
    signal: Literal["progress", "completion", "contrastive", "progress+completion", "tri"] = (
        "progress+completion"
    )
    transform: Literal["delta", "hold", "dense"] = "delta"
    interval: int = field(1, ge=1)
    bonus: float = field(0.0, ge=0)


def other_sentences(instructions: tuple[str, ...], tasks: np.ndarray) -> np.ndarray:
    """For every task id another one among ``tasks`` that shares as few words with it as any.

    ``tasks``: int [K], the ids that occur. Returns int32 [len(instructions)], identity elsewhere.
    """
    swap = np.arange(len(instructions), dtype=np.int32)
    words = {int(t): set(instructions[int(t)].split()) for t in tasks}
    for t in words:
        others = [o for o in words if o != t]
        if others:
            swap[t] = min(others, key=lambda o: (len(words[t] & words[o]), o))
    return swap


def heads_asked(settings: RewardSettings) -> tuple[str, ...]:
    """The heads that an arm asks about every frame; none for arms without the model."""
    if settings.arm not in ("vlm", "wrong_sentence"):
        return ()
    names = HEADS_OF[settings.signal]
    extra = settings.bonus > 0 and "completion" not in names
    return (*names, "completion") if extra else names


def make_reward(
    settings: RewardSettings,
    discount: float,
    engine: RewardEngine | None,
    params,
    swap: np.ndarray | None = None,
) -> RewardFn:
    """The reward function of an arm for `rl.refine`; rewards float32 [T,N] of each decision."""
    arm = settings.arm
    if arm == "constant":
        return lambda frames, tasks, _: (jnp.ones((frames.shape[0] - 1, frames.shape[1])), {})
    if arm == "time_ramp":

        def ramp(frames, tasks, _):
            steps = frames.shape[0] - 1
            rise = jnp.arange(1, steps + 1, dtype=jnp.float32) / steps
            return jnp.broadcast_to(rise[:, None], (steps, frames.shape[1])), {}

        return ramp
    if arm == "oracle":

        def oracle(frames, tasks, played):
            phi = played.privileged.progress
            return transforms.delta(phi, jnp.isfinite(phi), discount)[0], {}

        return oracle
    names = heads_asked(settings)

    def judged(frames, tasks, _):
        told = jnp.asarray(swap)[tasks] if arm == "wrong_sentence" else tasks
        scores = engine.score(params, frames, told, heads=names)
        return rewards_of(settings, scores, discount)

    return judged


def rewards_of(settings: RewardSettings, scores, discount: float):
    """Rewards [T,N] of scores of T + 1 frames [T+1,N], and diagnostics."""
    parts = HEADS_OF[settings.signal]
    if settings.signal == "tri":
        # The first frame has no earlier one to be compared with: there, and only there, the
        # comparison is the neutral 0.
        first = (jnp.arange(scores.progress.shape[0]) == 0)[:, None]
        comparison = jnp.where(first, 0.0, scores.contrastive)
        phi = tri_of(scores.progress, scores.completion, comparison)
        valid = scores.valid["progress"] & scores.valid["completion"]
        valid = valid & (first | scores.valid["contrastive"])
    else:
        phi = sum(getattr(scores, n) for n in parts) / len(parts)
        valid = jnp.stack([scores.valid[n] for n in parts]).all(0)
    if settings.transform == "delta":
        if settings.signal == "contrastive":
            # Already a difference of potentials: each comparison is the reward of its decision.
            rewards, ok = jnp.where(valid, phi, 0.0)[1:], valid[1:]
        else:
            rewards, _ = transforms.delta(phi, valid, discount)
            ok = valid[1:] & valid[:-1]
    else:
        interval = settings.interval if settings.transform == "hold" else 1
        rewards, _ = transforms.hold(phi[1:], valid[1:], interval)
        # A step whose trigger could not be read repeats an older score (or nothing): no reward.
        failed, _ = transforms.hold(1.0 - valid[1:], jnp.ones_like(valid[1:]), interval)
        ok = failed == 0.0
    if settings.bonus > 0:
        readable = scores.valid["completion"]
        rewards = rewards + transforms.completion_bonus(scores.completion, readable, settings.bonus)
        ok = ok & readable[1:]
    diagnostics = {
        "valid": ok,
        "final_" + settings.signal: jnp.nanmean(phi[-1]),
        "unreadable": jnp.sum(~valid[1:]),
    }
    for name in ("progress", "completion"):
        if name in parts:
            diagnostics[f"final_{name}"] = jnp.nanmean(getattr(scores, name)[-1])
    return rewards.astype(jnp.float32), diagnostics
