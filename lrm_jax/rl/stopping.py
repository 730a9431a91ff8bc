"""Stopping a refinement early, and how far the reward and the task part company.

A policy that is refined by a learned reward may go on gaining reward while the task is done less
often (over-optimisation; Gao et al. 2023). Two rules need nothing but what the learner sees; the
third reads the simulator's success and is *privileged*: a run that it stopped has not been refined
by rewards alone, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError

PRIVILEGED = "privileged: "
PROXY, ORACLE = "episode_reward", "success_end"


@dataclass(frozen=True)
class StopConfig:
    """When to stop early; every rule is off by default.

    Attributes:
      window: iterations that a rule looks back on.
      kl_clone: stop once the mean KL(policy || cloned policy) of an iteration's decisions passes
        it, nats.
      uncertainty: stop once the reward model's mean deviation over the last window is more than
        this multiple of that over the first: the policy has gone where the model does not know.
      privileged_rank: stop once the rank correlation of reward and success over the last window is
        below it. Reads the simulator's success.
    """

    window: int = field(6, ge=3)
    kl_clone: float | None = field(None, gt=0)
    uncertainty: float | None = field(None, gt=1)
    privileged_rank: float | None = field(None, ge=-1, le=1)

    def validate(self) -> None:
        """UserError where a bound can never be passed."""
        if self.privileged_rank == -1:
            raise UserError("privileged_rank of -1 never stops anything: no correlation is below")


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rho of two sequences [n]; NaN where one of them is constant or has a number that
    is not finite, or n < 2."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("nan")
    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(stats.spearmanr(a, b).statistic)


def divergence(rows: Sequence[Mapping[str, float]], window: int) -> list[float]:
    """Rank correlation of episode reward and success over the `window` iterations that end at each
    row; NaN before there are as many, and where one of them did not move. Privileged."""
    proxy, oracle = ([row[name] for row in rows] for name in (PROXY, ORACLE))
    return [
        rank_correlation(proxy[i + 1 - window : i + 1], oracle[i + 1 - window : i + 1])
        if i + 1 >= window
        else float("nan")
        for i in range(len(rows))
    ]


def rise_p(rows: Sequence[Mapping[str, float]]) -> float:
    """p of the one-sided Mann-Kendall test that the mean reward of valid decisions rises over the
    iterations; 1 where it never moves. What the learner sees is all that it reads."""
    # Not PROXY: a sum over an episode falls where scores become invalid.
    reward = np.asarray([row["reward_mean"] for row in rows], np.float64)
    if reward.size < 2 or np.ptp(reward) == 0:
        return 1.0
    return float(stats.kendalltau(np.arange(reward.size), reward, alternative="greater").pvalue)


def reason(config: StopConfig, rows: Sequence[Mapping[str, float]]) -> str | None:
    """Why to stop after these iterations' metrics, or None. A privileged reason begins with
    `PRIVILEGED`."""
    if not rows:
        return None
    last, window = rows[-1], config.window
    if config.kl_clone is not None and last["kl_clone"] > config.kl_clone:
        return f"KL from the clone {last['kl_clone']:.3g} > {config.kl_clone:g}"
    if config.uncertainty is not None and len(rows) >= 2 * window:
        unsure = [_unsure(row) for row in rows]
        ratio = np.mean(unsure[-window:]) / max(np.mean(unsure[:window]), 1e-9)
        if ratio > config.uncertainty:
            return f"reward uncertainty {ratio:.2f} times its start > {config.uncertainty:g}"
    if config.privileged_rank is not None:
        rho = divergence(rows, window)[-1]
        if rho < config.privileged_rank:
            return (
                f"{PRIVILEGED}rank correlation of reward and success {rho:.2f} < "
                f"{config.privileged_rank:g}"
            )
    return None


def _unsure(row: Mapping[str, float]) -> float:
    if "reward/uncertainty" not in row:
        raise UserError("refine.stop.uncertainty needs a reward that says how sure it is (a model)")
    return row["reward/uncertainty"]
