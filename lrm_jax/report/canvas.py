"""Text and colours on Pillow images, with the fonts that matplotlib ships."""

import functools
import unicodedata

import matplotlib
from PIL import Image, ImageColor, ImageFont


@functools.lru_cache(maxsize=16)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans at `size` pixels: Latin, Greek, Cyrillic, Arabic and more; other scripts (CJK)
    show as boxes, as no font for them can be taken for granted."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{name}", size)


def blank(width: int, height: int, colour: str) -> Image.Image:
    """An RGB image of one colour."""
    return Image.new("RGB", (width, height), colour)


def mix(colour: str, ground: str, strength: float) -> tuple[int, int, int]:
    """`colour` laid over `ground` with opacity `strength` in [0, 1]."""
    over, under = ImageColor.getrgb(colour), ImageColor.getrgb(ground)
    return tuple(round(strength * a + (1 - strength) * b) for a, b in zip(over, under, strict=True))


def wrap(text: str, width: float, face: ImageFont.FreeTypeFont, most: int = 3) -> list[str]:
    """Lines of `text` at most `width` pixels wide; what does not fit into `most` lines ends in an
    ellipsis. Breaks at spaces, and inside a word only where the word alone is too wide."""
    text = "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)
    lines, line = [], ""
    for word in text.split():
        candidate = f"{line} {word}".strip()
        if face.getlength(candidate) <= width:
            line = candidate
            continue
        if line:
            lines.append(line)
        line = ""
        for letter in word:
            if line and face.getlength(line + letter) > width:
                lines.append(line)
                line = ""
            line += letter
    if line:
        lines.append(line)
    if len(lines) > most:
        last = lines[most - 1]
        while last and face.getlength(last + "…") > width:
            last = last[:-1]
        lines = [*lines[: most - 1], last + "…"]
    return lines
