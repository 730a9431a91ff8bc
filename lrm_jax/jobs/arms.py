"""Reward arms of refinement: the vision-language model, published judges, the privileged oracles,
and the controls."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.jobs.reward_settings import JUDGE_ARMS, MODEL_ARMS, RewardSettings
from lrm_jax.jobs.signals import (
    HEADS_OF,
    asked_frames,
    rewards_of,
    rewards_of_potential,
)
from lrm_jax.qwen3_vl import init_params
from lrm_jax.rewards import transforms
from lrm_jax.rewards.engine import RewardEngine
from lrm_jax.rewards.judges import Judge
from lrm_jax.rewards.model import RewardModel
from lrm_jax.rl.refine import RewardFn


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
    if settings.arm not in MODEL_ARMS:
        return ()
    names = HEADS_OF[settings.signal]
    extra = settings.bonus > 0 and "completion" not in names
    return (*names, "completion") if extra else names


def judgements(settings: RewardSettings, decisions: int, environments: int) -> int:
    """Questions that an arm puts to its model in an iteration: one for each head and judged frame.

    A comparison counts once, though it is asked in both orders; the first frame has none. A judge
    sees a window of frames, which counts once.
    """
    frames = 1 + decisions // settings.every
    if settings.arm in JUDGE_ARMS:
        return frames * environments
    heads = heads_asked(settings)
    return (frames * len(heads) - ("contrastive" in heads)) * environments


def untrained(model: RewardModel, seed: int = 0) -> RewardModel:
    """The same network, prompts and tokenizer with random weights; no adapters, no calibration."""
    drawn = init_params(model.model, jax.random.key(seed))
    params = jax.tree.map(  # as wide as the model's own, and where they are
        lambda new, old: jax.device_put(new.astype(old.dtype), old.sharding), drawn, model.params
    )
    return dataclasses.replace(
        model, params=params, adapters={}, adapter_folders={}, calibration={}, _engines={}
    )


def make_reward(
    settings: RewardSettings,
    discount: float,
    engine: RewardEngine | None,
    params,
    swap: np.ndarray | None = None,
    *,
    chunk: int = 1,
    judge: Judge | None = None,
    sentences: tuple[str, ...] = (),
    control_hz: float = 1.0,
) -> RewardFn:
    """The reward function of an arm for `rl.refine`; rewards float32 [T,N] of each decision.

    Args:
      engine, params: for arms with the reward model. swap: for "wrong_sentence", int [tasks].
      chunk: control steps of a decision. judge, sentences, control_hz: for the judges' arms.

    The function adds "judgements", how many questions it asked, to the diagnostics.
    """
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
    if arm == "oracle_sparse":

        def sparse(frames, tasks, played):
            ever = jax.lax.cummax(played.privileged.success.astype(jnp.float32), axis=0)
            return jnp.diff(ever, axis=0, prepend=jnp.zeros_like(ever[:1])), {}

        return sparse

    def counted(frames, diagnostics):
        asked = judgements(settings, frames.shape[0] - 1, frames.shape[1])
        return {**diagnostics, "judgements": asked}

    if arm in JUDGE_ARMS:

        def by_judge(frames, tasks, _):
            shown = np.asarray(frames[asked_frames(settings, frames.shape[0])])
            told = [sentences[int(t)] for t in np.asarray(tasks)]
            rate = control_hz / (chunk * settings.every)
            judged = judge.score(np.moveaxis(shown, 0, 1), told, fps=rate)
            rewards, diagnostics = rewards_of_potential(
                settings, jnp.asarray(judged.value.T), jnp.asarray(judged.valid.T), discount,
                decisions=frames.shape[0] - 1, chunk=chunk,
            )  # fmt: skip
            return rewards, counted(frames, diagnostics)

        return by_judge
    names = heads_asked(settings)

    def judged(frames, tasks, played):
        told = jnp.asarray(swap)[tasks] if arm == "wrong_sentence" else tasks
        shown = frames[asked_frames(settings, frames.shape[0])]
        scores = engine.score(params, shown, told, heads=names)
        rewards, diagnostics = rewards_of(
            settings, scores, discount, decisions=frames.shape[0] - 1, chunk=chunk
        )
        if arm == "shuffled":
            deal = dealing(played.actions)
            rewards = rewards[:, deal]
            diagnostics = {**diagnostics, "valid": diagnostics["valid"][:, deal]}
        return rewards, counted(frames, diagnostics)

    return judged


def dealing(actions: jax.Array) -> jax.Array:
    """Whose reward each environment gets, int32 [N]: a random cycle, so that none keeps its own.

    Drawn from the bits of the iteration's actions [T,N,C,A]: another deal in each iteration, and
    the same one where an interrupted iteration is played again.
    """
    bits = jax.lax.bitcast_convert_type(actions.astype(jnp.float32), jnp.uint32)
    order = jax.random.permutation(jax.random.PRNGKey(jnp.sum(bits)), actions.shape[1])
    return jnp.zeros_like(order).at[order].set(jnp.roll(order, -1))
