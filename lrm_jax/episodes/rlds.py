"""Episodes of RLDS data sets, as tensorflow-datasets writes them: Open X-Embodiment, LIBERO, ours.

An episode is one `tf.train.Example`: for each feature of a step a list over all steps. It is taken
apart here without TensorFlow, so that pictures stay encoded until they are asked for; the features
are described by `features.json` (tensorflow-datasets reads it), the splits by `dataset_info.json`.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lrm_jax.episodes.broken import BrokenEpisode, check_fps, text
from lrm_jax.episodes.episode import Episode
from lrm_jax.episodes.frames import ChosenFrames, EncodedFrames, LazyFrames
from lrm_jax.episodes.source import (
    CAMERAS,
    SENTENCES,
    SourceSettings,
    chosen,
    facts,
    rate,
    split_range,
    verdict,
)
from lrm_jax.episodes.tfrecord import TFRecordFile
from lrm_jax.run import atomic
from lrm_jax.run.errors import UserError

_STEPS = "steps/"


class RLDSSource:
    """An RLDS data set: a folder with `dataset_info.json`, TFRecord or ArrayRecord.

    path: that folder, or one above it with a single version in it. Episodes are numbered as the
    files hold them.

    Beside frames and sentence an episode gets, where the data set has them, `success`
    (episode_metadata/success), `progress` (steps/progress), `actions` (steps/action), `proprio`
    (steps/observation/proprio or state) and `fps` (episode_metadata/fps).

    Raises:
      UserError: no such data set, split or key; the extra `tfds` is not installed.
    """

    def __init__(self, settings: SourceSettings):
        self.name, self._settings = settings.name, settings
        folder = _version_folder(Path(settings.path))
        self._where = f"{settings.name} ({folder})"
        info = atomic.read_json(folder / "dataset_info.json")
        splits = {s["name"]: s for s in info.get("splits", ())}
        shards = {n: [int(c) for c in s.get("shardLengths", ())] for n, s in splits.items()}
        self._split, self._numbers = split_range(
            settings.split, {n: sum(c) for n, c in shards.items()}, self._where
        )
        self._ends = list(itertools.accumulate(shards[self._split]))
        self._files = _files(folder, info, splits[self._split], len(self._ends))
        self._array_record = info.get("fileFormat", "tfrecord") == "array_record"
        self._features = _flat(_tfds().features.FeatureConnector.from_config(str(folder)))
        pictures = [k for k, f in self._features.items() if _is_picture(f) and k.startswith(_STEPS)]
        words = [k for k, f in self._features.items() if _is_text(k, f, settings.sentence)]
        self.camera = chosen(
            _under(settings.camera, pictures), pictures, CAMERAS, "camera", self._where
        )
        self._sentence = "" if settings.task else chosen(
            _under(settings.sentence, words), words, SENTENCES, "sentence key", self._where,
            guess=False,
        )  # fmt: skip
        self._success = _success_key(settings.success, self._features, self._where)
        names = ("steps/observation/proprio", "steps/observation/state")
        self._proprio = next((n for n in names if n in self._features), "")
        if "episode_metadata/fps" not in self._features:
            rate(settings.fps, None, self._where)

    def __len__(self) -> int:
        return len(self._numbers)

    def id(self, i: int) -> str:
        """SPLIT/NUMBER."""
        return f"{self._split}/{self._numbers[i]}"

    def __getitem__(self, i: int) -> Episode:
        example = self._example(self._numbers[i])
        pictures = self._values(example, self.camera)
        frames = self._frames(pictures)
        count = len(frames)
        progress = self._per_step(example, "steps/progress", count)
        meta = facts(self._settings)
        if "episode_metadata/extra" in self._features:
            meta |= _extra(self._values(example, "episode_metadata/extra"))
        said = self._numeric(example, self._success) if self._success else None
        success, when = verdict(self._settings, said, count)
        return Episode(
            frames=frames,
            task=self._settings.task or self._task(example),
            fps=self._fps(example),
            success=success,
            proprio=_control_rate(self._per_step(example, self._proprio, count), 1),
            actions=_control_rate(self._per_step(example, "steps/action", count), 0),
            progress=progress,
            source=self.name,
            camera=self.camera.removeprefix(_STEPS).removeprefix("observation/"),
            meta=meta | when,
        )

    def _example(self, number: int) -> Mapping[str, Any]:
        shard = bisect.bisect_right(self._ends, number)
        place = number - (self._ends[shard - 1] if shard else 0)
        data = self._file(shard)[place]
        from google.protobuf.message import DecodeError
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            return tf_example_pb2.Example.FromString(data).features.feature
        except DecodeError as error:
            raise BrokenEpisode("record", f"record {number} is no Example ({error})") from error

    @functools.lru_cache(maxsize=256)  # noqa: B019 one object a data set
    def _file(self, shard: int) -> Any:
        path = self._files[shard]
        return ArrayRecordFile(path) if self._array_record else TFRecordFile(path)

    def _values(self, example: Mapping[str, Any], key: str) -> Any:
        if key not in example:
            raise BrokenEpisode("column", f"it has no {key}")
        kind = example[key].WhichOneof("kind")
        return getattr(example[key], kind).value if kind else []

    def _numeric(self, example: Mapping[str, Any], key: str) -> np.ndarray:
        """A feature's values as [N, *shape], N steps (1 for metadata)."""
        feature = self._features[key]
        values = self._values(example, key)
        if values and isinstance(values[0], bytes):
            raise BrokenEpisode("dtype", f"{key} holds bytes, not {feature.np_dtype}")
        shape = tuple(feature.shape)
        array = np.asarray(values)
        if None in shape or array.size % max(int(np.prod(shape)), 1):
            raise BrokenEpisode("size", f"{key}: {array.size} values do not fill {list(shape)}")
        return array.reshape(-1, *shape).astype(feature.np_dtype)

    def _per_step(self, example: Mapping[str, Any], key: str, count: int) -> np.ndarray | None:
        """float32 [T, ...], None if the data set has no such feature of plain floats."""
        feature = self._features.get(key)
        if feature is None or feature.np_dtype not in (np.float32, np.float64):
            return None
        if None in tuple(feature.shape):
            return None
        array = self._numeric(example, key)
        if len(array) != count:
            raise BrokenEpisode("length", f"{count} frames, but {len(array)} of {key}")
        return array.astype(np.float32)

    def _frames(self, pictures: Any) -> Any:
        feature = self._features[self.camera]
        if not len(pictures):
            raise BrokenEpisode("empty", "it has no step")
        if isinstance(pictures[0], bytes):
            frames: LazyFrames | np.ndarray = EncodedFrames(pictures)
        else:  # a plain tensor of bytes is stored as a list of integers
            shape = tuple(feature.shape)
            array = np.asarray(pictures)
            if array.dtype.kind not in "iu" or None in shape or array.size % int(np.prod(shape)):
                raise BrokenEpisode("dtype", f"{self.camera} does not hold uint8 pictures")
            frames = array.reshape(-1, *shape).astype(np.uint8)
        return ChosenFrames(frames, flip=True) if self._settings.flip else frames

    def _task(self, example: Mapping[str, Any]) -> str:
        values = self._values(example, self._sentence)
        if not values:
            raise BrokenEpisode("sentence", "it has no sentence")
        if not isinstance(values[0], bytes):  # characters' codes, zeros behind
            codes = self._numeric(example, self._sentence)[0].reshape(-1)
            if codes.size and (codes.min() < 0 or codes.max() > 255):
                raise BrokenEpisode("sentence", "its sentence's codes are no bytes")
            return text(codes.astype(np.uint8).tobytes().rstrip(b"\0")).strip()
        said = [text(v).strip() for v in dict.fromkeys(values)]
        return next((s for s in said if s), "")

    def _fps(self, example: Mapping[str, Any]) -> float:
        if "episode_metadata/fps" not in self._features:
            return rate(self._settings.fps, None, self._where)
        own = check_fps(float(self._numeric(example, "episode_metadata/fps").reshape(-1)[0]))
        return rate(self._settings.fps, own, self._where)


