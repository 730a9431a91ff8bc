"""Behaviour cloning: the policy's chunk follows the demonstrated one.

With the Gaussian head the chunk mean regresses on it. The loss is a Huber loss with a small delta,
averaged over the chunk steps inside the episode and the action dimensions. Demonstrations hesitate
and tremble; a loss that is linear for large errors follows the median of what was done and shrugs
off pauses, while its quadratic bottom gives small motions a smooth gradient. A Gaussian likelihood
would tie the mean's learning rate to the learned std (dimensions that fit early get ever larger
gradients), and its std describes how unpredictable the expert was, which is not how widely a policy
should explore; so the std is set afterwards, from the validation residuals, moved into a range.

With the flow head the loss is that of conditional flow matching (flow.py): the squared error of the
velocity at random times on random lines from noise to the demonstrated chunk. The validation loss
draws the same lines in every epoch. Residuals, which the std is set from, are those of noise-free
decisions. The network of the noise is left as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lrm_jax.policies import augment, flow
from lrm_jax.policies.demonstrations import Demonstrations, proprio_statistics, split_by_episode
from lrm_jax.policies.networks import Policy, Variables, raw_std, with_proprio_statistics
from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError, did_you_mean

CLONED = ("encoder", "actor")  # the critic learns during refinement
KEPT = ("last", "best")


@dataclass(frozen=True)
class CloneConfig:
    """Settings of behaviour cloning.

    Attributes:
      epochs, batch: passes over the demonstrations; samples per step.
      lr, warmup, weight_decay, grad_clip: AdamW with linear warm-up (share of all steps) and cosine
        decay to zero; decay acts on matrices only; clip of the global gradient norm.
      huber_delta: where the loss turns from quadratic to linear, in action units.
      validation: share of the episodes held out. 0 trains on all; residuals are then of training.
      shift, jitter: augmentation, in pixels and as a share (see augment.py). The camera is fixed
        and proprioception is not shifted along, so more than a pixel or two teaches wrong geometry.
      waypoint_weight: of the loss on the encoder's waypoints (in standard deviations, Huber).
      ema: decay per step of the averaged parameters that are returned; None returns the last.
      until: stop after the first epoch in which the policy, by the caller's `trial`, succeeds in so
        large a share of episodes, at the latest after `epochs`; None runs all. The learning rate
        then stays where it is after its warm-up, for nobody knows when the end is near (average
        with `ema`).
        trial_episodes, trial_every: of how many episodes, and after every how many epochs.
      keep: which epoch's parameters (or averages) are returned: the "last", or the "best" by
        validation loss, which needs validation > 0.
      flow_times: distribution of the training times of the flow head, "uniform" or "beta" (pi0's,
        see flow.py); flow_draws: lines for each sample and step. The expert is cheap beside the
        encoder, which sees a sample once.
      std_scale, std_low, std_high: exploration std = scale * RMS validation residual of a
        dimension, moved into [low, high].
    """

    epochs: int = field(30, ge=1)
    batch: int = field(128, ge=1)
    lr: float = field(1e-3, gt=0)
    warmup: float = field(0.05, ge=0, lt=1)
    weight_decay: float = field(1e-4, ge=0)
    grad_clip: float = field(1.0, gt=0)
    huber_delta: float = field(0.5, gt=0)
    validation: float = field(0.1, ge=0, lt=1)
    shift: int = field(1, ge=0)
    jitter: float = field(0.08, ge=0, lt=1)
    waypoint_weight: float = field(0.3, ge=0)
    ema: float | None = field(None, gt=0, lt=1)
    std_scale: float = field(1.0, gt=0)
    std_low: float = field(0.06, gt=0)
    std_high: float = field(0.2, gt=0)
    until: float | None = field(None, gt=0, le=1)
    trial_episodes: int = field(256, ge=1)
    trial_every: int = field(1, ge=1)
    keep: str = field("last", choices=KEPT)
    flow_times: str = field("uniform", choices=flow.TIMES)
    flow_draws: int = field(4, ge=1)

    def __post_init__(self):
        for name, known in (("keep", KEPT), ("flow_times", flow.TIMES)):
            if getattr(self, name) not in known:
                raise UserError(f"clone {name}: {did_you_mean(getattr(self, name), known)}")
        if self.keep == "best" and self.validation == 0:
            raise UserError('clone keep="best" needs held-out episodes: validation above 0')
        if self.keep == "best" and self.until is not None:
            raise UserError('clone until=... ends with the epoch that it stops in: keep="last"')


@flax.struct.dataclass
class CloneState:
    """What training goes on from: params and average {encoder, actor}, optimiser, key, epoch.

    best, best_loss, best_epoch: the parameters of the least validation loss so far (keep="best").
    """

    params: Any
    average: Any
    optimiser: Any
    rng: jax.Array
    epoch: jax.Array
    best: Any = None
    best_loss: jax.Array | None = None
    best_epoch: jax.Array | None = None


def masked_huber(
    prediction: jax.Array, target: jax.Array, mask: jax.Array, delta: float
) -> jax.Array:
    """Mean Huber loss of chunks [B,C,A] over the steps where mask [B,C]; float []."""
    losses = optax.losses.huber_loss(prediction, target, delta=delta).mean(-1)
    return jnp.sum(losses * mask) / jnp.maximum(mask.sum(), 1)


def optimiser(config: CloneConfig, total_steps: int) -> optax.GradientTransformation:
    """AdamW after clipping the gradient norm; over total_steps a warm-up and a cosine decay, or
    with `until` a warm-up alone."""
    warmup = max(1, round(config.warmup * total_steps))
    if config.until is None:
        schedule = optax.warmup_cosine_decay_schedule(0.0, config.lr, warmup, max(total_steps, 2))
    else:
        schedule = optax.warmup_constant_schedule(0.0, config.lr, warmup)
    decayed = partial(jax.tree.map, lambda p: p.ndim >= 2)
    return optax.chain(
        optax.clip_by_global_norm(config.grad_clip),
        optax.adamw(schedule, weight_decay=config.weight_decay, mask=decayed),
    )


def masked_velocity_error(
    predicted: jax.Array, velocity: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Squared errors of velocities [B,K,C,A], averaged over their K lines and summed over the steps
    where mask [B,C]: float [A], and the number of those steps."""
    square = jnp.square(predicted - velocity).mean(1)
    return jnp.einsum("bca,bc->a", square, mask.astype(square.dtype)), mask.sum()


