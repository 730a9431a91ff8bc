"""Colours and drawing defaults of all figures: one place, light and dark, colour-blind safe.

Hues are those of Okabe and Ito (2008), lightened on dark ground. A head and an arm of an
experiment have the same colour in every figure; controls are also dashed, so that nothing hangs on
colour alone.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure

THEMES = ("light", "dark")


@dataclass(frozen=True)
class Theme:
    """Colours as hex strings: ground, text, faint text, lines of the grid, and named hues."""

    ground: str
    ink: str
    faint: str
    grid: str
    hues: dict[str, str]


LIGHT = Theme(
    ground="#ffffff",
    ink="#1c2024",
    faint="#60666e",
    grid="#e4e7ea",
    hues={
        "blue": "#0072b2",
        "vermillion": "#d55e00",
        "green": "#008a64",
        "purple": "#b3588d",
        "amber": "#b57a00",
        "sky": "#2f8fc4",
        "grey": "#747b84",
    },
)
DARK = Theme(
    ground="#14181c",
    ink="#e8eaed",
    faint="#9aa2ab",
    grid="#2b3138",
    hues={
        "blue": "#56b4e9",
        "vermillion": "#ff8f4a",
        "green": "#35c79b",
        "purple": "#e39bc4",
        "amber": "#f0b429",
        "sky": "#9ad4f5",
        "grey": "#a3abb5",
    },
)

_HEADS = {
    "progress": "blue",
    "completion": "vermillion",
    "contrastive": "green",
    "tri": "purple",
}
_ARMS = {
    "refined": "blue",
    "base": "grey",
    "oracle": "amber",
    "constant": "purple",
    "time ramp": "green",
    "ramp": "green",
}
_CONTROLS = ("constant", "time ramp", "ramp", "wrong sentence", "shuffled", "untrained")
_CYCLE = ("blue", "vermillion", "green", "purple", "amber", "sky", "grey")


def theme(name: str) -> Theme:
    """The theme called "light" or "dark"; ValueError otherwise."""
    if name not in THEMES:
        raise ValueError(f"theme must be one of {THEMES}, got {name!r}")
    return LIGHT if name == "light" else DARK


def colours(names, look: Theme) -> dict[str, str]:
    """A colour for each name: the fixed one of a known head or arm, else the next free hue."""
    chosen, free = {}, list(_CYCLE)
    for name in names:
        key = str(name).lower()
        hue = _HEADS.get(key) or _ARMS.get(key)
        if hue:
            chosen[name] = hue
            if hue in free:
                free.remove(hue)
    for name in names:
        if name not in chosen:
            chosen[name] = free.pop(0) if free else _CYCLE[len(chosen) % len(_CYCLE)]
    return {name: look.hues[hue] for name, hue in chosen.items()}


def dashes(name: str):
    """Line style of an arm: controls are dashed."""
    return (0, (4, 2)) if str(name).lower() in _CONTROLS else "-"


@contextlib.contextmanager
def drawing(look: Theme) -> Iterator[None]:
    """Matplotlib defaults of the house inside the block, whatever the user's own settings are."""
    settings = {
        "font.family": "sans-serif",
        # Fonts of other scripts serve as fallback where the machine has them.
        "font.sans-serif": _fonts(),
        "font.size": 10,
        "text.color": look.ink,
        "text.usetex": False,
        "text.parse_math": False,  # a task sentence may hold a dollar sign
        "axes.edgecolor": look.faint,
        "axes.facecolor": look.ground,
        "axes.labelcolor": look.faint,
        "axes.labelsize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.titlelocation": "left",
        "axes.titlesize": 12,
        "axes.titleweight": "bold",
        "axes.titlecolor": look.ink,
        "axes.titlepad": 12,
        "grid.color": look.grid,
        "grid.linewidth": 0.8,
        "xtick.color": look.faint,
        "ytick.color": look.faint,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
        "lines.linewidth": 2.0,
        "lines.solid_capstyle": "round",
        "figure.facecolor": look.ground,
        "savefig.facecolor": look.ground,
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


_OTHER_SCRIPTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Source Han Sans",
    "WenQuanYi Zen Hei",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Arial Unicode MS",
)


def _fonts() -> list[str]:
    from matplotlib import font_manager

    present = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _OTHER_SCRIPTS if name in present)]


def figure(width: float, height: float) -> Figure:
    """A figure of width x height inches that belongs to no window (no pyplot, thread safe)."""
    return Figure(figsize=(width, height), layout="constrained")
