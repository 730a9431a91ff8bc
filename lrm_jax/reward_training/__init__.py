"""Training reward models: a small network from scratch on closed answers, or adapters over a frozen
one on written answers."""

from lrm_jax.reward_training.config import (
    AdapterTraining,
    NanoSize,
    Optimiser,
    Phase,
    RewardTraining,
)
from lrm_jax.reward_training.loop import Trained, train
from lrm_jax.reward_training.scene_heads import scene_heads

__all__ = [
    "AdapterTraining",
    "NanoSize",
    "Optimiser",
    "Phase",
    "RewardTraining",
    "Trained",
    "scene_heads",
    "train",
]
