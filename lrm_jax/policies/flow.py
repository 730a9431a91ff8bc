"""Flow matching on chunks of actions, and the Gaussian chain that exploration makes of it.

A flow carries noise to actions along straight lines (Lipman et al. 2023; pi0, Black et al. 2024):

    x_t = (1 - t) x_0 + t a,      x_0 ~ N(0, I),      t in [0, 1]

A network v(x_t, t, observation) learns the velocity a - x_0 by least squares; its minimum is the
mean velocity of all lines that pass x_t, and following it from noise ends among the demonstrated
actions, in as many modes as they have. K Euler steps x_{k+1} = x_k + v(x_k, k/K) / K do that.

This is deterministic once x_0 is drawn and has no density that could be written down. For PPO each
step gets Gaussian noise whose deviation a small network sets ("flow noise": ReinFlow, Zhang et al.
2025; pi_RL, Chen et al. 2025; it is how the LRM paper refines pi0.5):

    x_{k+1} ~ N(x_k + v(x_k, k/K) / K,  sigma(observation, k/K)^2)

The chain x_0 ... x_K is then a Markov chain of Gaussians with the exact joint log-probability
sum_k log N(x_{k+1}; ...). The rollout keeps the chain, and new parameters are asked for the
density of the same chain. That of x_0 depends on no parameter and is left out: it cancels in
ratios. What PPO improves is so a policy over chains, whose last element is the action; a KL
divergence between chains is never less than that between the actions they end in.

Chunks are in the environment's action units, which are of order 1 ([-1, 1]), as is the noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.struct
import jax

from lrm_jax.policies.distribution import ChunkNormal
from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError, did_you_mean

STARTS = ("noise", "zero")
LOGPROBS = ("sum", "mean")
TIMES = ("uniform", "beta")
LAST_TIME = 0.999
"""pi0's s: no time above it is trained, since K Euler steps never evaluate one near 1."""


@dataclass(frozen=True)
class FlowConfig:
    """Settings of the flow head.

    Attributes:
      steps: K, denoise (Euler) steps of a decision [4 in the paper].
      hidden, blocks: width of the action expert and its number of residual blocks.
      time_size: sines and cosines that tell it the time, an even number.
      noise_hidden: width of the network that sets each denoise step's standard deviation.
      start: where deterministic decisions start. "noise": drawn from the episode's own key (so an
        episode is the same in whatever batch it is played), as pi0.5 is evaluated; "zero": the
        middle of the noise, which gives one action for one observation but may fall between modes.
      logprob: of a chain. "sum" is the joint density of its steps; "mean" divides it by K + 1, as
        the paper's released code does, which takes a root of PPO's ratios and so widens its clip.
    """

    steps: int = field(4, ge=1)
    hidden: int = field(256, ge=1)
    blocks: int = field(2, ge=1)
    time_size: int = field(32, ge=2)
    noise_hidden: int = field(64, ge=1)
    start: str = field("noise", choices=STARTS)
    logprob: str = field("sum", choices=LOGPROBS)

    def __post_init__(self):
        if self.steps < 1:
            raise UserError(f"flow.steps must be at least 1, got {self.steps}")
        if self.time_size % 2:
            raise UserError(f"flow.time_size must be even, got {self.time_size}")
        for name, known in (("start", STARTS), ("logprob", LOGPROBS)):
            if getattr(self, name) not in known:
                raise UserError(f"flow.{name}: {did_you_mean(getattr(self, name), known)}")


def sample_times(rng: jax.Array, shape: tuple[int, ...], law: str) -> jax.Array:
    """Training times float32 `shape` in [0, 1), 0 being noise.

    law "uniform", or "beta": t = 0.999 (1 - u) with u ~ Beta(1.5, 1), pi0's, which dwells on noisy
    chunks: there the network has to say what to do, near t = 1 it only has to copy. (The
    distribution function of u is u^1.5.) UserError for another law.
    """
    u = jax.random.uniform(rng, shape)
    if law == "uniform":
        return u
    if law == "beta":
        return LAST_TIME * (1.0 - u ** (2.0 / 3.0))
    raise UserError(f"flow time distribution: {did_you_mean(law, TIMES)}")


def line(start: jax.Array, actions: jax.Array, times: jax.Array) -> tuple[jax.Array, jax.Array]:
    """start, actions float [..., C, A], times [...] -> x_t and the velocity there, [..., C, A]."""
    t = times[..., None, None]
    return (1.0 - t) * start + t * actions, actions - start


@flax.struct.dataclass
class ChainNormal:
    """Distribution of a denoise chain x_0 ... x_K of chunks [C, A], given x_0.

    Attributes:
      mean: float [..., K, C, A], of x_{k+1} given x_k of one particular chain.
      log_std: float [..., K, A] of that step.
      rho, explored, cosines: of each step's noise, as in ChunkNormal; static.
      average: whether log_prob is the joint one divided by K + 1 (FlowConfig.logprob); static.

    log_prob is of that chain. entropy and kl sum the steps' own along it: by the chain rule their
    expectations over chains (of self) are the entropy and the KL divergence of whole chains.
    """

    mean: jax.Array
    log_std: jax.Array
    rho: float = flax.struct.field(pytree_node=False, default=0.0)
    explored: tuple[int, ...] | None = flax.struct.field(pytree_node=False, default=None)
    cosines: int | None = flax.struct.field(pytree_node=False, default=None)
    average: bool = flax.struct.field(pytree_node=False, default=False)

    def steps(self) -> ChunkNormal:
        """The K steps as one batch of distributions [..., K]."""
        return ChunkNormal(self.mean, self.log_std, self.rho, self.explored, self.cosines)

    def log_prob(self, chain: jax.Array) -> jax.Array:
        """chain float [..., K+1, C, A], the one that `mean` was computed along -> float [...]."""
        total = self.steps().log_prob(chain[..., 1:, :, :]).sum(-1)
        return total / chain.shape[-3] if self.average else total

    def entropy(self) -> jax.Array:
        """Nats, float [...]."""
        return self.steps().entropy().sum(-1)

    def kl(self, other: ChainNormal) -> jax.Array:
        """Nats, float [...]; `other` must have been computed along the same chain."""
        return self.steps().kl(other.steps()).sum(-1)
