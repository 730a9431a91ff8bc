"""Calibration: temperatures and monotone maps that make scores mean what they say.

A temperature divides the log-probabilities of a head's answers (Guo et al. 2017, arXiv:1706.04599);
the order of answers stays. A monotone map, fitted by isotonic regression (Zadrozny and Elkan 2002),
then corrects the value that is read from the distribution. Both are fitted on validation episodes
and lie in the model's `reward_heads.json` under "calibration".

A comparison gets a temperature only: it reverses exactly when its frames change places, which a
monotone map fitted to noisy data would not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from lrm_jax.rewards.scoring import Distribution
from lrm_jax.run.errors import UserError

ENTRY = "calibration"
# Temperatures outside say that a head knows nothing, or was never wrong: not a matter of scale.
LEAST, MOST = 0.05, 20.0
_TINY = np.finfo(np.float32).tiny


@dataclasses.dataclass(frozen=True)
class HeadCalibration:
    """How one head's answers are corrected.

    temperature: of the answers' log-probabilities; 1 leaves them. knots: ((value, corrected), ...)
    in ascending order, straight lines between and constants outside; () leaves values. With knots a
    value is no longer the mean of its distribution.
    """

    temperature: float = 1.0
    knots: tuple[tuple[float, float], ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "knots", tuple(tuple(map(float, k)) for k in self.knots))
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(f"temperature is {self.temperature}: it must be above 0")
        if any(len(k) != 2 or not all(map(math.isfinite, k)) for k in self.knots):
            raise UserError("knots must be pairs of finite numbers")
        x, y = (np.array([k[i] for k in self.knots]) for i in (0, 1))
        if (np.diff(x) <= 0).any() or (np.diff(y) < 0).any():
            raise UserError("knots must ascend, and what they map to must not descend")

    def distribution(self, answers: Distribution) -> Distribution:
        """The distribution at this temperature; probability [..., A]."""
        if self.temperature == 1.0:
            return answers
        scaled = jnp.log(jnp.maximum(answers.probability, _TINY)) / self.temperature
        probability = jnp.where(answers.valid[..., None], jax.nn.softmax(scaled, -1), jnp.nan)
        return Distribution(probability, answers.valid)

    def value(self, value: jax.Array) -> jax.Array:
        """The corrected value, float32 [...]; NaN stays NaN."""
        if not self.knots:
            return value
        x, y = (jnp.array([k[i] for k in self.knots], jnp.float32) for i in (0, 1))
        return jnp.where(jnp.isnan(value), jnp.nan, jnp.interp(value, x, y))


def fit_temperature(probability: Any, target: Any) -> float:
    """The temperature at which answers' cross-entropy with `target` is least.

    Args:
      probability: [n, A], distributions over the answers.
      target: [n, A], what they should have been; rows sum to 1.
    Raises:
      UserError: no rows, or rows that are not distributions.

    The cross-entropy is convex in 1 / temperature (a log-sum-exp less a linear term).
    """
    probability, target = (np.asarray(x, np.float64) for x in (probability, target))
    if probability.ndim != 2 or probability.shape != target.shape or not len(probability):
        raise UserError(
            f"calibration needs answers and targets [n, A] with n > 0, not {probability.shape} and "
            f"{target.shape}"
        )
    for x in (probability, target):  # NaN fails this comparison too
        if not np.allclose(x.sum(-1), 1, atol=1e-3, rtol=0) or (x < 0).any():
            raise UserError("calibration: each row must be probabilities that sum to 1")
    logs = np.log(np.maximum(probability, _TINY))
    gain = float((target * logs).sum(-1).mean())

    def cross_entropy(inverse: float) -> float:
        scaled = logs * inverse
        top = scaled.max(-1, keepdims=True)
        return float((top[:, 0] + np.log(np.exp(scaled - top).sum(-1))).mean() - inverse * gain)

    found = optimize.minimize_scalar(
        cross_entropy, bounds=(1 / MOST, 1 / LEAST), method="bounded", options={"xatol": 1e-6}
    )
    return 1 / float(found.x)


def fit_knots(values: Any, targets: Any) -> tuple[tuple[float, float], ...]:
    """The monotone map of least squared error from `values` [n] to `targets` [n], as knots.

    Equal values count as one with their mean target. UserError without values, or if some are not
    finite.
    """
    values, targets = (np.asarray(x, np.float64).ravel() for x in (values, targets))
    if not len(values) or len(values) != len(targets):
        raise UserError(f"calibration: {len(values)} values but {len(targets)} targets")
    if not (np.isfinite(values).all() and np.isfinite(targets).all()):
        raise UserError("calibration: values and targets must be finite")
    x, group, count = np.unique(values, return_inverse=True, return_counts=True)
    y = optimize.isotonic_regression(np.bincount(group, targets) / count, weights=count).x
    # A constant stretch needs its two ends only.
    inner = (y[1:-1] == y[:-2]) & (y[1:-1] == y[2:])
    keep = np.concatenate([[True], ~inner, [True]])[: len(x)] if len(x) > 1 else np.array([True])
    return tuple(zip(x[keep].tolist(), y[keep].tolist(), strict=True))


def to_plain(calibration: Mapping[str, HeadCalibration]) -> dict[str, Any]:
    """The entry of `reward_heads.json`."""
    return {name: dataclasses.asdict(c) for name, c in calibration.items()}


def from_plain(raw: Any, heads: Mapping[str, Any], where: str) -> dict[str, HeadCalibration]:
    """Reads what `to_plain` wrote (None: nothing); `heads` are the model's by name. UserError names
    the file `where` and the head."""
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise UserError(f"{where}: {ENTRY} must be an object of heads")
    found = {}
    for name, entry in raw.items():
        if name not in heads:
            raise UserError(f"{where}: {ENTRY}: there is no head {name!r}")
        try:
            found[name] = HeadCalibration(**entry)
            check(found[name], heads[name])
        except (TypeError, ValueError, UserError) as error:
            raise UserError(f"{where}: {ENTRY} of head {name!r}: {error}") from error
    return found


def check(calibration: HeadCalibration, head: Any) -> None:
    """UserError if a comparison has knots."""
    if calibration.knots and "previous" in head.images:
        raise UserError("a comparison takes a temperature only, so that it stays antisymmetric")
