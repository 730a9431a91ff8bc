"""Reinforcement learning: rollouts, evaluation, GAE, PPO, and the refinement loop."""

from lrm_jax.rl.evaluate import Evaluation, episode_keys, evaluate, record
from lrm_jax.rl.ppo import PPOConfig
from lrm_jax.rl.refine import RefineConfig, RefineState, init_state, refine
from lrm_jax.rl.rollout import Rollout, make_render_fn, rollout, rollout_from
from lrm_jax.rl.stopping import StopConfig

__all__ = [
    "Evaluation",
    "PPOConfig",
    "RefineConfig",
    "RefineState",
    "Rollout",
    "StopConfig",
    "episode_keys",
    "evaluate",
    "init_state",
    "make_render_fn",
    "record",
    "refine",
    "rollout",
    "rollout_from",
]