class ArrayRecordFile:
    """Records of an ArrayRecord file by number; BrokenEpisode for what cannot be read."""

    def __init__(self, path: Path):
        self._path, self._reader = path, None

    def __getitem__(self, i: int) -> bytes:
        try:
            from array_record.python.array_record_module import ArrayRecordReader
        except ImportError:
            raise UserError(_EXTRA) from None
        try:
            if self._reader is None:
                self._reader = ArrayRecordReader(str(self._path))
            if i >= self._reader.num_records():
                raise IndexError(f"it holds {self._reader.num_records()}")
            return self._reader.read([i])[0]
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            raise BrokenEpisode(
                "record", f"{self._path.name}: record {i} cannot be read ({error})"
            ) from error


_EXTRA = "reading RLDS data sets needs tensorflow-datasets: pip install 'lrm_jax[tfds]'"


def _tfds() -> Any:
    try:
        import tensorflow_datasets
    except ImportError:
        raise UserError(_EXTRA) from None
    return tensorflow_datasets


def _version_folder(path: Path) -> Path:
    if (path / "dataset_info.json").is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder")
    found = sorted(p.parent for p in path.rglob("dataset_info.json"))
    if not found:
        raise UserError(f"{path}: no data set of tensorflow-datasets here (dataset_info.json)")
    if len(found) > 1:
        names = ", ".join(str(p.relative_to(path)) for p in found[:8])
        raise UserError(f"{path}: several data sets here; name one: {names}")
    return found[0]


