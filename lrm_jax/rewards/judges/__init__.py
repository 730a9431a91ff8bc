"""Published judges on the same network: TOPReward, RoboReward, Robometer."""

from lrm_jax.rewards.judges.judge import Judge, Judged
from lrm_jax.rewards.judges.load import JUDGES, load_judge
from lrm_jax.rewards.judges.topreward import by_trajectory

__all__ = ["JUDGES", "Judge", "Judged", "by_trajectory", "load_judge"]
