"""Writes LeRobot data sets, v3.0: parquet tables and mp4 videos that `LeRobotDataset` loads.

The layout is that of lerobot 0.4: many episodes in a file, a table of episodes that says which rows
and which seconds are whose, statistics for normalisation.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from lrm_jax.episodes.broken import check
from lrm_jax.episodes.episode import Episode
from lrm_jax.run import atomic
from lrm_jax.run.errors import UserError

_CHUNK = 1000  # files in a folder
_VIDEO_MB, _DATA_MB = 200, 100
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
_SCALARS = {
    "timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64",
    "task_index": "int64",
}  # fmt: skip


def write_lerobot(
    folder: str | os.PathLike[str],
    episodes: Iterable[Episode],
    camera: str = "",
    robot_type: str = "lrm_sim",
) -> None:
    """Writes episodes as one split "train".

    Columns are `action` and `observation.state` (of the k control steps that belong to a frame, end
    to end; k = `meta["stride"]`), `next.success` (at the last frame) and `progress` where episodes
    have them. Video is H.264, a key frame every other frame.

    Args:
      folder: must not exist yet. camera: the video's key; observation.images.CAMERA if empty.
    Raises:
      UserError: no episodes, ones that differ in size, rate or what they have; `folder` exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder} exists already: name another folder")
    writer = None
    try:
        for episode in episodes:
            check(episode)
            if writer is None:
                key = camera or f"observation.images.{episode.camera or 'camera'}"
                writer = _Writer(folder, key, episode, robot_type)
            writer.add(episode)
        if writer is None:
            raise UserError("there are no episodes to write")
        writer.finish()
    finally:
        if writer is not None:
            writer.close()


