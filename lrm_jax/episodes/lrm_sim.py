"""The data set `lrm_sim`: demonstrations collected here, as RLDS, written by tensorflow-datasets.

A step is a frame. What happens faster stays with it: `action` and `proprio` of a step are those of
the k control steps until the next frame (k = `meta["stride"]`), zeros and repetitions in the last.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lrm_jax.episodes.broken import check
from lrm_jax.episodes.episode import Episode
from lrm_jax.run.errors import UserError


def write_lrm_sim(
    folder: str | os.PathLike[str],
    splits: Mapping[str, Sequence[Episode]],
    file_format: str = "array_record",
    name: str = "lrm_sim",
) -> str:
    """Writes episodes to `folder`/`name`/1.0.0, loadable by `tfds.builder_from_directory`.

    Args:
      splits: episodes by split; all have one frame size, one stride and a known success.
      file_format: "array_record" or "tfrecord".
    Returns:
      The folder of the data set. An existing one is kept as it is (tensorflow-datasets' rule).
    Raises:
      UserError: no episodes, ones that differ or do not know their success; the extra `tfds_write`
        is not installed.
    """
    if file_format not in ("array_record", "tfrecord"):
        raise UserError(f"format {file_format!r}: choose array_record or tfrecord")
    first = next((e for episodes in splits.values() for e in episodes), None)
    if first is None:
        raise UserError("there are no episodes to write")
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UserError(
            "writing RLDS needs tensorflow-datasets and TensorFlow: "
            "pip install 'lrm_jax[tfds_write]'"
        ) from None
    made = _builder(tfds, name, first, splits)
    builder = made(data_dir=os.fspath(folder), file_format=file_format)
    builder.download_and_prepare()
    return str(builder.data_path)


def _builder(tfds: Any, dataset: str, first: Episode, splits: Mapping[str, Iterable[Episode]]):
    f = tfds.features
    described = tfds.core.DatasetInfo

    class LrmSim(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Scripted demonstrations of lrm_jax's simulated tasks, right and wrong ones."""

        VERSION = tfds.core.Version("1.0.0")
        name = dataset

        def _info(self):
            return described(
                builder=self,
                features=f.FeaturesDict(
                    {
                        "steps": f.Dataset(_step_features(f, first)),
                        "episode_metadata": {
                            "success": np.bool_, "fps": np.float32, "source": f.Text(),
                            "camera": f.Text(), "extra": f.Text(),
                        },
                    }
                ),
            )  # fmt: skip

        def _split_generators(self, manager):
            del manager
            return {split: self._generate_examples(e) for split, e in splits.items()}

        def _generate_examples(self, episodes):
            for number, episode in enumerate(episodes):
                yield f"{number:09d}", _example(episode, first)

    return LrmSim


def _step_features(f: Any, first: Episode) -> dict[str, Any]:
    stride = _stride(first)
    observation = {"image": f.Image(shape=tuple(first.frames.shape[1:]), encoding_format="png")}
    features: dict[str, Any] = {
        "language_instruction": f.Text(), "is_first": np.bool_, "is_last": np.bool_,
        "is_terminal": np.bool_, "reward": np.float32, "discount": np.float32,
    }  # fmt: skip
    if first.proprio is not None:
        shape = (stride, first.proprio.shape[1])
        observation["proprio"] = f.Tensor(shape=shape, dtype=np.float32)
    if first.actions is not None:
        shape = (stride, first.actions.shape[1])
        features["action"] = f.Tensor(shape=shape, dtype=np.float32)
    if first.progress is not None:
        features["progress"] = np.float32
    return features | {"observation": f.FeaturesDict(observation)}


def _example(episode: Episode, first: Episode) -> dict[str, Any]:
    check(episode)
    if episode.success is None:
        raise UserError("an episode does not say whether it succeeded: lrm_sim needs that")
    for what in ("proprio", "actions", "progress"):
        if (getattr(episode, what) is None) != (getattr(first, what) is None):
            raise UserError(f"some episodes have {what} and some have not")
    if _stride(episode) != _stride(first) or episode.frames.shape[1:] != first.frames.shape[1:]:
        raise UserError("episodes differ in stride or in the size of their frames")
    extra = {k: v for k, v in episode.meta.items() if k != "progress_by_task"}
    if others := episode.meta.get("progress_by_task"):
        extra["progress_by_task"] = {s: np.asarray(p).tolist() for s, p in others.items()}
    return {
        "steps": list(_steps(episode)),
        "episode_metadata": {
            "success": bool(episode.success), "fps": np.float32(episode.fps),
            "source": episode.source, "camera": episode.camera, "extra": json.dumps(extra),
        },
    }  # fmt: skip


def _steps(episode: Episode) -> Iterator[dict[str, Any]]:
    count, stride = len(episode.frames), _stride(episode)
    actions = proprio = None
    if episode.actions is not None:
        if len(episode.actions) != (count - 1) * stride:
            raise UserError(
                f"{count} frames with stride {stride}, but {len(episode.actions)} actions"
            )
        actions = np.concatenate([episode.actions, np.zeros_like(episode.actions[:stride])])
        actions = actions.reshape(count, stride, -1).astype(np.float32)
    if episode.proprio is not None:
        last = np.repeat(episode.proprio[-1:], stride - 1, 0)
        proprio = np.concatenate([episode.proprio, last])
        proprio = proprio.reshape(count, stride, -1).astype(np.float32)
    for t in range(count):
        is_last = t == count - 1
        step = {
            "observation": {"image": _png(episode.frames[t])},
            "language_instruction": episode.task,
            "is_first": t == 0, "is_last": is_last, "is_terminal": is_last and episode.success,
            "reward": float(is_last and episode.success), "discount": 1.0,
        }  # fmt: skip
        if actions is not None:
            step["action"] = actions[t]
        if proprio is not None:
            step["observation"]["proprio"] = proprio[t]
        if episode.progress is not None:
            step["progress"] = np.float32(episode.progress[t])
        yield step


def _stride(episode: Episode) -> int:
    return int(episode.meta.get("stride", 1))


def _png(frame: np.ndarray) -> io.BytesIO:
    """A picture as a file, which tensorflow-datasets takes as it is."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.asarray(frame)).save(file, "png")
    file.seek(0)
    return file
