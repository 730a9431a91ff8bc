"""Gaussian over a chunk of actions whose noise is correlated along the chunk.

Independent noise per step averages out inside an open-loop chunk: five steps of a delta-pose
controller move the hand by the mean of five draws, so exploration shrinks with 1/sqrt(C). Here
every dimension d keeps its marginal standard deviation sigma_d, and the C steps of a chunk share a
correlation rho:

    Sigma_d = sigma_d^2 (rho 1 1^T + (1 - rho) I),      0 <= rho < 1

Its eigenvalues are sigma_d^2 (1 + (C - 1) rho) along 1/sqrt(C), the displacement of the chunk, and
sigma_d^2 (1 - rho) on the C - 1 directions orthogonal to it, so every formula below is exact and
costs no matrix. rho = 0 is the diagonal Gaussian.

Nor need the noise tremble. A chunk has C C-point cosines (DCT-II, orthonormal), the first being
1/sqrt(C); with `cosines` = M only the M slowest get noise, and the density is that of these M
coefficients. The displacement of a chunk varies as before, while what averages out in it no longer
counts: the gradient of a log-probability has M / C of the variance for the same signal, and a bound
on the KL allows larger steps in what matters.

Dimensions that a task does not use (a tool that never turns) can be left out of the noise: they
follow the mean and count neither in the density nor in entropy and KL. With the tiny std that their
demonstrations suggest they would own the gradient of log-probabilities, which grows as 1 / sigma_d.
"""

from __future__ import annotations

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

_LOG_2PI = math.log(2.0 * math.pi)


def slow_cosines(steps: int, count: int) -> np.ndarray:
    """The `count` slowest orthonormal cosines of `steps` points (DCT-II): float32 [steps,count]."""
    step, wave = np.arange(steps)[:, None] + 0.5, np.arange(count)
    raw = np.cos(np.pi * step * wave / steps)
    return (raw / np.linalg.norm(raw, axis=0)).astype(np.float32)


@flax.struct.dataclass
class ChunkNormal:
    """Distribution of a chunk of C actions of D numbers.

    Attributes:
      mean: float [..., C, D].
      log_std: float [D] or [..., D], log of the marginal standard deviation sigma_d of every step.
      rho: correlation between any two steps of one dimension, in [0, 1); a static number.
      explored: indices of the dimensions with noise, static; None is all of them.
      cosines: how many of the chunk's cosines have noise, from the slowest, static; None is all.
        log_std is then that of a step before the others are taken away.

    log_prob, entropy and kl are sums over the chunk and its dimensions (chunk level), shape [...].
    """

    mean: jax.Array
    log_std: jax.Array
    rho: float = flax.struct.field(pytree_node=False, default=0.0)
    explored: tuple[int, ...] | None = flax.struct.field(pytree_node=False, default=None)
    cosines: int | None = flax.struct.field(pytree_node=False, default=None)

    def __post_init__(self):
        if not 0.0 <= self.rho < 1.0:
            raise ValueError(f"rho must be in [0, 1), got {self.rho}")
        if self.cosines is not None and self.cosines < 1:
            raise ValueError(f"cosines must be at least 1, got {self.cosines}")

    @property
    def _steps(self) -> int:
        return self.mean.shape[-2]

    @property
    def _kept(self) -> int:
        """How many directions along the chunk have noise."""
        return self._steps if self.cosines is None else min(self.cosines, self._steps)

    def _log_eigenvalues(self) -> tuple[jax.Array, jax.Array]:
        """log eigenvalue along the chunk mean, and on its complement; each shaped as log_std."""
        shared = 2.0 * self.log_std + math.log1p((self._steps - 1) * self.rho)
        private = 2.0 * self.log_std + math.log1p(-self.rho)
        return shared, private

    def _batched(self, per_dimension: jax.Array) -> jax.Array:
        """Sum over the explored of the D dimensions, broadcast to the batch shape [...]."""
        full = jnp.broadcast_to(per_dimension, self.mean.shape[:-2] + self.mean.shape[-1:])
        return (full if self.explored is None else full[..., list(self.explored)]).sum(-1)

    def _mahalanobis(self, error: jax.Array) -> jax.Array:
        """error [..., C, D] -> squared Mahalanobis norm per dimension [..., D]."""
        shared, private = self._log_eigenvalues()
        centre = error.mean(-2)
        if self.cosines is None:
            around = jnp.square(error - centre[..., None, :]).sum(-2)
        else:
            waves = slow_cosines(self._steps, self._kept)[:, 1:]
            around = jnp.square(jnp.einsum("...cd,cm->...md", error, waves)).sum(-2)
        return self._steps * jnp.square(centre) * jnp.exp(-shared) + around * jnp.exp(-private)

    def _log_determinant(self) -> jax.Array:
        shared, private = self._log_eigenvalues()
        return shared + (self._kept - 1) * private

    def mode(self) -> jax.Array:
        """float [..., C, D]."""
        return self.mean

    def sample(self, rng: jax.Array) -> jax.Array:
        """float [..., C, D]: sqrt(rho) of noise common to the chunk, sqrt(1 - rho) of each
        step, of both what the cosines hold."""
        common_rng, own_rng = jax.random.split(rng)
        shape = self.mean.shape
        common = jax.random.normal(common_rng, (*shape[:-2], 1, shape[-1]), self.mean.dtype)
        own = jax.random.normal(own_rng, shape, self.mean.dtype)
        noise = math.sqrt(self.rho) * common + math.sqrt(1.0 - self.rho) * own
        if self.cosines is not None:
            waves = slow_cosines(self._steps, self._kept)
            noise = jnp.einsum("...cd,ce->...ed", noise, waves @ waves.T)
        if self.explored is not None:
            noise = noise * np.isin(np.arange(shape[-1]), self.explored)
        return self.mean + jnp.exp(self.log_std)[..., None, :] * noise

    def log_prob(self, actions: jax.Array) -> jax.Array:
        """actions float [..., C, D], before any clipping by the environment -> float [...]."""
        quadratic = self._mahalanobis(actions - self.mean)
        constant = self._kept * _LOG_2PI
        return -0.5 * self._batched(quadratic + self._log_determinant() + constant)

    def entropy(self) -> jax.Array:
        """Differential entropy in nats, float [...]."""
        return 0.5 * self._batched(self._kept * (1.0 + _LOG_2PI) + self._log_determinant())

    def kl(self, other: ChunkNormal) -> jax.Array:
        """KL(self || other) in nats, float [...], over the dimensions that self explores.

        Both covariances share their eigenvectors, whatever their rho; both need the same cosines.
        """
        own_shared, own_private = self._log_eigenvalues()
        shared, private = other._log_eigenvalues()
        trace = jnp.exp(own_shared - shared) + (self._kept - 1) * jnp.exp(own_private - private)
        determinants = other._log_determinant() - self._log_determinant()
        moved = other._mahalanobis(self.mean - other.mean)
        return 0.5 * self._batched(trace - self._kept + determinants + moved)
