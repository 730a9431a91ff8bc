"""Settings to a source: the reader for what lies on the disk."""

from __future__ import annotations

import os
from pathlib import Path

from lrm_jax.episodes.quarantine import Limit, Quarantine
from lrm_jax.episodes.source import FORMATS, Source, SourceSettings
from lrm_jax.run.errors import UserError


def open_source(
    settings: SourceSettings,
    limit: Limit | None = None,
    report: str | os.PathLike[str] | None = None,
) -> Quarantine:
    """The data set that `settings` name, behind a quarantine (see `Quarantine`).

    Raises:
      UserError: nothing there, an unknown format, and what the readers say.
    """
    return Quarantine(reader(settings), limit, report)


def reader(settings: SourceSettings) -> Source:
    """The data set itself, which raises BrokenEpisode for each broken episode."""
    kind = settings.format or found_format(Path(settings.path))
    if kind == "rlds":
        from lrm_jax.episodes.rlds import RLDSSource as Reader
    elif kind == "lerobot":
        from lrm_jax.episodes.lerobot import LeRobotSource as Reader
    elif kind == "hdf5":
        from lrm_jax.episodes.hdf5 import HDF5Source as Reader
    else:
        from lrm_jax.episodes.video_index import VideoSource as Reader
    return Reader(settings)


def found_format(path: Path) -> str:
    """One of FORMATS, from what lies at `path`; UserError if nothing fits."""
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder")
    if path.suffix.lower() in (".hdf5", ".h5"):
        return "hdf5"
    if path.suffix.lower() == ".jsonl" or (path / "index.jsonl").is_file():
        return "videos"
    if (path / "meta" / "info.json").is_file():
        return "lerobot"
    if path.is_dir():
        if next(path.rglob("dataset_info.json"), None):
            return "rlds"
        if next(path.rglob("*.hdf5"), None) or next(path.rglob("*.h5"), None):
            return "hdf5"
    raise UserError(
        f"{path}: no data set of a known format here ({', '.join(FORMATS)}): RLDS has "
        "dataset_info.json, LeRobot meta/info.json, videos index.jsonl, HDF5 files .hdf5"
    )
