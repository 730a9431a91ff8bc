"""Settings of the policy network."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.policies.flow import FlowConfig
from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError, did_you_mean

HEADS = ("gaussian", "flow")


@dataclass(frozen=True)
class PolicyConfig:
    """Sizes of the policy network and the range of its exploration noise.

    Attributes:
      head: how a chunk is decided. "gaussian": its mean is regressed on and noise is added to it;
        "flow": an action expert carries noise to a chunk in a few denoise steps, so it can follow
        demonstrations that solve a situation in several ways (see flow.py).
      chunk: control steps that one decision covers (5 in the paper).
      action_size: numbers per control step.
      image_size: pixels per side; a multiple of `patch`.
      patch: pixels per side folded into channels before the first layer.
      channels: width of the convolutions.
      blocks: FiLM residual blocks.
      keypoints: spatial-softmax points.
      word_size: token embedding width.
      sentence_size: width of the sentence embedding.
      queries: attention-pooling queries over the tokens; different ones can read the object's and
        the place's words.
      hidden: width of the two layers of the Gaussian actor and of the critic.
      waypoints: points that the encoder predicts from the image and hands to the actor relative to
        where the tool is; cloning teaches them in hindsight (see demonstrations.py). 0 is none.
        The first three numbers of proprioception are the tool's position.
      min_std, max_std: open range of each dimension's standard deviation, in action units.
      init_std: standard deviation before cloning sets it.
      rho: correlation of the noise along the chunk; explored: indices of the action dimensions that
        get noise, None for all; cosines: how many of the chunk's cosines get it, from the slowest,
        None for all (see distribution.py). With the flow head all three hold for the noise of
        each denoise step; the first noise, which the flow starts from, has all dimensions.
      flow: the action expert; used by the head "flow" alone.
    """

    head: str = field("gaussian", choices=HEADS)
    chunk: int = 5
    action_size: int = 7
    image_size: int = 64
    patch: int = 4
    channels: int = 32
    blocks: int = 2
    keypoints: int = 32
    word_size: int = 32
    sentence_size: int = 64
    queries: int = 4
    hidden: int = 256
    waypoints: int = 2
    min_std: float = 0.02
    max_std: float = 0.5
    init_std: float = 0.15
    rho: float = 0.7
    explored: tuple[int, ...] | None = None
    cosines: int | None = field(None, ge=1)
    flow: FlowConfig = field(default_factory=FlowConfig)

    def __post_init__(self):
        if self.head not in HEADS:
            raise UserError(f"policy head: {did_you_mean(self.head, HEADS)}")
        if self.image_size % self.patch:
            raise UserError(f"image_size {self.image_size} is no multiple of patch {self.patch}")
        if not 0 < self.min_std < self.init_std < self.max_std:
            raise UserError("policy stds need 0 < min_std < init_std < max_std")
        if not 0 <= self.rho < 1:
            raise UserError(f"rho must be in [0, 1), got {self.rho}")
        if self.cosines is not None and self.cosines > self.chunk:
            raise UserError(f"cosines ({self.cosines}) are more than a chunk's {self.chunk} steps")
        chosen = () if self.explored is None else self.explored
        if self.explored == () or not set(chosen) <= set(range(self.action_size)):
            raise UserError(
                f"explored must name some of the {self.action_size} action dimensions, got {chosen}"
            )


def raw_std(std: jax.Array, config: PolicyConfig) -> jax.Array:
    """The parameter whose squashed value is `std` [A]; std is first moved inside the open range.

    log std = log min + (log max - log min) sigmoid(raw): unlike a clip, it passes a gradient
    everywhere, so a dimension at the edge can come back.
    """
    low, high = np.log(config.min_std), np.log(config.max_std)
    share = jnp.clip((jnp.log(std) - low) / (high - low), 1e-3, 1.0 - 1e-3)
    return jnp.log(share) - jnp.log1p(-share)
