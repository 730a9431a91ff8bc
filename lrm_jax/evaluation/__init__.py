"""Evaluation: metrics of reward models, statistics of success rates, the open-loop table.

`metrics` and `stats` are plain numpy and import nothing else of the package.
"""

from lrm_jax.evaluation import metrics, open_loop, stats

__all__ = ["metrics", "open_loop", "stats"]
