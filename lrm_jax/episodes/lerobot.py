"""Episodes of LeRobot data sets, v2.0, v2.1 and v3.0: parquet tables and mp4 videos.

In v2 an episode is a parquet file and a video for each camera; in v3 many episodes share a file,
and the episodes' own table says which rows and which seconds are whose.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from lrm_jax.episodes.broken import BrokenEpisode, check_fps, text
from lrm_jax.episodes.episode import Episode
from lrm_jax.episodes.frames import ChosenFrames, EncodedFrames, LazyFrames
from lrm_jax.episodes.mp4 import VideoFrames
from lrm_jax.episodes.source import (
    CAMERAS,
    SourceSettings,
    chosen,
    facts,
    rate,
    split_range,
    verdict,
)
from lrm_jax.run import atomic
from lrm_jax.run.errors import UserError

# Of a frame's time against k / fps, in parts of a frame's time.
_TIME_TOLERANCE = 0.1


class LeRobotSource:
    """A LeRobot data set: a folder with `meta/info.json`.

    Success is what the column `settings.success` says, or `next.success` if there is one. `actions`
    and `proprio` are the columns `action` and `observation.state`.

    Raises:
      UserError: no such data set, version, split or key.
    """

    def __init__(self, settings: SourceSettings):
        self.name, self._settings = settings.name, settings
        self._folder = Path(settings.path)
        self._where = f"{settings.name} ({self._folder})"
        self._info = atomic.read_json(self._folder / "meta" / "info.json")
        version = str(self._info.get("codebase_version", "")).lstrip("v")
        if version.split(".")[0] not in ("2", "3"):
            raise UserError(f"{self._where}: LeRobot version {version!r} is not 2.x or 3.x")
        self._rows = _episodes_v3(self._folder) if version[0] == "3" else _episodes_v2(self._folder)
        self._features = self._info.get("features", {})
        cameras = [
            k for k, f in self._features.items()
            if f.get("dtype") in ("video", "image") and not _is_depth(f)
        ]  # fmt: skip
        self.camera = chosen(settings.camera, cameras, CAMERAS, "camera", self._where)
        self._success = settings.success and chosen(
            settings.success, list(self._features), (), "success key", self._where
        )
        if not self._success and "next.success" in self._features:
            self._success = "next.success"
        self._fps = rate(
            settings.fps, check_fps(self._info.get("fps"), f"{self._where}: fps"), self._where
        )
        splits = {}
        for name, numbers in self._info.get("splits", {}).items():
            begin, _, end = str(numbers).partition(":")
            splits[name] = range(int(begin or 0), int(end or len(self._rows)))
        splits.setdefault("train", range(len(self._rows)))
        name, numbers = split_range(
            settings.split, {n: len(r) for n, r in splits.items()}, self._where
        )
        self._numbers = [splits[name][n] for n in numbers]

    def __len__(self) -> int:
        return len(self._numbers)

    def id(self, i: int) -> str:
        """episode_NUMBER."""
        return f"episode_{self._numbers[i]:06d}"

    def __getitem__(self, i: int) -> Episode:
        number = self._numbers[i]
        row = self._rows.get(number)
        if row is None:
            raise BrokenEpisode("column", f"the table of episodes does not have number {number}")
        if not row.get("length"):
            raise BrokenEpisode("empty", "its length is stated as 0")
        table = self._table(number, row)
        count = table.num_rows
        if count != row["length"]:
            raise BrokenEpisode("length", f"{row['length']} frames are stated, {count} rows there")
        self._check_times(table)
        success, when = verdict(self._settings, self._said(table), count)
        return Episode(
            frames=self._frames(number, row, table),
            task=self._settings.task or _task(row),
            fps=self._fps,
            success=success,
            proprio=_vectors(table, "observation.state"),
            actions=None if (a := _vectors(table, "action")) is None else a[:-1],
            source=self.name,
            camera=self.camera,
            meta=facts(self._settings) | when,
        )

    def _table(self, number: int, row: dict[str, Any]):
        import pyarrow
        import pyarrow.parquet as pq

        path = self._path(self._info["data_path"], number, row, "data")
        needed = ["timestamp", "episode_index"]
        if self._features[self.camera]["dtype"] == "image":
            needed.append(self.camera)
        needed += [self._success] if self._success else []
        optional = [k for k in ("action", "observation.state") if k in self._features]
        try:
            there = pq.read_schema(path).names
            if lacking := [n for n in needed if n not in there]:
                raise BrokenEpisode("column", f"{path.name} has no column {', '.join(lacking)}")
            wanted = needed + [n for n in optional if n in there and n not in needed]
            return pq.read_table(path, columns=wanted, filters=[("episode_index", "=", number)])
        except FileNotFoundError:
            raise BrokenEpisode("record", f"{path.name}: there is no such file") from None
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise BrokenEpisode("record", f"{path.name} cannot be read ({error})") from error

    def _path(self, pattern: str, number: int, row: dict[str, Any], part: str) -> Path:
        size = self._info.get("chunks_size") or 1000
        return self._folder / pattern.format(
            video_key=self.camera,
            episode_index=number,
            episode_chunk=number // size,
            chunk_index=row.get(f"{part}/chunk_index", 0),
            file_index=row.get(f"{part}/file_index", 0),
        )

    def _check_times(self, table: Any) -> None:
        times = table["timestamp"].to_numpy().astype(np.float64)
        ticks = (times - times[0]) * self._fps
        off = np.abs(ticks - np.arange(len(times)))
        if not (off < _TIME_TOLERANCE).all():
            worst = int(np.argmax(np.nan_to_num(off, nan=np.inf)))
            raise BrokenEpisode(
                "fps",
                f"frame {worst} is at {times[worst]:g} s, which {self._fps:g} frames/s do not give",
            )

    def _frames(self, number: int, row: dict[str, Any], table: Any) -> LazyFrames:
        if self._features[self.camera]["dtype"] == "image":
            cells = table[self.camera].to_pylist()
            pictures = [c.get("bytes") if isinstance(c, dict) else None for c in cells]
            if None in pictures:
                lacking = pictures.index(None)
                raise BrokenEpisode("column", f"frame {lacking} has no {self.camera}")
            frames: LazyFrames = EncodedFrames(pictures)
        else:
            part = f"videos/{self.camera}"
            # In v2 an episode has a video of its own; in v3 it would be shown another's frames.
            begin = row.get(f"{part}/from_timestamp")
            if begin is None and "{file_index" in self._info["video_path"]:
                raise BrokenEpisode("column", f"{part}/from_timestamp is missing")
            frames = VideoFrames(
                self._path(self._info["video_path"], number, row, part),
                table.num_rows,
                0.0 if begin is None else begin,
                self._fps,
            )
        return ChosenFrames(frames, flip=True) if self._settings.flip else frames

    def _said(self, table: Any) -> np.ndarray | None:
        if not self._success:
            return None
        try:
            return np.asarray(table[self._success].to_pylist(), np.float64)
        except (ValueError, TypeError) as error:
            raise BrokenEpisode("dtype", f"{self._success} holds no flags ({error})") from error


def _episodes_v2(folder: Path) -> dict[int, dict[str, Any]]:
    """The episodes' table of v2: {number: row}."""
    path = folder / "meta" / "episodes.jsonl"
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        raise UserError(f"{path} does not exist") from None
    rows = {}
    for place, line in enumerate(lines):
        if line.strip():
            try:
                # Bytes that are not UTF-8 stay in the sentence, where reading the episode finds
                # them.
                row = json.loads(line.decode("utf-8", "surrogateescape"))
                rows[int(row["episode_index"])] = row
            except (ValueError, KeyError) as error:
                raise UserError(f"{path}:{place + 1}: not an episode ({error})") from None
    return rows