class _Writer:
    def __init__(self, folder: Path, key: str, first: Episode, robot_type: str):
        self._folder, self._key, self._robot = folder, key, robot_type
        self._fps, self._size = first.fps, tuple(first.frames.shape[1:])
        self._columns = {k: v.shape[1:] for k, v in _vectors(first).items()}
        self._has_success = first.success is not None
        self._tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._frames = 0
        self._statistics: dict[str, list[np.ndarray]] = {}
        self._video: _VideoFile | None = None
        self._video_number = self._data_number = -1
        self._table: Any = None

    def add(self, episode: Episode) -> None:
        vectors = _vectors(episode)
        shapes = {k: v.shape[1:] for k, v in vectors.items()}
        if episode.fps != self._fps or tuple(episode.frames.shape[1:]) != self._size:
            raise UserError("episodes differ in rate or in the size of their frames")
        if shapes != self._columns or (episode.success is not None) != self._has_success:
            raise UserError("episodes differ in what they have beside frames")
        number, count = len(self._rows), len(episode.frames)
        task = self._tasks.setdefault(episode.task, len(self._tasks))
        frames = np.asarray(episode.frames)
        begin = self._encode(frames)
        scalars = {
            "timestamp": np.arange(count) / self._fps,
            "frame_index": np.arange(count),
            "episode_index": np.full(count, number),
            "index": np.arange(self._frames, self._frames + count),
            "task_index": np.full(count, task),
        }
        columns: dict[str, np.ndarray] = dict(vectors)
        if self._has_success:
            done = np.zeros(count, bool)
            done[-1] = episode.success
            columns["next.success"] = done
        columns |= {k: v.astype(_SCALARS[k]) for k, v in scalars.items()}
        self._write_rows(columns)
        row = {
            "episode_index": number, "tasks": [episode.task], "length": count,
            **_place("data", self._data_number),
            "dataset_from_index": self._frames, "dataset_to_index": self._frames + count,
            **_place(f"videos/{self._key}", self._video_number),
            f"videos/{self._key}/from_timestamp": begin / self._fps,
            f"videos/{self._key}/to_timestamp": (begin + count) / self._fps,
            **_place("meta/episodes", 0),
        }  # fmt: skip
        sample = frames[:: max(count // 16, 1)].astype(np.float64) / 255
        described = {self._key: sample, **{k: _column(v) for k, v in columns.items()}}
        for name, values in described.items():
            pixels = values.ndim == 4
            found = _statistics(values, (0, 1, 2) if pixels else (0,), len(values))
            row |= {f"stats/{name}/{k}": v for k, v in found.items()}
            kept = values[::4, ::8, ::8] if pixels else values
            self._statistics.setdefault(name, []).append(kept)
        self._rows.append(row)
        self._frames += count

    def finish(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.close()
        path = self._folder / "meta/episodes/chunk-000/file-000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self._rows), path)
        pq.write_table(_tasks_table(self._tasks), self._folder / "meta/tasks.parquet")
        statistics = {}
        for name, parts in self._statistics.items():
            values = np.concatenate(parts)
            axes = (0, 1, 2) if values.ndim == 4 else (0,)
            statistics[name] = _statistics(values, axes, self._frames)
        atomic.write_json(self._folder / "meta/stats.json", statistics)
        atomic.write_json(self._folder / "meta/info.json", self._info())

    def close(self) -> None:
        if self._video is not None:
            self._video.close()
            self._video = None
        if self._table is not None:
            self._table.close()
            self._table = None

    def _info(self) -> dict[str, Any]:
        height, width, _ = self._size
        fps = int(self._fps) if float(self._fps).is_integer() else self._fps
        video = {
            "dtype": "video", "shape": list(self._size), "names": ["height", "width", "channels"],
            "info": {
                "video.height": height, "video.width": width, "video.codec": "h264",
                "video.pix_fmt": "yuv420p", "video.is_depth_map": False, "video.fps": fps,
                "video.channels": 3, "has_audio": False,
            },
        }  # fmt: skip
        features: dict[str, Any] = {self._key: video}
        for name, shape in self._columns.items():
            names = [f"{name.rpartition('.')[2]}_{i}" for i in range(shape[0])]
            features[name] = {"dtype": "float32", "shape": list(shape), "names": names}
        scalars = ({"next.success": "bool"} if self._has_success else {}) | _SCALARS
        for name, dtype in scalars.items():
            features[name] = {"dtype": dtype, "shape": [1], "names": None}
        return {
            "codebase_version": "v3.0", "robot_type": self._robot,
            "total_episodes": len(self._rows), "total_frames": self._frames,
            "total_tasks": len(self._tasks), "chunks_size": _CHUNK,
            "data_files_size_in_mb": _DATA_MB, "video_files_size_in_mb": _VIDEO_MB, "fps": fps,
            "splits": {"train": f"0:{len(self._rows)}"}, "data_path": _DATA, "video_path": _VIDEO,
            "features": features,
        }  # fmt: skip

    def _encode(self, frames: np.ndarray) -> int:
        """Appends frames to the video; the place of the first in its file."""
        if self._video is None or self._video.megabytes() > _VIDEO_MB:
            if self._video is not None:
                self._video.close()
            self._video_number += 1
            path = self._path(_VIDEO, self._video_number)
            self._video = _VideoFile(path, self._fps, self._size)
        return self._video.add(frames)

    def _write_rows(self, columns: dict[str, np.ndarray]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        arrays = {}
        for name, values in columns.items():
            if values.ndim == 2 and values.shape[1] == 1:  # lerobot's rule for shape [1]
                arrays[name] = pa.array(values[:, 0])
            elif values.ndim == 2:
                flat = pa.array(values.reshape(-1), pa.float32())
                arrays[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
            else:
                arrays[name] = pa.array(values)
        table = pa.table(arrays)
        full = self._table is not None and self._table_size() > _DATA_MB
        if self._table is None or full:
            if full:
                self._table.close()
            self._data_number += 1
            self._table_path = self._path(_DATA, self._data_number)
            self._table = pq.ParquetWriter(self._table_path, table.schema)
        self._table.write_table(table)

    def _table_size(self) -> float:
        return self._table_path.stat().st_size / 2**20

    def _path(self, pattern: str, number: int) -> Path:
        chunk, file = divmod(number, _CHUNK)
        path = self._folder / pattern.format(
            video_key=self._key, chunk_index=chunk, file_index=file
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class _VideoFile:
    """An mp4 that grows by episodes, each of which begins with a key frame."""

    def __init__(self, path: Path, fps: float, size: tuple[int, ...]):
        import av

        if size[0] % 2 or size[1] % 2:
            raise UserError(f"frames are {size[1]}x{size[0]} pixels: H.264 needs even sizes")
        self._path, self._count = path, 0
        self._container = av.open(str(path), "w", options={"movflags": "faststart"})
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.height, self._stream.width = size[:2]
        self._stream.pix_fmt, self._stream.gop_size = "yuv420p", 2
        self._stream.options = {"crf": "18"}

    def add(self, frames: np.ndarray) -> int:
        import av

        begin = self._count
        for place, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            frame.pts = self._count
            frame.time_base = 1 / self._stream.codec_context.framerate
            if place == 0:
                frame.pict_type = av.video.frame.PictureType.I
            self._container.mux(self._stream.encode(frame))
            self._count += 1
        return begin

    def megabytes(self) -> float:
        return self._path.stat().st_size / 2**20

    def close(self) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()


def _vectors(episode: Episode) -> dict[str, np.ndarray]:
    """The columns of vectors, float32 [T, D]."""
    count, stride = len(episode.frames), int(episode.meta.get("stride", 1))
    found = {}
    if episode.proprio is not None:
        found["observation.state"] = episode.proprio[::stride]
    if episode.actions is not None:
        # LeRobot has an action at each frame: the last one is given again at the end.
        last = episode.actions[-stride:]
        found["action"] = np.concatenate([episode.actions, last]).reshape(count, -1)
    if episode.progress is not None:
        found["progress"] = episode.progress[:, None]
    if wrong := [k for k, v in found.items() if len(v) != count]:
        raise UserError(f"{wrong[0]} does not fit {count} frames with stride {stride}")
    return {k: np.asarray(v, np.float32) for k, v in found.items()}


def _column(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1).astype(np.float64)


def _statistics(values: np.ndarray, axes: tuple[int, ...], count: int) -> dict[str, Any]:
    """As lerobot shapes them: [D] for vectors, [3, 1, 1] on [0, 1] for pictures."""
    shape = (-1, 1, 1) if values.ndim == 4 else (-1,)
    found = {
        "min": values.min(axes), "max": values.max(axes), "mean": values.mean(axes),
        "std": values.std(axes),
    }  # fmt: skip
    for q, value in zip(_QUANTILES, np.quantile(values, _QUANTILES, axis=axes), strict=True):
        found[f"q{round(q * 100):02d}"] = value
    return {k: v.reshape(shape).tolist() for k, v in found.items()} | {"count": [count]}


def _place(part: str, number: int) -> dict[str, int]:
    chunk, file = divmod(number, _CHUNK)
    return {f"{part}/chunk_index": chunk, f"{part}/file_index": file}


def _tasks_table(tasks: dict[str, int]) -> Any:
    """Sentences as pandas keeps a frame whose index they are."""
    import pyarrow as pa

    index = "__index_level_0__"
    text = {"pandas_type": "unicode", "numpy_type": "object"}
    described = {
        "index_columns": [index],
        "column_indexes": [
            {"name": None, "field_name": None, "metadata": {"encoding": "UTF-8"}} | text
        ],
        "columns": [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64",
             "numpy_type": "int64", "metadata": None},
            {"name": None, "field_name": index, "metadata": None} | text,
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }  # fmt: skip
    table = pa.table({"task_index": list(tasks.values()), index: list(tasks)})
    return table.replace_schema_metadata({"pandas": json.dumps(described)})
