"""Policies: pixels, a sentence and proprioception to chunks of actions; behaviour cloning."""

from lrm_jax.policies.checkpoints import load_policy, save_policy
from lrm_jax.policies.cloning import CloneConfig, clone
from lrm_jax.policies.demonstrations import Demonstrations, from_episodes
from lrm_jax.policies.flow import FlowConfig
from lrm_jax.policies.networks import (
    Policy,
    PolicyConfig,
    init_variables,
    with_tasks,
)
from lrm_jax.policies.vocabulary import Vocabulary

__all__ = [
    "CloneConfig",
    "Demonstrations",
    "FlowConfig",
    "Policy",
    "PolicyConfig",
    "Vocabulary",
    "clone",
    "from_episodes",
    "init_variables",
    "load_policy",
    "save_policy",
    "with_tasks",
]
