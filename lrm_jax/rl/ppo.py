"""PPO on action chunks: the loss, and one update over a batch of decisions.

    rho   = exp(log pi_theta(chunk) - log pi_old(chunk))              log-probabilities of whole
    chunks L_pg  = max(-A rho, -A clip(rho, 1 - eps, 1 + eps)), and for A < 0 at most -c A    (dual
            clip, Ye et al. 2020)
    L_v   = max(Huber(R - V), Huber(R - clip(V, V_old - v, V_old + v)))
    L     = L_pg + c_v L_v - c_H H(pi_theta) + c_KL KL(pi_theta || pi_base)

The defaults are those of the LRM paper's training configuration except where PPOConfig says so.
What the update reads is a Batch; nothing privileged is in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from lrm_jax.policies.networks import Policy, Variables
from lrm_jax.rl.gae import unexplained
from lrm_jax.rl.natural import natural_steps
from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError


@dataclass(frozen=True)
class PPOConfig:
    """Settings of the update. None switches a term off; paper values are given as [value].

    Attributes:
      clip: eps of the surrogate [0.10]. dual_clip: c [3.0]. value_clip: v [0.2].
      huber: where the value loss turns linear [10.0]; None is the squared error / 2.
      value_weight: c_v [1]. entropy: c_H [5e-4]. kl_base: c_KL, a penalty on leaving the cloned
        policy [inert in the paper's code]; 0 is off.
      discount [0.99] and decay [0.95] of GAE, per chunk. bootstrap_truncated: whether V of the
        frame at the time limit continues the return [true there]. Off here: episodes have one fixed
        length and the critic sees the elapsed time, so the limit is a real end.
      normalise_advantages: to mean 0, std 1 over the valid decisions of the batch [true].
      epochs [2]; minibatches: per epoch [8, of 24 decisions].
      target_kl: no more updates in this iteration once a minibatch's KL(old || new) estimate passes
        it [off].
      adapt_lr: after each update, move the policy's lr so that the next one ends at 2/3 of
        target_kl: by the root of the ratio (KL grows as the square of the step), at most 1.5 up
        and 5 down. `lr` is then where it starts. KL also grows as the inverse square of the
        exploration std, so no fixed lr suits a policy whose std was measured [off].
      natural: so many steps of the policy in an iteration, each on all its decisions, along the
        natural gradient and of a KL of target_kl / natural^2. Adam, epochs and minibatches are then
        the critic's alone, and target_kl stops nothing [0: all by Adam]. cg_iterations, damping: of
        the direction, see `rl.natural`.
      unexplained: of that KL spend the share of the returns' variance that the critic missed,
        Var(R - V) / Var(R), at most 1. Where it missed little, as with a reward that says nothing
        about what was done, advantages are mostly its own errors, which normalising them blows
        up to full size [off].
      lr: of the policy [2.5e-6 for a 3-billion-parameter policy; a small one needs more].
      value_lr: of the critic [5e-5].
      beta1, beta2, eps: Adam [0.9, 0.95, 1e-5].
      grad_clip: of the gradient norm [0.3], here of the policy's and of the critic's separately:
        they share no parameters, so a large value error need not shrink the policy's step.
      joint_grad_clip: clip the norm of both gradients together [true: one optimiser step for both].
      train_encoder: also learn the image and sentence encoder. Off (the paper's
        `train_expert_only`), the update works on the rollout's features and needs no convolution.
    """

    clip: float = field(0.10, gt=0)
    dual_clip: float | None = field(3.0, gt=1)
    value_clip: float | None = field(0.2, gt=0)
    huber: float | None = field(10.0, gt=0)
    value_weight: float = field(1.0, ge=0)
    entropy: float = field(5e-4, ge=0)
    kl_base: float = field(0.0, ge=0)
    discount: float = field(0.99, ge=0, le=1)
    decay: float = field(0.95, ge=0, le=1)
    bootstrap_truncated: bool = False
    normalise_advantages: bool = True
    epochs: int = field(2, ge=1)
    minibatches: int = field(8, ge=1)
    target_kl: float | None = field(None, gt=0)
    adapt_lr: bool = False
    natural: int = field(0, ge=0)
    unexplained: bool = False
    cg_iterations: int = field(10, ge=1)
    damping: float = field(0.1, ge=0)
    lr: float = field(1e-4, gt=0)
    value_lr: float = field(5e-4, gt=0)
    beta1: float = field(0.9, ge=0, lt=1)
    beta2: float = field(0.95, ge=0, lt=1)
    eps: float = field(1e-5, gt=0)
    grad_clip: float | None = field(0.3, gt=0)
    joint_grad_clip: bool = False
    train_encoder: bool = False


@flax.struct.dataclass
class Batch:
    """B decisions, everything that the loss reads.

    frames uint8 [B,H,W,3] and task_ids int32 [B] if the encoder learns, else features float32
    [B,F]; the others None. proprio [B,P]; elapsed [B]; actions [B,C,A]; log_probs, values,
    advantages, returns float32 [B]; mask bool [B]; base_mean [B,C,A]: the cloned policy's
    mean for the KL penalty, else None. chain [B,K+1,C,A]: the denoise chains of a flow head, whose
    log-probabilities log_probs are then; base_mean is [B,K,C,A] with it, and base_log_std [B,K,A].
    """

    frames: jax.Array | None
    task_ids: jax.Array | None
    features: jax.Array | None
    proprio: jax.Array
    elapsed: jax.Array
    actions: jax.Array
    log_probs: jax.Array
    values: jax.Array
    advantages: jax.Array
    returns: jax.Array
    mask: jax.Array
    base_mean: jax.Array | None = None
    base_log_std: jax.Array | None = None
    chain: jax.Array | None = None


@flax.struct.dataclass
class OptimiserState:
    """Adam moments of the policy's and of the critic's parameters, and the policy's lr float []."""

    policy: Any
    value: Any
    lr: jax.Array


def split_params(params: dict[str, Any], train_encoder: bool) -> tuple[dict, dict, dict]:
    """params -> (learned by the policy loss, learned by the value loss, frozen); disjoint dicts."""
    policy = {k: params[k] for k in ("actor", *(("encoder",) if train_encoder else ()))}
    value = {"critic": params["critic"]}
    frozen = {k: v for k, v in params.items() if k not in policy and k not in value}
    return policy, value, frozen


def _transform(config: PPOConfig) -> optax.GradientTransformation:
    """Gradient to a step of unit learning rate."""
    clip = None if config.joint_grad_clip else config.grad_clip
    return optax.chain(
        optax.identity() if clip is None else optax.clip_by_global_norm(clip),
        optax.adam(1.0, config.beta1, config.beta2, config.eps),
    )


def init_optimiser(params: dict[str, Any], config: PPOConfig) -> OptimiserState:
    """Fresh moments for a policy's params."""
    policy, value, _ = split_params(params, config.train_encoder)
    transform = _transform(config)
    return OptimiserState(transform.init(policy), transform.init(value), jnp.float32(config.lr))


def surrogate(
    log_ratio: jax.Array, advantages: jax.Array, clip: float, dual_clip: float | None
) -> jax.Array:
    """L_pg of each decision, to be minimised; all [B]."""
    # exp overflows in float32 beyond 88; 20 is far outside every clip range, so only the unbounded
    # branch (A < 0 without dual clip) could tell the difference.
    ratio = jnp.exp(jnp.clip(log_ratio, -20.0, 20.0))
    loss = jnp.maximum(-advantages * ratio, -advantages * jnp.clip(ratio, 1 - clip, 1 + clip))
    if dual_clip is not None:
        loss = jnp.where(advantages < 0, jnp.minimum(loss, -dual_clip * advantages), loss)
    return loss


def value_loss(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    value_clip: float | None,
    huber: float | None,
) -> jax.Array:
    """L_v of each decision; all [B]."""

    def penalty(error):
        return (
            0.5 * jnp.square(error)
            if huber is None
            else optax.losses.huber_loss(error, delta=huber)
        )

    loss = penalty(returns - values)
    if value_clip is None:
        return loss
    near = old_values + jnp.clip(values - old_values, -value_clip, value_clip)
    return jnp.maximum(loss, penalty(returns - near))


def mean_over(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean [] of x where mask, both [B]; 0 of none."""
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(mask.sum(), 1)


def ppo_loss(
    policy: Policy,
    variables: Variables,
    batch: Batch,
    config: PPOConfig,
    base_log_std: jax.Array | None = None,
    policy_weight: jax.Array | float = 1.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss [] and its parts, averaged over the decisions where batch.mask.

    Args:
      base_log_std: [A], with batch.base_mean the cloned policy's distribution; needed if kl_base.
        None where it differs between decisions (flow head): then the batch holds it.
      policy_weight: 0 leaves only the value loss (critic warm-up).

    Parts: policy_loss, value_loss, entropy, kl (the non-negative estimate E[(rho - 1) - log rho] of
    KL(old || new), Schulman 2020), kl_base, clip_fraction, dual_clip_fraction.
    """
    # Masked decisions may hold any number. They are emptied here, not only left out of the means:
    # the gradient of an unused NaN is 0 * NaN.
    held = {
        name: jnp.where(batch.mask, getattr(batch, name), 0.0)
        for name in ("log_probs", "values", "advantages", "returns")
    }
    batch = batch.replace(**held)
    features = batch.features
    if config.train_encoder:
        features = policy.apply(variables, batch.frames, batch.task_ids, method="encode")
    chosen = policy.apply(variables, features, batch.proprio, batch.chain, method="act")
    values = policy.apply(variables, features, batch.proprio, batch.elapsed, method="value")

    mean = partial(mean_over, mask=batch.mask)
    drawn = batch.actions if batch.chain is None else batch.chain
    log_ratio = chosen.log_prob(drawn) - batch.log_probs
    log_ratio = jnp.where(batch.mask, log_ratio, 0.0)
    policy_loss = mean(surrogate(log_ratio, batch.advantages, config.clip, config.dual_clip))
    value = mean(value_loss(values, batch.values, batch.returns, config.value_clip, config.huber))
    entropy = mean(chosen.entropy())
    ratio = jnp.exp(jnp.clip(log_ratio, -20.0, 20.0))
    objective = policy_loss - config.entropy * entropy
    parts = {
        "policy_loss": policy_loss,
        "value_loss": value,
        "entropy": entropy,
        "kl": mean(ratio - 1.0 - log_ratio),
        "clip_fraction": mean((jnp.abs(ratio - 1.0) > config.clip).astype(jnp.float32)),
    }
    if config.value_clip is not None:
        moved = jnp.abs(values - batch.values) > config.value_clip
        parts["value_clip_fraction"] = mean(moved.astype(jnp.float32))
    if config.dual_clip is not None:
        dual = (batch.advantages < 0) & (ratio > config.dual_clip)
        parts["dual_clip_fraction"] = mean(dual.astype(jnp.float32))
    if config.kl_base > 0:
        log_std = base_log_std if batch.base_log_std is None else batch.base_log_std
        base = chosen.replace(mean=batch.base_mean, log_std=log_std)
        parts["kl_base"] = mean(chosen.kl(base))
        objective = objective + config.kl_base * parts["kl_base"]
    return policy_weight * objective + config.value_weight * value, parts


def normalise(advantages: jax.Array, mask: jax.Array, eps: float = 1e-5) -> jax.Array:
    """(A - mean) / (std + eps) over the valid ones; 0 where masked. Any shape."""
    count = jnp.maximum(mask.sum(), 1)
    centre = jnp.sum(jnp.where(mask, advantages, 0.0)) / count
    spread = jnp.sqrt(jnp.sum(jnp.where(mask, jnp.square(advantages - centre), 0.0)) / count)
    return jnp.where(mask, (advantages - centre) / (spread + eps), 0.0)


def _adapted(lr: jax.Array, kl: jax.Array, target_kl: float) -> jax.Array:
    """The policy's lr after an update that ended at kl from the rollout's policy."""
    factor = jnp.sqrt(target_kl * 2.0 / 3.0 / jnp.maximum(kl, 1e-8))
    return jnp.clip(lr * jnp.clip(factor, 0.2, 1.5), 1e-7, 1e-2)


@partial(jax.jit, static_argnames=("policy", "config"))
def update(
    policy: Policy,
    config: PPOConfig,
    variables: Variables,
    optimiser: OptimiserState,
    batch: Batch,
    rng: jax.Array,
    base_log_std: jax.Array | None = None,
    train_policy: jax.Array | bool = True,
) -> tuple[Variables, OptimiserState, dict[str, jax.Array]]:
    """One PPO update: epochs x minibatches as one scan over shuffled decisions.

    Args:
      batch: all B decisions of an iteration, advantages already final.
      train_policy: bool []; False updates the critic alone (warm-up).

    Returns:
      variables, optimiser, and metrics: the parts of `ppo_loss` and gradient norms (before
      clipping) averaged over the updates made, "updates" (how many were made before target_kl
      stopped them), "last_kl", and "lr", of natural steps "step_kl": what they were to spend.

    Raises:
      UserError: B is no multiple of the number of minibatches; adapt_lr or natural without
        target_kl; natural with adapt_lr or joint_grad_clip; unexplained without natural.
    """
    if (config.adapt_lr or config.natural) and config.target_kl is None:
        raise UserError("ppo.adapt_lr and ppo.natural need ppo.target_kl")
    if config.adapt_lr and config.natural:
        raise UserError("ppo.adapt_lr is Adam's: natural steps are as long as target_kl says")
    if config.unexplained and not config.natural:
        raise UserError("ppo.unexplained shortens natural steps: it needs ppo.natural")
    if config.joint_grad_clip and config.natural:
        raise UserError("ppo.joint_grad_clip is Adam's: a natural step is no part of that norm")
    total = batch.mask.shape[0]
    if total % config.minibatches:
        raise UserError(f"{total} decisions do not divide into {config.minibatches} minibatches")
    train_policy = jnp.asarray(train_policy)
    learned, critic, frozen = split_params(variables["params"], config.train_encoder)
    transform = _transform(config)

    def loss_of(trained, samples):
        merged = {**variables, "params": {**frozen, **trained[0], **trained[1]}}
        weight = train_policy.astype(jnp.float32)
        return ppo_loss(policy, merged, samples, config, base_log_std, weight)

    def acting(learned):
        params = {**frozen, **learned, **critic}
        merged, features = {**variables, "params": params}, batch.features
        if config.train_encoder:
            features = policy.apply(merged, batch.frames, batch.task_ids, method="encode")
        return policy.apply(merged, features, batch.proprio, batch.chain, method="act")

    def divergence_from(learned):
        now = acting(learned)
        return lambda other: mean_over(now.kl(acting(other)), batch.mask)

    def scaled(step, lr):
        return jax.tree.map(lambda x: lr * x, step)

    def step(carry):
        learned, critic, optimiser, samples = carry
        if config.natural:  # the critic alone is left to Adam
            gradient, parts = jax.grad(lambda x: loss_of((learned, x), samples), has_aux=True)(
                critic
            )
            moments = optimiser.policy
        else:
            (own, gradient), parts = jax.grad(loss_of, has_aux=True)((learned, critic), samples)
            parts["policy_grad_norm"] = optax.global_norm(own)
        parts["value_grad_norm"] = optax.global_norm(gradient)
        if config.joint_grad_clip and config.grad_clip is not None:
            both = optax.clip_by_global_norm(config.grad_clip)
            (own, gradient), _ = both.update((own, gradient), both.init((own, gradient)))
        if not config.natural:
            move, moments = transform.update(own, optimiser.policy)

            def choose(new, old):  # warm-up leaves parameters and moments of the policy untouched
                return jax.tree.map(lambda a, b: jnp.where(train_policy, a, b), new, old)

            learned = choose(optax.apply_updates(learned, scaled(move, optimiser.lr)), learned)
            moments = choose(moments, optimiser.policy)
        value_move, value_moments = transform.update(gradient, optimiser.value)
        critic = optax.apply_updates(critic, scaled(value_move, config.value_lr))
        return learned, critic, OptimiserState(moments, value_moments, optimiser.lr), parts

    def minibatch(carry, index):
        learned, critic, optimiser, stopped = carry
        samples = jax.tree.map(lambda x: jnp.take(x, index, axis=0), batch)
        operand = (learned, critic, optimiser, samples)
        names = jax.eval_shape(step, operand)[3]
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), names)
        learned, critic, optimiser, parts = jax.lax.cond(
            stopped, lambda o: (*o[:3], nothing), step, operand
        )
        made = ~stopped
        if config.target_kl is not None and not config.natural:
            stopped = stopped | (parts["kl"] > config.target_kl)
        return (learned, critic, optimiser, stopped), (parts, made)

    def order(key):
        return jax.random.permutation(key, total).reshape(config.minibatches, -1)

    if config.natural:
        kl = jnp.where(train_policy, config.target_kl, 0.0)
        if config.unexplained:
            kl = kl * unexplained(batch.values, batch.returns, batch.mask)
        learned, norm = natural_steps(
            learned, lambda x: loss_of((x, critic), batch)[0], divergence_from, kl,
            config.natural, config.cg_iterations, config.damping,
        )  # fmt: skip
    orders = jax.vmap(order)(jax.random.split(rng, config.epochs))
    start = (learned, critic, optimiser, jnp.zeros((), bool))
    (learned, critic, optimiser, _), (parts, made) = jax.lax.scan(
        minibatch, start, orders.reshape(-1, orders.shape[-1])
    )
    count = made.sum()
    metrics = {name: x.sum() / count for name, x in parts.items()}
    metrics["updates"] = count
    metrics["last_kl"] = parts["kl"][count - 1]
    metrics |= {"step_kl": kl, "policy_grad_norm": norm} if config.natural else {"lr": optimiser.lr}
    if config.adapt_lr:
        lr = _adapted(optimiser.lr, metrics["last_kl"], config.target_kl)
        optimiser = optimiser.replace(lr=jnp.where(train_policy, lr, optimiser.lr))
    return {**variables, "params": {**frozen, **learned, **critic}}, optimiser, metrics
