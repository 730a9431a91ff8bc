"""Episodes of HDF5 files as robomimic, LIBERO and RoboCasa write them: data/demo_N/obs/CAMERA."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np

from lrm_jax.episodes.broken import BrokenEpisode, text
from lrm_jax.episodes.episode import Episode
from lrm_jax.episodes.frames import ChosenFrames, LazyFrames, ReadFrames
from lrm_jax.episodes.source import (
    CAMERAS,
    SourceSettings,
    chosen,
    facts,
    rate,
    split_range,
    verdict,
)
from lrm_jax.episodes.video import natural
from lrm_jax.run.errors import UserError

# HDF5 is not safe to call from several threads at once.
_LOCK = threading.Lock()
_SUFFIXES = (".hdf5", ".h5")
_LOOKED_AT = 8  # demonstrations, for the names of cameras


class HDF5Source:
    """All demonstrations of an HDF5 file, or of the files in a folder (in natural order).

    The split "train" without a filter of that name is all of them; a file's filters are its
    `mask/NAME`, lists of demonstrations.

    The sentence is `settings.task`; else, of the demonstration, the attribute `settings.sentence`,
    `ep_meta` (JSON with "lang", RoboCasa) or "language_instruction"; else, of the file's `data`,
    `problem_info` (JSON with "language_instruction", LIBERO). The rate is `env_args`' control_freq.
    `actions` are those of the demonstration.

    Raises:
      UserError: no such file, demonstrations, split or camera; h5py is not installed.
    """

    def __init__(self, settings: SourceSettings):
        self.name, self._settings = settings.name, settings
        path = Path(settings.path)
        self._where = f"{settings.name} ({path})"
        files = [path] if path.is_file() else sorted(
            (f for f in path.rglob("*") if f.suffix.lower() in _SUFFIXES),
            key=lambda f: natural(str(f)),
        )  # fmt: skip
        if not files:
            raise UserError(f"{self._where}: no HDF5 file here ({', '.join(_SUFFIXES)})")
        self._root = path if path.is_dir() else path.parent
        name = settings.split.partition("[")[0]
        self._demos = [(f, demo) for f in files for demo in _listed(f, name)]
        if not self._demos:
            raise UserError(f"{self._where}: no demonstration in it (data/demo_0 and so on)")
        _, self._numbers = split_range(settings.split, {name: len(self._demos)}, self._where)
        # Some say which cameras there are: a single one may be broken.
        some = self._numbers[:: max(len(self._numbers) // _LOOKED_AT, 1)]
        cameras = dict.fromkeys(c for n in some for c in _cameras(*self._demos[n]))
        self.camera = chosen(settings.camera, list(cameras), CAMERAS, "camera", self._where)

    def __len__(self) -> int:
        return len(self._numbers)

    def id(self, i: int) -> str:
        """FILE/DEMO."""
        file, demo = self._demos[self._numbers[i]]
        return f"{file.relative_to(self._root)}/{demo}"

    def __getitem__(self, i: int) -> Episode:
        file, demo = self._demos[self._numbers[i]]
        with _opened(file) as h5:
            data = h5.get("data", {})
            if demo not in data:
                raise BrokenEpisode("record", "a filter names it, but it is not there")
            group = data[demo]
            obs = group.get("obs")
            if obs is None or self.camera not in obs:
                raise BrokenEpisode("column", f"it has no obs/{self.camera}")
            frames = self._frames(file, f"data/{demo}/obs/{self.camera}", obs[self.camera])
            actions = _actions(group, len(frames))
            said = None
            if self._settings.success:
                key = self._settings.success
                if key in group:
                    said = np.asarray(group[key])
                elif key in group.attrs:
                    said = group.attrs[key]
                else:
                    raise BrokenEpisode("column", f"it has no {key} that says whether it succeeded")
            success, when = verdict(self._settings, said, len(frames))
            return Episode(
                frames=ChosenFrames(frames, flip=True) if self._settings.flip else frames,
                task=self._settings.task or self._task(data, group),
                fps=rate(self._settings.fps, _control_rate(data.attrs), self._where),
                success=success,
                actions=actions,
                source=self.name,
                camera=self.camera,
                meta=facts(self._settings) | when,
            )

    def _frames(self, file: Path, key: str, pictures: Any) -> LazyFrames:
        if pictures.dtype != np.uint8:
            raise BrokenEpisode("dtype", f"obs/{self.camera} is {pictures.dtype}, not uint8")
        if pictures.ndim != 4 or pictures.shape[-1] != 3:
            raise BrokenEpisode("size", f"obs/{self.camera} is {list(pictures.shape)}")
        count, height, width, _ = pictures.shape
        if not count:
            raise BrokenEpisode("empty", f"obs/{self.camera} has no frame")

        def read(places: np.ndarray) -> np.ndarray:
            with _opened(file) as h5:
                try:
                    stored = h5[key]
                    if len(places) == places[-1] - places[0] + 1:
                        return stored[places[0] : places[-1] + 1]
                    # One by one: HDF5's own selections of many places take seconds.
                    return np.stack([stored[int(p)] for p in places])
                except (OSError, KeyError) as error:
                    raise BrokenEpisode("image", f"{file.name}: {key}: {error}") from error

        return ReadFrames(count, height, width, read)

    def _task(self, data: Any, group: Any) -> str:
        wanted = self._settings.sentence
        if wanted:
            for attributes in (group.attrs, data.attrs):
                if wanted in attributes:
                    return text(attributes[wanted]).strip()
            raise BrokenEpisode("sentence", f"no attribute {wanted!r} holds its sentence")
        for attributes, name, key in (
            (group.attrs, "ep_meta", "lang"),
            (data.attrs, "problem_info", "language_instruction"),
        ):
            if name in attributes:
                said = _json(attributes[name], name).get(key)
                if said:
                    # LIBERO quotes some of its sentences, and gives some as lists of words.
                    said = " ".join(said) if isinstance(said, list) else said
                    return text(said).strip().strip('"')
        for attributes in (group.attrs, data.attrs):
            if "language_instruction" in attributes:
                return text(attributes["language_instruction"]).strip()
        raise BrokenEpisode(
            "sentence",
            "no attribute ep_meta, problem_info or language_instruction: give sentence or task",
        )


class _opened:
    """An HDF5 file, open for one thread at a time."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> Any:
        try:
            import h5py
        except ImportError:
            raise UserError("reading HDF5 needs h5py: pip install h5py") from None
        _LOCK.acquire()
        try:
            self._file = h5py.File(self._path, "r")
        except OSError as error:
            _LOCK.release()
            raise BrokenEpisode(
                "record", f"{self._path.name}: not an HDF5 file that can be read ({error})"
            ) from error
        return self._file

    def __exit__(self, *_: Any) -> None:
        try:
            self._file.close()
        finally:
            _LOCK.release()