def _merged(variables: Variables, params: Any) -> Variables:
    return {**variables, "params": {**variables["params"], **params}}


def _waypoint_loss(policy: Policy, merged: Variables, features: Any, data: Demonstrations) -> Any:
    """Loss of the predicted waypoints float [] (0 without any)."""
    if not policy.config.waypoints:
        return jnp.zeros(())
    predicted = policy.apply(merged, features, method="predicted_waypoints")
    norm = merged["norm"]
    truth = (data.waypoints - norm["mean"][:3]) / norm["std"][:3]
    known = jnp.isfinite(truth)
    error = jnp.where(known, predicted - jnp.where(known, truth, 0.0), 0.0)
    return optax.losses.huber_loss(error, delta=0.5).sum() / jnp.maximum(known.sum(), 1)


def _velocity_error(
    policy: Policy, merged: Variables, features: Any, data: Demonstrations, mask: jax.Array,
    config: CloneConfig, rng: jax.Array,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """masked_velocity_error on config.flow_draws random lines to each demonstrated chunk."""
    times_rng, start_rng = jax.random.split(rng)
    shape = (len(data), config.flow_draws, *data.chunks.shape[1:])
    times = flow.sample_times(times_rng, shape[:2], config.flow_times)
    noisy, velocity = flow.line(jax.random.normal(start_rng, shape), data.chunks[:, None], times)
    predicted = policy.apply(merged, features, data.proprio, noisy, times, method="velocity")
    return masked_velocity_error(predicted, velocity, mask)


def _loss(
    policy: Policy, variables: Variables, params: Any, data: Demonstrations, config: CloneConfig,
    rng: jax.Array,
) -> jax.Array:  # fmt: skip
    """Training loss [] of a minibatch; rng draws the lines of the flow head."""
    merged = _merged(variables, params)
    features = policy.apply(merged, data.frames, data.task_ids, method="encode")
    if policy.config.head == "flow":
        key = jax.random.fold_in(rng, 2)
        sums, count = _velocity_error(policy, merged, features, data, data.mask, config, key)
        where = _waypoint_loss(policy, merged, features, data)
        return sums.mean() / jnp.maximum(count, 1) + config.waypoint_weight * where
    chunks = policy.apply(merged, features, data.proprio, method="act").mean
    where = _waypoint_loss(policy, merged, features, data)
    loss = masked_huber(chunks, data.chunks, data.mask, config.huber_delta)
    return loss + config.waypoint_weight * where


def _take(data: Demonstrations, index: jax.Array) -> Demonstrations:
    return jax.tree.map(lambda x: jnp.take(x, index, axis=0), data)


@partial(jax.jit, static_argnames=("policy", "config", "steps"))
def train_epoch(
    policy: Policy,
    config: CloneConfig,
    variables: Variables,
    state: CloneState,
    data: Demonstrations,
    *,
    steps: int,
) -> tuple[CloneState, jax.Array]:
    """One pass of `steps` minibatches in fresh random order -> new state, mean loss float []."""
    batch = min(config.batch, len(data))
    transform = optimiser(config, config.epochs * steps)
    order_rng, rng, noise = jax.random.split(state.rng, 3)
    order = jax.random.permutation(order_rng, len(data))[: steps * batch].reshape(steps, batch)

    def step(carry, inputs):
        params, average, moments = carry
        index, key = inputs
        shift_key, colour_key = jax.random.split(key)
        samples = _take(data, index)
        frames = augment.random_shift(shift_key, samples.frames, config.shift)
        samples = samples.replace(frames=augment.colour_jitter(colour_key, frames, config.jitter))

        def loss_of(params):
            return _loss(policy, variables, params, samples, config, key)

        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, moments = transform.update(gradient, moments, params)
        params = optax.apply_updates(params, updates)
        if average is not None:
            average = optax.incremental_update(params, average, 1.0 - config.ema)
        return (params, average, moments), loss

    carry = (state.params, state.average, state.optimiser)
    carry, losses = jax.lax.scan(step, carry, (order, jax.random.split(noise, steps)))
    params, average, moments = carry
    state = state.replace(
        params=params, average=average, optimiser=moments, rng=rng, epoch=state.epoch + 1
    )
    return state, losses.mean()


@partial(jax.jit, static_argnames=("policy", "config"))
def validate(
    policy: Policy, config: CloneConfig, variables: Variables, params: Any, data: Demonstrations
) -> dict[str, jax.Array]:
    """Loss [] and the RMS and mean absolute residual [A] over all of data, without augmentation.

    The flow head's loss is on lines, its residuals are of noise-free decisions from starts, which
    are drawn alike in every call.
    """
    batch = min(config.batch, len(data))
    blocks = math.ceil(len(data) / batch)
    index = jnp.arange(blocks * batch).reshape(blocks, batch)

    def block(index):
        samples = _take(data, jnp.minimum(index, len(data) - 1))
        mask = samples.mask & (index < len(data))[:, None]
        merged = _merged(variables, params)
        features = policy.apply(merged, samples.frames, samples.task_ids, method="encode")
        if policy.config.head == "flow":
            line_rng, start_rng = jax.random.split(jax.random.fold_in(jax.random.key(0), index[0]))
            loss, _ = _velocity_error(policy, merged, features, samples, mask, config, line_rng)
            start = jax.random.normal(start_rng, samples.chunks.shape)
            start = jnp.zeros_like(start) if policy.config.flow.start == "zero" else start
            chain, _ = policy.apply(
                merged, features, samples.proprio, start, start_rng, True, method="denoise"
            )
            error = chain[:, -1] - samples.chunks
            terms = jnp.stack([jnp.square(error), jnp.abs(error)])
            terms = jnp.einsum("kbca,bc->ka", terms, mask.astype(error.dtype))
            return jnp.concatenate([loss[None], terms]), mask.sum()
        means = policy.apply(merged, features, samples.proprio, method="act").mean
        error = means - samples.chunks
        huber = optax.losses.huber_loss(error, delta=config.huber_delta)
        terms = jnp.stack([huber, jnp.square(error), jnp.abs(error)])
        return jnp.einsum("kbca,bc->ka", terms, mask.astype(error.dtype)), mask.sum()

    sums, counts = jax.lax.map(block, index)
    loss, square, absolute = sums.sum(0) / jnp.maximum(counts.sum(), 1)
    return {"loss": loss.mean(), "rms": jnp.sqrt(square), "mae": absolute}


def clone(
    policy: Policy,
    variables: Variables,
    data: Demonstrations,
    config: CloneConfig,
    rng: jax.Array,
    *,
    state: CloneState | None = None,
    on_epoch: Callable[[CloneState, dict[str, float]], None] | None = None,
    trial: Callable[[Variables], float] | None = None,
) -> tuple[Variables, dict[str, Any]]:
    """Trains encoder and actor on demonstrations and sets the exploration std.

    Args:
      variables: the policy's {params, norm, tasks}; norm is replaced by the training episodes'
        statistics, task ids of data index tasks.
      rng: key of the split, the order and the augmentation.
      state: go on from this state, as `on_epoch` got it, with otherwise equal arguments; the policy
        is the same bit for bit (the report's curve has the epochs of this call only).
      on_epoch: called after each epoch with the state and {"epoch", "train_loss",
        "validation_loss"}, and "trial" where there was one.
      trial: variables -> success of the policy in episodes of the caller's; for `until`.

    Returns:
      new variables, and a report {"curve": [one dict an epoch], "validation_loss" and "epoch" of
      what is returned, "residual_rms" [A], "residual_mae" [A], "std" [A], "train_samples",
      "train_episodes", "validation_samples", "validation_episodes", "parameters"}. Without held-out
      episodes the validation loss is that of the training samples, unaugmented.

    Raises:
      UserError: too few episodes or samples, a loss that is not finite, `until` without a trial.
    """
    if config.until is not None and trial is None:
        raise UserError("clone until=... needs a trial to play episodes with")
    expected = (policy.config.chunk, policy.config.action_size)
    if data.chunks.shape[1:] != expected:
        raise UserError(
            f"demonstrations have chunks of {data.chunks.shape[1:]}, the policy of {expected}"
        )
    split_seed = int(jax.random.randint(jax.random.fold_in(rng, 7), (), 0, 2**31 - 1))
    if config.validation > 0:
        train, held = split_by_episode(data, config.validation, split_seed)
    else:
        train = held = data
    variables = with_proprio_statistics(variables, *proprio_statistics(train))
    train, held = jax.device_put((train, held))
    steps = len(train) // min(config.batch, len(train))
    if state is None:
        params = {name: variables["params"][name] for name in CLONED}
        moments = optimiser(config, config.epochs * steps).init(params)
        average = params if config.ema else None
        state = CloneState(params, average, moments, rng, jnp.zeros((), jnp.int32))
        if config.keep == "best":
            state = state.replace(
                best=params, best_loss=jnp.float32(jnp.inf), best_epoch=jnp.int32(0)
            )
    curve = []
    for epoch in range(int(state.epoch), config.epochs):
        state, loss = train_epoch(policy, config, variables, state, train, steps=steps)
        now = state.average if config.ema else state.params
        checked = validate(policy, config, variables, now, held)
        row = {
            "epoch": epoch + 1,
            "train_loss": float(loss),
            "validation_loss": float(checked["loss"]),
        }
        if not np.isfinite(row["train_loss"]):
            raise UserError(f"cloning diverged in epoch {epoch + 1}: use a smaller lr")
        if config.keep == "best" and row["validation_loss"] < float(state.best_loss):
            state = state.replace(
                best=now, best_loss=checked["loss"], best_epoch=jnp.int32(epoch + 1)
            )
        if config.until is not None and (epoch + 1) % config.trial_every == 0:
            row["trial"] = trial(_merged(variables, now))
        curve.append(row)
        if on_epoch is not None:
            on_epoch(state, row)
        if config.until is not None and row.get("trial", 0.0) >= config.until:
            break
    best, epoch = state.average if config.ema else state.params, state.epoch
    if config.keep == "best":
        if int(state.best_epoch) == 0:
            raise UserError("cloning found no epoch with a finite validation loss")
        best, epoch = state.best, state.best_epoch
    checked = jax.device_get(validate(policy, config, variables, best, held))
    std = np.clip(config.std_scale * checked["rms"], config.std_low, config.std_high)
    actor = {**best["actor"], "raw_std": raw_std(jnp.asarray(std), policy.config)}
    params = {**variables["params"], "encoder": best["encoder"], "actor": actor}
    report = {
        "curve": curve,
        "validation_loss": float(checked["loss"]),
        "epoch": int(epoch),
        "residual_rms": checked["rms"].tolist(),
        "residual_mae": checked["mae"].tolist(),
        "std": std.tolist(),
        "train_samples": len(train),
        "train_episodes": len(np.unique(train.episodes)),
        "validation_samples": len(held) if config.validation > 0 else 0,
        "validation_episodes": len(np.unique(held.episodes)) if config.validation > 0 else 0,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
    }
    return {**variables, "params": params}, report
