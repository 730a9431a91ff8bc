"""Training reward models: objectives, index-only batches, the step and the resumable loop."""

from lrm_jax.reward_training.config import NanoSize, Optimiser, Phase, RewardTraining
from lrm_jax.reward_training.loop import Trained, train
from lrm_jax.reward_training.scene_heads import scene_heads

__all__ = ["NanoSize", "Optimiser", "Phase", "RewardTraining", "Trained", "scene_heads", "train"]
