"""Figures as PNG bytes, one message each.

Every function takes plain arrays and a `theme` ("light" or "dark"). NaN is a score that could not
be computed: it is drawn as a gap, and a lone valid point between two gaps as a dot.
"""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lrm_jax.evaluation import metrics, stats
from lrm_jax.report import style

DPI = 160
HEAD_RANGES = {"contrastive": (-1.0, 1.0)}  # of all heads; the others are in [0, 1]


def png(figure, dpi: int = DPI) -> bytes:
    """The figure as PNG bytes, without a time stamp: the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def lone_points(values: np.ndarray) -> np.ndarray:
    """Bool [T]: valid entries with no valid neighbour, which no line would show."""
    ok = np.isfinite(values)
    before, after = np.append(False, ok[:-1]), np.append(ok[1:], False)
    return ok & ~before & ~after


def learning_curves(
    x: Sequence[float],
    arms: Mapping[str, Mapping],
    *,
    title: str = "",
    x_label: str = "PPO iteration",
    y_label: str = "Success rate",
    percent: bool = True,
    reference: Mapping[str, float] | None = None,
    theme: str = "light",
) -> bytes:
    """Curves of several arms with intervals, named at their ends.

    Args:
      x: [K], shared by the arms.
      arms: name -> {"mean": [K]} with optional "low" and "high" [K] (an interval, drawn as a band)
        and "runs" [S, K] (single seeds, drawn thin). Without "mean" the mean over runs is drawn.
      percent: the values are shares in [0, 1] and the axis shows percent.
      reference: name -> height of thin horizontal lines ("base policy": 0.48).
    """
    if not arms:
        raise ValueError("need at least one arm")
    look = style.theme(theme)
    colour = style.colours(list(arms), look)
    x = np.asarray(x, dtype=np.float64)
    with style.drawing(look):
        figure = style.figure(7.2, 3.9)
        axes = figure.add_subplot()
        ends = []
        for name, arm in arms.items():
            runs = arm.get("runs")
            runs = None if runs is None else np.asarray(runs, dtype=np.float64)
            mean = arm.get("mean")
            if mean is None:
                if runs is None:
                    raise ValueError(f"arm {name!r} has neither 'mean' nor 'runs'")
                mean = runs.mean(axis=0)
            mean = np.asarray(mean, dtype=np.float64)
            if mean.shape != x.shape:
                raise ValueError(f"arm {name!r} has {mean.size} points, x has {x.size}")
            for run in () if runs is None else runs:
                axes.plot(x, run, color=colour[name], alpha=0.3, linewidth=0.8)
            if arm.get("low") is not None and arm.get("high") is not None:
                low, high = (np.asarray(arm[k], dtype=np.float64) for k in ("low", "high"))
                axes.fill_between(
                    x, low, high, np.isfinite(mean), color=colour[name], alpha=0.16, linewidth=0
                )
            _line(axes, x, mean, colour[name], linestyle=style.dashes(name))
            last = np.flatnonzero(np.isfinite(mean))
            if last.size:
                value = mean[last[-1]]
                shown = f"{100 * value:.0f} %" if percent else f"{value:.3g}"
                ends.append((x[last[-1]], value, f"{name}  {shown}", colour[name]))
        for name, height in (reference or {}).items():
            axes.axhline(height, color=look.faint, linewidth=1, linestyle=(0, (1, 2)))
            shown = f"{100 * height:.0f} %" if percent else f"{height:.3g}"
            ends.append((x[-1] if x.size else 0, height, f"{name}  {shown}", look.faint))
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
            axes.set_ylim(0, max([1.0, *(e[1] for e in ends)]))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.01)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.set_title(title)
        _end_labels(figure, axes, ends)
        return png(figure)


def proxy_and_oracle(
    x: Sequence[float],
    proxy: Sequence[Sequence[float]],
    oracle: Sequence[Sequence[float]],
    *,
    apart: Sequence[float] | None = None,
    title: str = "",
    theme: str = "light",
) -> bytes:
    """What the learner is paid, above, and what the simulator says it is worth, below: where the
    first rises and the second falls, the reward is being over-optimised.

    Args:
      x: [K] iterations. proxy, oracle: [S, K] of S runs, return by the learned reward and success
        rate; NaN where a run had stopped. Thin lines are runs, the thick one is their mean.
      apart: [K] rank correlation of the two over a window; iterations where it is negative are
        shaded.
    """
    proxy, oracle = (np.asarray(v, np.float64) for v in (proxy, oracle))
    x = np.asarray(x, np.float64)
    if proxy.shape != oracle.shape or proxy.ndim != 2 or proxy.shape[1] != x.size:
        raise ValueError(f"need [runs, {x.size}] twice, got {proxy.shape} and {oracle.shape}")
    look = style.theme(theme)
    with style.drawing(look):
        figure = style.figure(7.2, 4.2)
        rows = figure.subplots(2, 1, sharex=True)
        named = (("reward", proxy, "blue"), ("success", oracle, "amber"))
        for axes, (label, runs, hue) in zip(rows, named, strict=True):
            colour = look.hues[hue]
            if apart is not None:
                _gaps(axes, x, np.where(np.asarray(apart) < 0, np.nan, 1.0), 1.0, look)
            for run in runs if len(runs) > 1 else ():
                axes.plot(x, run, color=colour, alpha=0.3, linewidth=0.8)
            some = np.isfinite(runs).any(0)
            mean = np.full(x.size, np.nan)
            mean[some] = np.nanmean(runs[:, some], axis=0)
            _line(axes, x, mean, colour)
            axes.set_ylabel(label, color=colour, fontweight="bold")
        rows[1].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        if x.size > 1:  # the whole run, even where it ends early
            rows[1].set_xlim(x[0] - 0.2, x[-1] + 0.2)
        rows[0].set_title(title)
        rows[1].set_xlabel("PPO iteration")
        rows[1].xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.align_ylabels(rows)
        return png(figure)


def reward_components(
    scores: Mapping[str, Sequence[float]],
    *,
    seconds_per_frame: float | None = None,
    target: Sequence[float] | None = None,
    events: Mapping[str, float] | None = None,
    title: str = "",
    theme: str = "light",
) -> bytes:
    """What each head said over an episode: one row per head on a common time axis.

    Args:
      scores: head -> [T]; contrastive is drawn over [-1, 1], all others over [0, 1]. Frames whose
        score is NaN are gaps on a shaded ground.
      seconds_per_frame: time axis in seconds; None: in frames.
      target: true progress [T], drawn thin behind the progress row (simulated episodes only).
      events: label -> frame of vertical marks ("success": 57).
    """
    if not scores:
        raise ValueError("need the scores of at least one head")
    look = style.theme(theme)
    colour = style.colours(list(scores), look)
    scale = 1.0 if seconds_per_frame is None else float(seconds_per_frame)
    frames = {len(v) for v in scores.values()}
    if len(frames) != 1:
        raise ValueError(f"heads differ in length: {sorted(frames)}")
    time = np.arange(frames.pop()) * scale
    with style.drawing(look):
        figure = style.figure(7.2, 0.75 + 1.05 * len(scores))
        rows = figure.subplots(len(scores), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (head, values) in zip(rows, scores.items(), strict=True):
            values = np.asarray(values, dtype=np.float64)
            low, high = HEAD_RANGES.get(head, (0.0, 1.0))
            if target is not None and head == "progress":
                axes.plot(time, target, color=look.faint, linewidth=1, linestyle=(0, (1, 1.5)))
                axes.annotate(
                    "truth", (time[-1], target[-1]), (4, 0), textcoords="offset points",
                    color=look.faint, fontsize=8, va="center", annotation_clip=False,
                )  # fmt: skip
            _gaps(axes, time, values, scale, look)
            _line(axes, time, values, colour[head])
            axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
            axes.set_yticks([low, (low + high) / 2, high])
            axes.set_ylabel(
                head, rotation=0, ha="right", va="center", color=colour[head], fontweight="bold"
            )
            for label, frame in (events or {}).items():
                axes.axvline(frame * scale, color=look.ink, linewidth=1)
                if axes is rows[0]:
                    axes.annotate(
                        label, (frame * scale, 1.0), (0, 3), xycoords=("data", "axes fraction"),
                        textcoords="offset points", ha="center", fontsize=8, color=look.ink,
                        annotation_clip=False,
                    )  # fmt: skip
            if axes is not rows[-1]:
                axes.tick_params(axis="x", length=0)
                axes.spines["bottom"].set_visible(False)
        rows[0].set_title(title, pad=16 if events else 10)
        rows[-1].set_xlabel("time (frames)" if seconds_per_frame is None else "time (s)")
        if time.size > 1:
            rows[-1].set_xlim(0, time[-1])
        if seconds_per_frame is None:
            rows[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.align_ylabels(rows)
        return png(figure)


def reliability(
    probabilities: Sequence[float],
    labels: Sequence[bool],
    *,
    bins: int = 10,
    title: str = "",
    theme: str = "light",
) -> bytes:
    """Reliability diagram of P(yes) [n] with Wilson intervals, and how often each value occurs."""
    r = metrics.reliability(probabilities, labels, bins)
    look = style.theme(theme)
    with style.drawing(look):
        figure = style.figure(4.6, 5.0)
        axes, counts = figure.subplots(
            2, 1, sharex=True, gridspec_kw={"height_ratios": [4, 1], "hspace": 0.05}
        )
        axes.plot([0, 1], [0, 1], color=look.faint, linewidth=1, linestyle=(0, (1, 2)))
        axes.annotate(
            "calibrated", (0.02, 0.05), rotation=45, color=look.faint, fontsize=8,
            rotation_mode="anchor", transform_rotates_text=True,
        )  # fmt: skip
        if r.count.size:
            ends = np.array(
                [
                    stats.wilson(round(f * c), int(c))
                    for f, c in zip(r.frequency, r.count, strict=True)
                ]
            )
            errors = np.abs(ends.T - r.frequency)
            blue = look.hues["blue"]
            axes.errorbar(
                r.confidence, r.frequency, errors, color=blue, marker="o", markersize=5,
                linewidth=1.5, elinewidth=1.2, capsize=0,
            )  # fmt: skip
            height, edges = np.histogram(np.asarray(probabilities, float), bins, (0, 1))
            counts.bar(edges[:-1], height, 1 / bins, align="edge", color=blue, alpha=0.35)
            figures = (
                f"ECE {metrics.ece(probabilities, labels, bins):.3f}\n"
                f"Brier {metrics.brier(probabilities, labels):.3f}\n"
                f"n = {int(r.count.sum()):,}"
            )
            axes.text(0.97, 0.04, figures, transform=axes.transAxes, ha="right", color=look.ink)
        axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="observed frequency")
        axes.set_title(title)
        counts.set(xlabel="predicted probability", ylabel="count")
        counts.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        return png(figure)


def success_bars(
    arms: Mapping[str, tuple[int, int]],
    *,
    confidence: float = 0.95,
    title: str = "",
    x_label: str = "Success rate",
    theme: str = "light",
) -> bytes:
    """Success rates of arms (name -> (successes, episodes)) as bars with Wilson intervals."""
    if not arms:
        raise ValueError("need at least one arm")
    look = style.theme(theme)
    colour = style.colours(list(arms), look)
    with style.drawing(look):
        figure = style.figure(7.2, 0.95 + 0.52 * len(arms))
        axes = figure.add_subplot()
        for row, (name, (k, n)) in enumerate(arms.items()):
            low, high = stats.wilson(k, n, confidence)
            rate = k / n if n else float("nan")
            axes.barh(row, rate, height=0.5, color=colour[name], alpha=0.85)
            axes.plot([low, high], [row, row], color=look.ink, linewidth=1.6)
            text = f"{100 * rate:.1f} %   ({k} of {n})" if n else "no episodes"
            axes.text(1.03, row, text, va="center", color=look.ink)
        axes.set_yticks(range(len(arms)), list(arms), color=look.ink)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"{x_label} (line: {100 * confidence:g} % Wilson interval)")
        axes.set_title(title)
        return png(figure)


def _line(axes, x, y, colour, linestyle="-") -> None:
    y = np.where(np.isfinite(y), y, np.nan)
    axes.plot(x, y, color=colour, linestyle=linestyle)
    alone = lone_points(y)
    axes.plot(x[alone], y[alone], "o", color=colour, markersize=3.5)


def _gaps(axes, time, values, scale, look) -> None:
    """Shades the frames that have no valid score."""
    bad = np.append(~np.isfinite(values), False).astype(int)
    edges = np.flatnonzero(np.diff(np.append(0, bad)))
    origin = time[0] if len(time) else 0.0
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        axes.axvspan(
            origin + (start - 0.5) * scale, origin + (stop - 0.5) * scale, color=look.grid,
            linewidth=0, zorder=0,
        )  # fmt: skip


def _end_labels(figure, axes, ends) -> None:
    """Names at the right end of lines, pushed apart where they would overlap."""
    if not ends:
        return
    low, high = axes.get_ylim()
    height = axes.get_position().height * figure.get_figheight()
    gap = (high - low) * 0.19 / max(height, 0.5)  # a line of text is about 0.19 inches high
    order = sorted(range(len(ends)), key=lambda i: ends[i][1])
    places = spread([ends[i][1] for i in order], gap, low, high)
    for i, y in zip(order, places, strict=True):
        x, value, text, colour = ends[i]
        axes.annotate(
            text, (x, value), (1.02, y), textcoords=axes.get_yaxis_transform(), va="center",
            color=colour, fontsize=9.5, fontweight="bold", annotation_clip=False,
        )  # fmt: skip


def spread(values: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """Places [n] for ascending values, at least `gap` apart and near them, inside [low, high] as
    far as there is room."""
    placed = np.array(values, dtype=np.float64)
    for _ in range(200):
        short = gap - np.diff(placed)
        if placed.size < 2 or short.max() <= 1e-9:
            break
        push = np.maximum(short, 0) / 2
        placed[1:] += push
        placed[:-1] -= push
    if placed.size:
        placed -= max(0.0, placed[-1] - high)
        placed += max(0.0, low - placed[0])
    return placed
