"""Camera frames and a sentence to rewards: heads, closed-answer scoring, the batched engine,
transforms."""

from lrm_jax.rewards.engine import RewardEngine
from lrm_jax.rewards.heads import Head, default_heads, load_heads, nano_heads, save_heads
from lrm_jax.rewards.judges import Judge, Judged, load_judge
from lrm_jax.rewards.model import RewardModel, load_reward_model
from lrm_jax.rewards.scores import Scores
from lrm_jax.rewards.tokenizer import Tokenizer

__all__ = [
    "Head",
    "Judge",
    "Judged",
    "RewardEngine",
    "RewardModel",
    "Scores",
    "Tokenizer",
    "default_heads",
    "load_heads",
    "load_judge",
    "load_reward_model",
    "nano_heads",
    "save_heads",
]
