"""Typed settings shared by the jobs; the files in ``configs/`` fill them."""

import dataclasses
from typing import Any

from lrm_jax import envs
from lrm_jax.run.config import field


@dataclasses.dataclass(frozen=True)
class EnvSettings:
    """Which task: its registered name, its settings, and the side of its images in pixels."""

    name: str = "PutOnPlate"
    settings: dict[str, Any] = field(default_factory=dict)
    size: int = field(64, ge=16, le=512)

    def make(self) -> envs.Env:
        """The environment."""
        return envs.make(self.name, **self.settings)


@dataclasses.dataclass(frozen=True)
class CollectSettings:
    """Scripted episodes: how many, in which modes, rendered how often, from which seed."""

    episodes: int = field(128, ge=1)
    modes: dict[str, float] = field(default_factory=lambda: {"success": 1.0})
    stride: int = field(2, ge=1)
    batch: int = field(64, ge=1)
    seed: int = field(0, ge=0)


@dataclasses.dataclass(frozen=True)
class TaskEpisodes:
    """Scripted episodes of one task."""

    env: EnvSettings = field(default_factory=EnvSettings)
    collect: CollectSettings = field(default_factory=CollectSettings)
