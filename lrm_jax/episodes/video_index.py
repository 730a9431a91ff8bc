"""Videos with an index: a JSONL file, one episode a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lrm_jax.episodes.broken import BrokenEpisode, check_fps, text
from lrm_jax.episodes.episode import Episode
from lrm_jax.episodes.frames import ChosenFrames, EncodedFrames, LazyFrames
from lrm_jax.episodes.mp4 import VideoFrames
from lrm_jax.episodes.source import SENTENCES, SourceSettings, facts, split_range, verdict
from lrm_jax.episodes.video import IMAGES, natural
from lrm_jax.run.errors import UserError

INDEX = "index.jsonl"
_DAMAGE = ""  # key of what is wrong with a line; no key of JSON written by people


class VideoSource:
    """Episodes listed in `index.jsonl`, or in the JSONL file that `settings.path` names.

    A line is an object with "video" (a file relative to the index, or a folder of pictures) and
    the sentence under `settings.sentence` or one of SENTENCES. It may have "begin" and "end"
    (seconds), "fps" (which must be the video's; needed for pictures), "success" (or the key
    `settings.success`), "split" (train if absent), "camera", "success_at" (seconds after
    its beginning).

    Raises:
      UserError: no index, an empty one, an unknown split.
    """

    def __init__(self, settings: SourceSettings):
        self.name, self._settings = settings.name, settings
        path = Path(settings.path)
        index = path / INDEX if path.is_dir() else path
        self._folder, self._where = index.parent, f"{settings.name} ({index})"
        try:
            lines = index.read_bytes().splitlines()
        except OSError:
            raise UserError(f"{self._where}: there is no such index of videos") from None
        splits: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        for number, line in enumerate(lines, 1):
            if line.strip():
                row = _row(line)
                splits.setdefault(str(row.get("split", "train")), []).append((number, row))
        if not splits:
            raise UserError(f"{self._where}: the index is empty")
        name, numbers = split_range(
            settings.split, {n: len(r) for n, r in splits.items()}, self._where
        )
        self._rows = [splits[name][n] for n in numbers]
        self._line = index.name

    def __len__(self) -> int:
        return len(self._rows)

    def id(self, i: int) -> str:
        """INDEX:LINE."""
        return f"{self._line}:{self._rows[i][0]}"

    def __getitem__(self, i: int) -> Episode:
        row = self._rows[i][1]
        if _DAMAGE in row:
            raise BrokenEpisode("record", row[_DAMAGE])
        if not isinstance(row.get("video"), str):
            raise BrokenEpisode("column", "its line has no video")
        fps = row.get("fps", self._settings.fps)
        fps = check_fps(fps, "its fps") if fps else 0.0
        frames, fps = self._frames(self._folder / row["video"], row, fps)
        success, _ = verdict(self._settings, row.get(self._settings.success or "success"), 1)
        meta = facts(self._settings) | {"video": row["video"]}
        if (at := row.get("success_at")) is not None:
            if not isinstance(at, (int, float)) or not 0 <= round(at * fps) < len(frames):
                raise BrokenEpisode("length", f"success_at is {at!r}, beyond the end")
            meta["success_frame"] = round(at * fps)
        return Episode(
            frames=ChosenFrames(frames, flip=True) if self._settings.flip else frames,
            task=self._settings.task or self._task(row),
            fps=fps,
            success=success,
            source=self.name,
            camera=str(row.get("camera", self._settings.camera)),
            meta=meta,
        )

    def _frames(self, path: Path, row: dict[str, Any], fps: float) -> tuple[LazyFrames, float]:
        begin, end = row.get("begin", 0.0), row.get("end")
        if not all(isinstance(v, (int, float)) for v in (begin, 0 if end is None else end)):
            raise BrokenEpisode("dtype", "begin and end must be seconds")
        if end is not None and end <= begin:
            raise BrokenEpisode("empty", f"it ends at {end:g} s, which is not after {begin:g} s")
        if path.is_dir():
            if not fps:
                raise BrokenEpisode("fps", f"{path.name} is a folder of pictures: give fps")
            frames: LazyFrames = _PictureFiles(path)
            if begin or end is not None:
                stop = len(frames) if end is None else round(end * fps)
                frames = ChosenFrames(frames, slice(round(begin * fps), stop))
            return frames, fps
        whole = VideoFrames(path, fps=fps)
        if not begin and end is None:
            return whole, whole.fps
        count = 0 if end is None else round((end - begin) * whole.fps)
        return VideoFrames(path, count, begin, fps), whole.fps

    def _task(self, row: dict[str, Any]) -> str:
        keys = [self._settings.sentence] if self._settings.sentence else SENTENCES
        for key in keys:
            if key in row:
                return text(row[key]).strip()
        raise BrokenEpisode("sentence", f"its line has no {' or '.join(keys)}")


class _PictureFiles(LazyFrames):
    """The pictures of a folder in natural order."""

    def __init__(self, folder: Path):
        self._files = sorted(
            (f for f in folder.iterdir() if f.suffix.lower() in IMAGES),
            key=lambda f: natural(f.name),
        )
        first = EncodedFrames([f.read_bytes() for f in self._files[:1]])
        super().__init__(len(self._files), *first.shape[1:3])

    def _decode(self, places):
        return EncodedFrames([self._files[p].read_bytes() for p in places])[:]


def _row(line: bytes) -> dict[str, Any]:
    """A line's object; one that is none is an episode of the split "train" that is broken."""
    try:
        # Bytes that are not UTF-8 stay in the sentence, where reading the episode finds them.
        row = json.loads(line.decode("utf-8", "surrogateescape"))
    except ValueError as error:
        return {_DAMAGE: f"its line is not JSON ({error})"}
    return row if isinstance(row, dict) else {_DAMAGE: "its line is no JSON object"}
