"""A film strip: a few frames of an episode with the time and the scores under each."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from lrm_jax.report import canvas, style
from lrm_jax.report.plots import HEAD_RANGES
from lrm_jax.report.video import upscale

_GAP = 8
_ROW = 24


def film_strip(
    frames: np.ndarray,
    values: Mapping[str, Sequence[float]] | None = None,
    *,
    count: int = 8,
    sentence: str = "",
    label: str = "",
    seconds_per_frame: float | None = None,
    picture: int = 128,
    theme: str = "light",
) -> bytes:
    """PNG bytes of `count` evenly spaced frames, the first and the last among them.

    Args:
      frames: uint8 [T, H, W, 3]; with T < count all are shown.
      values: name -> [T], shown under each picture as a number and a bar over the head's range; NaN
        (no valid score) as a dash without a bar.
      sentence, label: above the strip.
      seconds_per_frame: time stamps in seconds; None: frame numbers.
      picture: pixels that the shorter side of a picture reaches at least.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(f"frames must be uint8 [T >= 1, H, W, 3], got {frames.shape}")
    if count < 1:
        raise ValueError(f"count must be >= 1, got {count}")
    values = {k: np.asarray(v, dtype=np.float64) for k, v in (values or {}).items()}
    for name, series in values.items():
        if series.shape != frames.shape[:1]:
            raise ValueError(f"{name!r} has shape {series.shape} for {len(frames)} frames")
    look = style.theme(theme)
    colour = style.colours(list(values), look)
    chosen = np.unique(
        np.rint(np.linspace(0, len(frames) - 1, min(count, len(frames)))).astype(int)
    )
    pictures = upscale(frames[chosen], picture)
    height, width = pictures.shape[1:3]

    bold, plain = canvas.font(14, bold=True), canvas.font(13)
    names_width = max([int(bold.getlength(n)) + 14 for n in values], default=0)
    columns = len(chosen) * (width + _GAP) - _GAP
    total_width = 2 * _GAP + names_width + columns
    text = canvas.wrap(sentence, total_width - 2 * _GAP, canvas.font(15), most=2)
    top = _GAP + (24 if label else 0) + 21 * len(text)
    total_height = top + height + 22 + _ROW * len(values) + _GAP
    page = canvas.blank(total_width, total_height, look.ground)
    draw = ImageDraw.Draw(page)
    y = _GAP
    if label:
        draw.text((_GAP, y), label, look.ink, canvas.font(16, bold=True))
        y += 24
    for line in text:
        draw.text((_GAP, y), line, look.faint, canvas.font(15))
        y += 21
    for row, name in enumerate(values):
        place = (_GAP, top + height + 22 + (row + 0.5) * _ROW)
        draw.text(place, name, colour[name], bold, anchor="lm")
    for column, t in enumerate(chosen):
        x = _GAP + names_width + column * (width + _GAP)
        page.paste(Image.fromarray(pictures[column]), (x, top))
        stamp = f"frame {t}" if seconds_per_frame is None else f"{t * seconds_per_frame:.1f} s"
        draw.text((x, top + height + 12), stamp, look.faint, plain, anchor="lm")
        for row, (name, series) in enumerate(values.items()):
            centre = top + height + 22 + (row + 0.5) * _ROW
            _value(draw, x, centre, width, name, series[t], colour[name], look)
    return _png(page)


def _value(draw, x, y, width, name, value, colour, look) -> None:
    text = f"{value:.2f}".replace("-", "−") if np.isfinite(value) else "–"
    draw.text((x, y), text, look.ink, canvas.font(13), anchor="lm")
    low, high = HEAD_RANGES.get(name, (0.0, 1.0))
    start, end = x + 47, x + width - 1

    def place(v):
        return start + (end - start) * min(max((v - low) / (high - low), 0.0), 1.0)

    draw.rectangle([start, y - 4, end, y + 4], fill=look.grid)
    if np.isfinite(value):
        ends = sorted((place(0.0), place(value)))
        draw.rectangle([ends[0], y - 4, ends[1], y + 4], fill=colour)


def _png(image: Image.Image) -> bytes:

    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return buffer.getvalue()
