"""One self-contained report.html: figures, videos and tables inside the file, no network.

Inputs are plain dicts and arrays, so that any job can call `write_report`.
"""

import base64
import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from lrm_jax.report import blocks, plots, style, verdict
from lrm_jax.run import atomic

FIGURES = {
    "learning_curves": plots.learning_curves,
    "proxy_and_oracle": plots.proxy_and_oracle,
    "reward_components": plots.reward_components,
    "reliability": plots.reliability,
    "success_bars": plots.success_bars,
}
_MEDIA_TYPES = {"png": "image/png", "mp4": "video/mp4"}


def write_report(
    path: str | os.PathLike,
    summary: Mapping[str, Any],
    curves: Sequence[Mapping] = (),
    tables: Mapping[str, Mapping] | None = None,
    media: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None,
    *,
    title: str = "lrm_jax report",
    subtitle: str = "",
) -> Path:
    """Writes the report (whole or not at all) and returns its path; arguments as in
    `render_report`."""
    text = render_report(summary, curves, tables, media, manifest, title=title, subtitle=subtitle)
    path = Path(path)
    atomic.write_bytes(path, text.encode("utf-8"))
    return path


def render_report(
    summary: Mapping[str, Any],
    curves: Sequence[Mapping] = (),
    tables: Mapping[str, Mapping] | None = None,
    media: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None,
    *,
    title: str = "lrm_jax report",
    subtitle: str = "",
) -> str:
    """The report as HTML text.

    Args:
      summary: what the job wrote to summary.json. With the quickstart's keys there is a verdict
        section; every key is listed in any case.
      curves: figures in order, each {"kind": a name in `FIGURES`, "title", "caption", and the
        arguments of that function} (drawn for light and dark) or {"png": bytes, "title",
        "caption"}.
      tables: heading -> table (see `blocks`; e.g. `blocks.minutes`, `blocks.success`).
      media: heading -> mp4 or png as bytes or as a path; or {"mp4" or "png": bytes or path,
        "png_dark": same for dark ground, "caption": str}. What is missing (None, no such file)
        gets a line that says so in its place.
      manifest: what the job wrote to manifest.json.
      title, subtitle: of the page.

    Raises: ValueError for an unknown figure or table form; nothing for missing media.
    """
    return _template().render(
        title=title,
        subtitle=subtitle,
        verdict=verdict.verdict(summary),
        counters=verdict.counters(summary),
        figures=[_figure(spec) for spec in curves],
        tables=[_table(heading, table) for heading, table in (tables or {}).items()],
        media=[_medium(heading, item) for heading, item in (media or {}).items()],
        summary=_pairs(summary),
        manifest=_pairs(manifest or {}),
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lrm_jax.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html.jinja")


def data_uri(data: bytes, kind: str) -> str:
    """`data` as a base64 data URI; kind "png" or "mp4"."""
    return f"data:{_MEDIA_TYPES[kind]};base64,{base64.b64encode(data).decode('ascii')}"


def _figure(spec: Mapping) -> dict:
    spec = dict(spec)
    title, caption = spec.get("title", ""), spec.pop("caption", "")
    figure = {"title": title, "caption": caption, "dark": None, "narrow": False}
    if "png" in spec:
        return {**figure, "light": data_uri(spec["png"], "png")}
    kind = spec.pop("kind", None)
    if kind not in FIGURES:
        raise ValueError(f"figure {title!r}: kind must be one of {sorted(FIGURES)}, got {kind!r}")
    # The page carries the title as text: it can be searched, and read aloud.
    spec["title"] = ""
    drawn = {theme: FIGURES[kind](**spec, theme=theme) for theme in style.THEMES}
    figure["narrow"] = kind == "reliability"  # higher than wide
    return {**figure, **{theme: data_uri(png, "png") for theme, png in drawn.items()}}


def _table(heading: str, table: Mapping) -> dict:
    try:
        columns, rows = table["columns"], table["rows"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"table {heading!r} needs 'columns' and 'rows'") from error
    shares = table.get("shares")
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"table {heading!r}: row {row} has {len(row)} of {len(columns)} cells")
    if shares is not None and len(shares) != len(rows):
        raise ValueError(f"table {heading!r} has {len(shares)} shares for {len(rows)} rows")
    return {
        "heading": heading,
        "columns": columns,
        "rows": [[blocks.number(cell) for cell in row] for row in rows],
        "shares": shares,
        "note": table.get("note", ""),
    }


def _medium(heading: str, item: Any) -> dict:
    item = dict(item) if isinstance(item, Mapping) else {"": item}
    medium = {"heading": heading, "caption": item.pop("caption", ""), "dark": None}
    dark = item.pop("png_dark", None)
    if len(item) != 1 or not set(item) <= {"", *_MEDIA_TYPES}:
        raise ValueError(f"medium {heading!r} needs one of 'mp4' and 'png', got {sorted(item)}")
    ((named, source),) = item.items()
    data, missing = _read(source)
    if data is None:
        return {**medium, "kind": "missing", "missing": missing}
    kind = "mp4" if data[4:8] == b"ftyp" else "png" if data[:4] == b"\x89PNG" else None
    if kind is None or named not in ("", kind):
        return {**medium, "kind": "missing", "missing": f"the data are no {named or 'mp4 or png'}"}
    if dark is not None:
        dark = _read(dark)[0]
        medium["dark"] = data_uri(dark, "png") if dark else None
    return {**medium, "kind": kind, "light": data_uri(data, kind)}


def _read(source) -> tuple[bytes | None, str]:
    if source is None:
        return None, "this run made none"
    if isinstance(source, bytes):
        return source, ""
    try:
        return Path(source).read_bytes(), ""
    except OSError as error:
        return None, f"{Path(source).name}: {error.strerror or error}"


def _pairs(mapping: Mapping) -> list[tuple[str, str, bool]]:
    """(key, text, whether it is a block of JSON) of a dict's entries."""
    pairs = []
    for key, value in mapping.items():
        if isinstance(value, (Mapping, list, tuple)):
            text = json.dumps(value, indent=2, default=str, ensure_ascii=False)
            flat = json.dumps(value, default=str, ensure_ascii=False)
            pairs.append((str(key), flat if len(flat) <= 60 else text, len(flat) > 60))
        elif key in ("seed", "seeds"):
            pairs.append((str(key), str(value), False))  # a seed is a name, not a quantity
        else:
            pairs.append((str(key), blocks.number(value), False))
    return pairs
