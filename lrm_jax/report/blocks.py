"""Tables of a report as plain dicts, for HTML and markdown alike.

A table is {"columns": [str], "rows": [[cell]], "note": str, "shares": [float]}; the last two are
optional, `shares` in [0, 1] draws a bar in each row. Cells are strings or numbers; None and NaN
stand for "no value" and show as a dash.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lrm_jax.evaluation import open_loop as _open_loop
from lrm_jax.evaluation import stats, tables

Table = dict
_NBSP = "\u00a0"  # keeps a number and its unit on one line


def number(value) -> str:
    """A cell as text: dash for None and NaN, thousands separated, floats to 3-4 digits."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
            return f"{value:.2e}"
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3f}"
    return str(value)


def percent(value, digits: int = 1) -> str:
    """A share as "48.0 %", a dash for None and NaN."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}{_NBSP}%"


def p_value(p) -> str:
    """ "p = 0.013" or "p < 0.0001"; a dash for None and NaN."""
    if p is None or math.isnan(p):
        return "–"
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def duration(seconds: float) -> str:
    """ "12 min 05 s", "48 s", "0.35 s"; hours above 100 minutes."""
    if seconds is None or math.isnan(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def minutes(seconds: Mapping[str, float], wall_seconds: float | None = None) -> Table:
    """Where the time went: stage, time, share, largest first.

    With `wall_seconds` the shares are of it and what no stage accounts for has a row of its own.
    """
    rest = 0.0 if wall_seconds is None else wall_seconds - sum(seconds.values())
    total = sum(seconds.values()) if wall_seconds is None else wall_seconds
    entries = sorted(seconds.items(), key=lambda item: -item[1])
    if rest > 0:
        entries.append(("everything else", rest))
    shares = [s / total if total > 0 else 0.0 for _, s in entries]
    return {
        "columns": ["stage", "time", "share"],
        "rows": [
            [name, duration(s), percent(share)]
            for (name, s), share in zip(entries, shares, strict=True)
        ],
        "shares": [min(max(share, 0.0), 1.0) for share in shares],
        "note": f"Total {duration(total)}.",
    }


def success(arms: Mapping[str, Sequence[bool]], baseline: str) -> Table:
    """Success of arms evaluated on the same episodes: rate, Wilson interval, paired difference.

    Args:
      arms: name -> bool [episodes], in the same order of reset states for all.
      baseline: the arm that the others are compared with.

    Raises: ValueError for an unknown baseline or arms of different lengths.
    """
    if baseline not in arms:
        raise ValueError(f"no arm {baseline!r} among {list(arms)}")
    base = np.asarray(arms[baseline], dtype=bool)
    rows = []
    for name, outcome in arms.items():
        outcome = np.asarray(outcome, dtype=bool)
        k, n = int(outcome.sum()), outcome.size
        low, high = stats.wilson(k, n)
        test = stats.mcnemar(outcome, base)
        difference, p = "", ""
        if name != baseline:
            difference = points((test.only_a - test.only_b) / n) if n else "–"
            p = p_value(test.pvalue)
        rate = percent(k / n if n else None)
        interval = f"{100 * low:.1f} – {100 * high:.1f} %"
        rows.append([name, rate, interval, f"{k} / {n}", difference, p])
    return {
        "columns": [
            "arm", "success", "95 % interval", "episodes", f"against {baseline}", "McNemar",
        ],
        "rows": rows,
        "note": "Same reset states for all arms; Wilson intervals; exact McNemar test on pairs.",
    }  # fmt: skip


def points(difference: float) -> str:
    """A difference of shares in percentage points, signed: "+38.1 points"."""
    return f"{100 * difference:+.1f} points".replace("-", "−")


def open_loop(result: Mapping) -> Table:
    """The table of `evaluation.open_loop.open_loop_table`."""
    columns, rows = _open_loop.open_loop_rows(result)
    return {"columns": columns, "rows": rows, "note": _open_loop.open_loop_note(result)}


def seeds(summaries: Mapping[str, Mapping]) -> Table:
    """One row for each seed's `summary.json` (the quickstart's keys), by seed name."""
    rows = []
    for seed, s in summaries.items():
        gain = s["refined_success"] - s["base_success"]
        rows.append(
            [
                seed,
                percent(s["base_success"]),
                percent(s["refined_success"]),
                points(gain),
                p_value(s["mcnemar_p"]),
                percent(s.get("oracle_success")),
                s["episodes"],
                duration(s["wall_seconds"]),
            ]
        )
    won = sum(
        s["refined_success"] > s["base_success"] and s["mcnemar_p"] < 0.01
        for s in summaries.values()
    )
    return {
        "columns": ["seed", "base", "refined", "gain", "McNemar", "oracle", "episodes", "time"],
        "rows": rows,
        "note": f"Better than base at p < 0.01 on {won} of {len(rows)} seeds.",
    }


def markdown(table: Mapping) -> str:
    """A table as GitHub markdown with its note below."""
    rows = [[number(cell) for cell in row] for row in table["rows"]]
    text = tables.markdown(table["columns"], rows)
    return f"{text}\n\n{table['note']}" if table.get("note") else text