def _listed(file: Path, split: str) -> list[str]:
    """Names of a file's demonstrations in a split; a damaged file counts as one broken episode."""
    try:
        with _opened(file) as h5:
            if f"mask/{split}" in h5:
                names = [text(n, "a demonstration's name") for n in h5[f"mask/{split}"][()]]
            elif split != "train":
                there = ", ".join(h5.get("mask", ())) or "none"
                raise UserError(f"{file}: no filter mask/{split} (there: {there})")
            else:
                names = list(h5.get("data", ()))
    except BrokenEpisode:
        return ["?"]
    return sorted(names, key=natural)


def _cameras(file: Path, demo: str) -> list[str]:
    """Names of a demonstration's pictures; none if it is broken."""
    try:
        with _opened(file) as h5:
            obs = h5["data"][demo].get("obs") or {}
            return [k for k, v in obs.items() if getattr(v, "ndim", 0) == 4 and v.shape[-1] == 3]
    except (BrokenEpisode, KeyError):
        return []


def _control_rate(attributes: Any) -> float | None:
    if "env_args" in attributes:
        given = _json(attributes["env_args"], "env_args").get("env_kwargs") or {}
        return given.get("control_freq")
    return None


def _actions(group: Any, frames: int) -> np.ndarray | None:
    if "actions" not in group:
        return None
    actions = np.asarray(group["actions"])
    if actions.ndim != 2 or actions.dtype.kind not in "fiu":
        raise BrokenEpisode("dtype", f"actions are {actions.dtype} {list(actions.shape)}")
    if len(actions) != frames:
        raise BrokenEpisode("length", f"{frames} frames, but {len(actions)} actions")
    return actions[:-1].astype(np.float32)


def _json(value: Any, name: str) -> dict[str, Any]:
    try:
        found = json.loads(text(value, name))
    except ValueError as error:
        raise BrokenEpisode("sentence", f"{name} is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise BrokenEpisode("sentence", f"{name} is no JSON object")
    return found
