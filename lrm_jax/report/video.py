"""Episodes as mp4: the frames, the sentence, and what each head says under a moving cursor.

A clip's page is, from top to bottom: its label and sentence, the picture upscaled by a whole factor
without smoothing, and one row per curve with its name, its line (what is still to come stands pale)
and its value at the cursor. Several clips stand side by side.
"""

import io
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from lrm_jax.report import canvas, style
from lrm_jax.report.plots import HEAD_RANGES, lone_points
from lrm_jax.run import atomic

PICTURE = 320  # pixels that the shorter side of the picture reaches at least
_ROW = 44  # pixels, height of a curve
_MARGIN = 14


@dataclass(frozen=True)
class Clip:
    """One episode to show.

    Args:
      frames: uint8 [T, H, W, 3], T >= 1.
      sentence: the task, any language.
      curves: name -> [T] values; contrastive over [-1, 1], others over [0, 1], NaN = invalid.
      label: what the clip is ("before refinement"), in bold above the sentence.
    """

    frames: np.ndarray
    sentence: str = ""
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    label: str = ""


def overlay_video(
    clips: Clip | Sequence[Clip],
    path: str | os.PathLike | None = None,
    *,
    fps: float = 10.0,
    theme: str = "light",
    picture: int = PICTURE,
) -> bytes:
    """Clips side by side as mp4 bytes, also written to `path` if given (whole or not at all).

    The longest clip sets the length; shorter ones stay at their last frame.
    """
    data = encode_mp4(overlay_frames(clips, theme=theme, picture=picture), fps)
    if path is not None:
        atomic.write_bytes(Path(path), data)
    return data


def overlay_frames(clips: Clip | Sequence[Clip], *, theme: str = "light", picture: int = PICTURE):
    """The frames of `overlay_video` one by one: uint8 [height, width, 3], both sides even."""
    clips = [clips] if isinstance(clips, Clip) else list(clips)
    if not clips:
        raise ValueError("need at least one clip")
    pages = [_Page(clip, style.theme(theme), picture) for clip in clips]
    header = max(page.header_height for page in pages)
    height = max(page.height(header) for page in pages)
    height += height % 2
    length = max(len(clip.frames) for clip in clips)
    for page in pages:
        page.lay_out(header, height, length)
    for t in range(length):
        yield np.concatenate([page.frame(t) for page in pages], axis=1)


def upscale(frames: np.ndarray, picture: int = PICTURE) -> np.ndarray:
    """Frames [..., H, W, 3] repeated by the least whole factor that brings min(H, W) to
    `picture` pixels."""
    factor = max(1, math.ceil(picture / min(frames.shape[-3:-1])))
    return frames.repeat(factor, axis=-3).repeat(factor, axis=-2)


def encode_mp4(frames, fps: float, codec: str | None = None) -> bytes:
    """uint8 [H, W, 3] frames (any iterable, all of one even size) as mp4 bytes, yuv420p.

    H.264 where PyAV was built with an encoder for it, else MPEG-4 part 2 (which browsers may not
    play); `codec` names one outright.

    Raises: ValueError for no frame, odd or changing sizes, a wrong dtype, fps <= 0.
    """
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be positive, got {fps}")
    rate = Fraction(fps).limit_denominator(1001)
    if not rate:
        raise ValueError(f"fps of {fps} is too low for a video")
    codec = codec or best_codec()
    buffer = io.BytesIO()
    shape = None
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18", "preset": "veryfast"} if "264" in codec else {"qscale": "3"}
        for frame in frames:
            frame = np.ascontiguousarray(frame)
            if shape is None:
                shape = frame.shape
                if frame.ndim != 3 or shape[2] != 3 or shape[0] % 2 or shape[1] % 2:
                    raise ValueError(f"frames must be [H, W, 3] with even H and W, got {shape}")
                stream.height, stream.width = shape[:2]
                # Say which matrix turns YUV back into RGB; players guess it by size otherwise.
                stream.codec_context.colorspace = _BT601
                stream.codec_context.color_range = _LIMITED
            if frame.dtype != np.uint8 or frame.shape != shape:
                raise ValueError(f"frame of {frame.dtype} {frame.shape} in a video of {shape}")
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture = picture.reformat(
                format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG"
            )
            container.mux(stream.encode(picture))
        if shape is None:
            raise ValueError("need at least one frame")
        container.mux(stream.encode())
    return buffer.getvalue()


_BT601, _LIMITED = 6, 1  # AVCOL_SPC_SMPTE170M, AVCOL_RANGE_MPEG


def best_codec() -> str:
    """The first H.264 encoder that this build of PyAV has, else "mpeg4"."""
    for name in ("libx264", "libopenh264"):
        try:
            av.Codec(name, "w")
        except ValueError:  # av.codec.codec.UnknownCodecError
            continue
        return name
    return "mpeg4"


