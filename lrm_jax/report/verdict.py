"""The verdict of a run in words and figures, from its `summary.json`."""

import math
from collections.abc import Mapping
from typing import Any

from lrm_jax.report.blocks import duration, number, p_value, percent, points

SIGNIFICANCE = 0.01
_COUNTERS = {
    "episodes": "evaluation episodes",
    "iterations": "PPO iterations",
    "env_steps": "environment steps",
    "vlm_scores": "VLM scores",
    "invalid_scores": "invalid scores",
    "wall_seconds": "wall time",
}


def verdict(summary: Mapping[str, Any]) -> dict | None:
    """What a refinement run showed, or None if the summary holds no base and refined success.

    Returns: {"state": "better" | "worse" | "open", "headline", "detail", "tiles": [{"name",
    "value", "low", "high", "text"}], "counters": [(name, text)]}. "better" and "worse" need
    p < 0.01 in McNemar's test on the paired episodes; everything else is open.
    """
    base, refined = _share(summary, "base_success"), _share(summary, "refined_success")
    if base is None or refined is None:
        return None
    p = summary.get("mcnemar_p")
    p = None if p is None or math.isnan(p) else float(p)
    gain = refined - base
    sure = p is not None and p < SIGNIFICANCE
    if sure and gain > 0:
        state, headline = "better", f"The refined policy is better: {points(gain)}"
    elif sure and gain < 0:
        state, headline = "worse", f"The refined policy is worse: {points(gain)}"
    else:
        state, headline = "open", f"No difference shown ({points(gain)})"
    episodes = summary.get("episodes")
    detail = f"{percent(base)} of the episodes succeed before refinement, {percent(refined)} after"
    if episodes is not None:
        detail += f" ({number(episodes)} paired episodes from the same reset states)"
    detail += f". McNemar's exact test: {p_value(p)}."
    if not summary.get("kept", True):
        trained = summary["trained"]
        detail += (
            f" The reward did not rise during refinement (p = {summary['reward_rise_p']:.2g}), so "
            "the cloned policy is kept; the refined one succeeds in "
            f"{percent(trained['refined_success'])} ({points(trained['gain'])})."
        )
    tiles = [
        _tile("base policy", base, summary.get("wilson_base")),
        _tile("refined policy", refined, summary.get("wilson_refined")),
    ]
    oracle, start = (_share(summary, f"oracle_{name}") for name in ("success", "base"))
    if oracle is not None:
        name = "oracle (privileged reward)"
        if start not in (None, base):
            name += f", recorded on another clone, {percent(start)}"
        elif oracle > base:
            recovered = percent(gain / (oracle - base), digits=0)
            detail += (
                f" The learned reward recovers {recovered} of the gain that the simulator's own "
                "reward gives."
            )
        tiles.append(_tile(name, oracle, summary.get("wilson_oracle")))
    return {
        "state": state,
        "headline": headline,
        "detail": detail,
        "tiles": tiles,
        "counters": counters(summary),
    }


def counters(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The known counters of a summary as (name, text)."""
    shown = []
    for key, name in _COUNTERS.items():
        value = summary.get(key)
        if value is None:
            continue
        text = duration(value) if key == "wall_seconds" else number(value)
        if key == "invalid_scores" and value and summary.get("vlm_scores"):
            text += f" ({100 * value / summary['vlm_scores']:.2g} %)"
        shown.append((name, text))
    return shown


def _share(summary, key) -> float | None:
    value = summary.get(key)
    return None if value is None or math.isnan(value) else float(value)


def _tile(name, value, interval) -> dict:
    low, high = interval if interval is not None else (None, None)
    text = "" if low is None else f"{100 * low:.1f} – {100 * high:.1f} %"
    return {
        "name": name,
        "value": percent(value),
        "share": value,
        "low": low,
        "high": high,
        "text": text,
    }
