"""lrm_jax: a vision-language model as the reward of a robot policy, in one JAX program.

`import lrm_jax` prepares the environment for JAX (`lrm_jax.run.platform`) and imports nothing
heavy; the names below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

from lrm_jax.run import platform as _platform

__version__ = "0.1.0"

_platform.configure()  # before anything imports jax: XLA reads its flags once

_MODULES = (
    "benchmarks", "envs", "episodes", "evaluation", "jobs", "labels", "lora", "parallel",
    "policies",
    "qwen3_vl", "render", "report", "reward_training", "rewards", "rl", "run",
)  # fmt: skip
_OBJECTS = {
    "load_judge": "lrm_jax.rewards",
    "load_reward_model": "lrm_jax.rewards",
    "RewardModel": "lrm_jax.rewards",
    "Episode": "lrm_jax.episodes",
    "UserError": "lrm_jax.run.errors",
}

__all__ = ["__version__", *_MODULES, *_OBJECTS]


def __getattr__(name: str) -> Any:
    if name in _OBJECTS:
        value = getattr(importlib.import_module(_OBJECTS[name]), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"lrm_jax.{name}")
    raise AttributeError(f"module 'lrm_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_MODULES) | set(_OBJECTS))