class _Page:
    """A clip's fixed drawing, to which `frame(t)` adds the picture, the cursor and the values."""

    def __init__(self, clip: Clip, look: style.Theme, picture: int):
        frames = np.asarray(clip.frames)
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ValueError(
                f"frames must be uint8 [T, H, W, 3], got {frames.dtype} {frames.shape}"
            )
        if not frames.size:
            raise ValueError(
                f"frames must hold at least one pixel and one frame, got {frames.shape}"
            )
        self.frames, self.look, self.picture = frames, look, picture
        self.curves = {k: np.asarray(v, dtype=np.float64) for k, v in clip.curves.items()}
        for name, values in self.curves.items():
            if values.shape != frames.shape[:1]:
                raise ValueError(
                    f"curve {name!r} has shape {values.shape} for {len(frames)} frames"
                )
        height, width = upscale(frames[:1], picture).shape[1:3]
        self.picture_size = (height, width)
        self.width = width + 2 * _MARGIN
        self.width += self.width % 2
        self.label = clip.label
        self.lines = canvas.wrap(clip.sentence, width, canvas.font(15))
        self.header_height = _MARGIN + (22 if clip.label else 0) + 20 * len(self.lines) + 6
        self.colour = style.colours(list(self.curves), look)

    def height(self, header: int) -> int:
        return header + self.picture_size[0] + _MARGIN + _ROW * len(self.curves) + _MARGIN // 2

    def lay_out(self, header: int, height: int, length: int) -> None:
        """Draws all that does not move, with the curves once pale and once in full colour.

        The time axis spans `length` frames, so that the cursors of all clips run side by side.
        """
        self.header, self.total, self.length = header, height, length
        self.names = canvas.font(13, bold=True)
        widest = max([self.names.getlength(n) for n in self.curves], default=0)
        self.left = _MARGIN + int(widest) + 12
        self.right = self.width - _MARGIN - 50  # the value's place
        self.pale, self.full = self._static(0.28), self._static(1.0)

    def _static(self, strength: float) -> np.ndarray:
        # Lines are drawn four times as large and scaled down: Pillow does not smooth lines.
        big = canvas.blank(4 * self.width, 4 * self.total, self.look.ground)
        draw = ImageDraw.Draw(big)
        for row, (name, values) in enumerate(self.curves.items()):
            top, bottom = self._row(row)
            colour = canvas.mix(self.colour[name], self.look.ground, strength)
            for y in (top, bottom):
                ends = [(4 * self.left, 4 * y), (4 * self.right, 4 * y)]
                draw.line(ends, fill=self.look.grid, width=4)
            points = [
                (4 * self._x(t), 4 * self._y(name, v, top, bottom)) if np.isfinite(v) else None
                for t, v in enumerate(values)
            ]
            for a, b in itertools.pairwise(points):
                if a and b:
                    draw.line([a, b], fill=colour, width=9, joint="curve")
                    draw.ellipse([b[0] - 4, b[1] - 4, b[0] + 4, b[1] + 4], fill=colour)
            for t in np.flatnonzero(lone_points(values)):
                x, y = points[t]
                draw.ellipse([x - 8, y - 8, x + 8, y + 8], fill=colour)
        page = big.resize((self.width, self.total), Image.Resampling.BOX)
        draw = ImageDraw.Draw(page)
        y = _MARGIN
        if self.label:
            draw.text((_MARGIN, y), self.label, self.look.ink, canvas.font(16, bold=True))
            y += 22
        for line in self.lines:
            draw.text((_MARGIN, y), line, self.look.faint, canvas.font(15))
            y += 20
        for row, name in enumerate(self.curves):
            top, bottom = self._row(row)
            place = (_MARGIN, (top + bottom) / 2)
            draw.text(place, name, self.colour[name], self.names, anchor="lm")
        return np.array(page)

    def _row(self, row: int) -> tuple[float, float]:
        top = self.header + self.picture_size[0] + _MARGIN + row * _ROW
        return top + 6, top + _ROW - 8

    def _x(self, t: int) -> float:
        return self.left + (self.right - self.left) * t / max(self.length - 1, 1)

    @staticmethod
    def _y(name: str, value: float, top: float, bottom: float) -> float:
        low, high = HEAD_RANGES.get(name, (0.0, 1.0))
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return bottom - share * (bottom - top)

    def frame(self, t: int) -> np.ndarray:
        """uint8 [total, width, 3] at frame t, or at the last one if the clip is over."""
        t = min(t, len(self.frames) - 1)
        cursor = round(self._x(t))
        page = self.pale.copy()
        panel = self.header + self.picture_size[0]
        page[panel:, : cursor + 1] = self.full[panel:, : cursor + 1]
        width = self.picture_size[1]
        page[self.header : panel, _MARGIN : _MARGIN + width] = upscale(self.frames[t], self.picture)
        if not self.curves:
            return page
        image = Image.fromarray(page)
        draw = ImageDraw.Draw(image)
        top, bottom = self._row(0)[0], self._row(len(self.curves) - 1)[1]
        draw.line([(cursor, top), (cursor, bottom)], fill=self.look.ink, width=1)
        number = canvas.font(13)
        for row, (name, values) in enumerate(self.curves.items()):
            top, bottom = self._row(row)
            valid = np.isfinite(values[t])
            text = f"{values[t]:.2f}".replace("-", "−") if valid else "–"
            colour = self.look.ink if valid else self.look.faint
            place = (self.width - _MARGIN, (top + bottom) / 2)
            draw.text(place, text, colour, number, anchor="rm")
            if valid:
                y = self._y(name, values[t], top, bottom)
                dot = [cursor - 4, y - 4, cursor + 4, y + 4]
                draw.ellipse(dot, fill=self.colour[name], outline=self.look.ground)
        return np.array(image)