def _episodes_v3(folder: Path) -> dict[int, dict[str, Any]]:
    """The episodes' table of v3: {number: row}, without its statistics."""
    import pyarrow
    import pyarrow.parquet as pq

    files = sorted((folder / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise UserError(f"{folder}: no table of episodes (meta/episodes/*/*.parquet)")
    rows: dict[int, dict[str, Any]] = {}
    for path in files:
        try:
            names = [n for n in pq.read_schema(path).names if not n.startswith("stats/")]
            for row in _rows(pq.read_table(path, columns=names)):
                rows[int(row["episode_index"])] = row
        except (pyarrow.ArrowException, OSError, KeyError) as error:
            raise UserError(f"{path}: not a table of episodes ({error})") from error
    return rows


def _rows(table: Any) -> list[dict[str, Any]]:
    """Rows of an Arrow table. Sentences that are not UTF-8 stay bytes."""
    import pyarrow

    place = table.schema.get_field_index("tasks")
    if place >= 0:
        as_bytes = table.column(place).cast(pyarrow.list_(pyarrow.binary()))
        table = table.set_column(place, "tasks", as_bytes)
    return table.to_pylist()


def _task(row: dict[str, Any]) -> str:
    tasks = row.get("tasks") or ()
    if isinstance(tasks, (str, bytes)):
        tasks = [tasks]
    said = [text(t).strip() for t in tasks]
    return next((s for s in said if s), "")


def _is_depth(feature: dict[str, Any]) -> bool:
    info = feature.get("info") or feature.get("video_info") or {}
    return bool(info.get("video.is_depth_map") or info.get("is_depth_map"))


def _vectors(table: Any, column: str) -> np.ndarray | None:
    """float32 [T, A] of a column of lists of numbers; None if there is no such column."""
    if column not in table.column_names:
        return None
    try:
        values = np.asarray(table[column].to_pylist(), np.float32)
    except (ValueError, TypeError) as error:
        raise BrokenEpisode("dtype", f"{column} does not hold vectors of numbers") from error
    return values.reshape(len(values), -1)