def _files(folder: Path, info: Mapping[str, Any], split: Mapping[str, Any], shards: int) -> list:
    """The split's files in order; those that are missing are found broken when they are read."""
    pattern = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    suffix = info.get("fileFormat", "tfrecord")
    if suffix not in ("tfrecord", "array_record"):
        raise UserError(f"{folder}: files of format {suffix!r}: use tfrecord or array_record")
    return [
        folder
        / pattern.format(
            DATASET=info["name"], SPLIT=split["name"], FILEFORMAT=suffix,
            SHARD_X_OF_Y=f"{i:05d}-of-{shards:05d}", SHARD_INDEX=f"{i:05d}",
            NUM_SHARDS=f"{shards:05d}",
        )
        for i in range(shards)
    ]  # fmt: skip


def _flat(features: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of a features tree by path; those of a step under "steps/"."""
    inner = getattr(features, "feature", None)
    if prefix in ("", _STEPS[:-1]) and inner is not None and hasattr(inner, "items"):
        features = inner
    if not hasattr(features, "items"):
        return {prefix: features}
    leaves: dict[str, Any] = {}
    for name, feature in features.items():
        leaves |= _flat(feature, f"{prefix}/{name}" if prefix else name)
    return leaves


def _is_picture(feature: Any) -> bool:
    shape = tuple(feature.shape) if isinstance(feature.shape, tuple) else ()
    return feature.np_dtype == np.uint8 and len(shape) == 3 and shape[-1] == 3


def _is_text(key: str, feature: Any, wanted: str) -> bool:
    """Text, or characters' codes under a name that means a sentence."""
    if not isinstance(feature.shape, tuple):
        return False
    if feature.np_dtype == np.object_ or np.dtype(feature.np_dtype).kind in "SU":
        return not feature.shape
    name = key.rpartition("/")[2]
    is_codes = len(feature.shape) == 1 and np.issubdtype(feature.np_dtype, np.integer)
    return is_codes and (name in SENTENCES or (wanted != "" and key.endswith(wanted)))


def _under(wanted: str, there: list[str]) -> str:
    """The whole path of a key given without "steps/" or "steps/observation/"."""
    for prefix in (_STEPS, "steps/observation/", "episode_metadata/"):
        if wanted and f"{prefix}{wanted}" in there:
            return f"{prefix}{wanted}"
    return wanted


def _success_key(wanted: str, features: Mapping[str, Any], where: str) -> str:
    if wanted:
        return chosen(_under(wanted, list(features)), list(features), (), "success key", where)
    return "episode_metadata/success" if "episode_metadata/success" in features else ""


def _control_rate(values: np.ndarray | None, last: int) -> np.ndarray | None:
    """Values of T steps, float32 [T, A] or [T, k, A] (k control steps a frame), end to end.

    The last step has no control steps behind it: `last` of its values are kept.
    """
    if values is None or values.ndim not in (2, 3):
        return None
    per_frame = values.shape[1] if values.ndim == 3 else 1
    return values.reshape(-1, values.shape[-1])[: (len(values) - 1) * per_frame + last]


def _extra(values: Any) -> dict[str, Any]:
    try:
        extra = json.loads(text(values[0], "extra"))
    except (ValueError, IndexError) as error:
        raise BrokenEpisode("dtype", f"episode_metadata/extra is not JSON ({error})") from error
    if others := extra.get("progress_by_task"):
        extra["progress_by_task"] = {s: np.asarray(p, np.float32) for s, p in others.items()}
    return extra
