"""From scores of judged frames to rewards of decisions: the potential, its uncertainty, and the
transforms with what could not be read."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lrm_jax.jobs.reward_settings import RewardSettings
from lrm_jax.rewards import transforms
from lrm_jax.rewards.scores import Scores, tri_of
from lrm_jax.run.errors import UserError

HEADS_OF = {
    "progress": ("progress",),
    "completion": ("completion",),
    "contrastive": ("contrastive",),
    "progress+completion": ("progress", "completion"),
    "tri": ("progress", "completion", "contrastive"),
}


def asked_frames(settings: RewardSettings, frames: int) -> slice:
    """Which of an episode's frames are judged: the first, and every trigger of "hold"."""
    return slice(0, frames, settings.every)


def potential(settings: RewardSettings, scores: Scores) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Phi of the signal, whether it could be read, and its standard deviation, each [...] like the
    scores.

    The deviation is that of the answers' distribution; parts are averaged as if they erred
    together, the cautious end. Of a comparison of +-1 with mean c it is sqrt(1 - c^2).
    """
    parts = HEADS_OF[settings.signal]
    spreads = {name: _spread(scores, name) for name in parts}
    if settings.signal == "tri":
        # The first frame has no earlier one to be compared with: there, and only there, the
        # comparison is the neutral 0.
        first = (jnp.arange(scores.progress.shape[0]) == 0)[:, None]
        comparison = jnp.where(first, 0.0, scores.contrastive)
        phi = tri_of(scores.progress, scores.completion, comparison)
        valid = scores.valid["progress"] & scores.valid["completion"]
        valid = valid & (first | scores.valid["contrastive"])
        spreads["contrastive"] = jnp.where(first, 1.0, spreads["contrastive"]) / 2
    else:
        phi = sum(getattr(scores, n) for n in parts) / len(parts)
        valid = jnp.stack([scores.valid[n] for n in parts]).all(0)
    return phi, valid, sum(spreads.values()) / len(parts)


def _spread(scores: Scores, name: str) -> jax.Array:
    if name == "progress":
        levels = jnp.linspace(0.0, 1.0, scores.distribution.shape[-1])
        mean = jnp.sum(scores.distribution * levels, -1)
        around = jnp.square(levels - mean[..., None])
        return jnp.sqrt(jnp.sum(scores.distribution * around, -1))
    if name == "completion":
        return jnp.sqrt(jnp.clip(scores.completion * (1.0 - scores.completion), 0.0, None))
    return jnp.sqrt(jnp.clip(1.0 - jnp.square(scores.contrastive), 0.0, None))


def rewards_of(
    settings: RewardSettings,
    scores: Scores,
    discount: float,
    *,
    decisions: int | None = None,
    chunk: int = 1,
) -> tuple[jax.Array, dict[str, Any]]:
    """Rewards float32 [T,N] and diagnostics from the scores of judged frames.

    Args:
      scores: [J,N] of the frames `asked_frames`.
      decisions: T. None: every frame has been judged, J = T + 1, whatever the transform reads.
      chunk: control steps of a decision.
    """
    phi, valid, spread = potential(settings, scores)
    lower = phi - settings.uncertainty * spread
    rewards, diagnostics = rewards_of_potential(
        settings, lower, valid, discount, decisions=decisions, chunk=chunk
    )
    ok = diagnostics.pop("valid")
    if settings.bonus > 0:
        readable = _places(settings, scores.valid["completion"], True, decisions)
        completion = _places(settings, scores.completion, 0.0, decisions)
        asked = (jnp.arange(len(completion)) % settings.every == 0)[:, None]
        paid = transforms.completion_bonus(completion, readable & asked, settings.bonus)
        rewards, ok = rewards + paid, ok & readable[1:]
    # Only what can be read tells how sure the model is.
    sure = jnp.where(valid, spread, 0.0)[1:].sum() / jnp.maximum(valid[1:].sum(), 1)
    diagnostics |= {"valid": ok, "uncertainty": sure, "final_" + settings.signal: _last(phi)}
    for name in ("progress", "completion"):
        if name in HEADS_OF[settings.signal]:
            diagnostics[f"final_{name}"] = _last(getattr(scores, name))
    return rewards.astype(jnp.float32), diagnostics


def rewards_of_potential(
    settings: RewardSettings,
    phi: jax.Array,
    valid: jax.Array,
    discount: float,
    *,
    decisions: int | None = None,
    chunk: int = 1,
) -> tuple[jax.Array, dict[str, Any]]:
    """Rewards float32 [T,N] of a potential [J,N] of the judged frames, "valid" bool [T,N] and
    "unreadable", how many judged frames after the first could not be read."""
    # Frames that nobody judged are read by no transform below: triggers are judged frames.
    full = _places(settings, phi, 0.0, decisions)
    known = _places(settings, valid, True, decisions)
    if settings.transform == "delta":
        if settings.signal == "contrastive":
            # Already a difference of potentials: each comparison is the reward of its decision.
            rewards, ok = jnp.where(known, full, 0.0)[1:], known[1:]
        else:
            rewards, _ = transforms.delta(full, known, discount)
            ok = known[1:] & known[:-1]
    else:
        rewards = _held(settings, full[1:], known[1:], chunk)
        # A step whose trigger could not be read repeats an older score (or nothing): no reward.
        failed = _held(settings, 1.0 - known[1:], jnp.ones_like(known[1:]), chunk)
        ok = failed == 0.0
    found = {"valid": ok, "unreadable": jnp.sum(~valid[1:])}
    return rewards.astype(jnp.float32), found


def _held(settings: RewardSettings, scores, valid, chunk: int) -> jax.Array:
    """What a decision earns of the score held, [T,N]; with per_step summed over its control steps:
    a trigger's score is known after its decision's last step, so the others earn the older one."""
    if not settings.per_step:
        return transforms.hold(scores, valid, settings.every)[0]
    steps = jnp.repeat(scores, chunk, axis=0), jnp.repeat(valid, chunk, axis=0)
    rewards, _ = transforms.hold(*steps, settings.every * chunk)
    return rewards.reshape(-1, chunk, *rewards.shape[1:]).sum(1)


def _places(settings: RewardSettings, judged: jax.Array, fill, decisions: int | None) -> jax.Array:
    """Values of the judged frames [J,...] in their places among all frames [T+1,...]."""
    if decisions is None or settings.every == 1:
        return judged
    if len(judged) != 1 + decisions // settings.every:
        raise UserError(
            f"{len(judged)} judged frames for {decisions} decisions, one every {settings.every}"
        )
    shape = (decisions + 1, *judged.shape[1:])
    return jnp.full(shape, fill, judged.dtype).at[:: settings.every].set(judged)


def _last(values: jax.Array) -> jax.Array:
    """Mean over environments of the last judged frame's value."""
    return jnp.nanmean(values[-1])
