"""Qwen3-VL checkpoint folders: `config.json` and safetensors, to a parameter tree and back."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from lrm_jax.qwen3_vl import names, shards
from lrm_jax.qwen3_vl.config import Config
from lrm_jax.run import atomic
from lrm_jax.run.errors import UserError, did_you_mean

# Naming ml_dtypes' bfloat16 here also lets safetensors' numpy interface read that type.
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
SHARD_BYTES = 5_000_000_000
_FILE_DTYPES = ("F32", "F16", "BF16")
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


def read_config(folder: str | os.PathLike) -> Config:
    """The configuration of a checkpoint folder, with `generation_config.json`'s stop tokens if any.

    Raises:
      UserError: no such folder or file, not JSON, or a model that is not dense Qwen3-VL.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder with a Qwen3-VL checkpoint")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder / 'config.json'} is missing; give a folder with a checkpoint")
    try:
        config = Config.from_hf(_read_object(folder / "config.json"))
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    if (folder / "generation_config.json").is_file():
        raw = _read_object(folder / "generation_config.json")
        found = {k: raw[k] for k in ("eos_token_id", "pad_token_id") if raw.get(k) is not None}
        config = dataclasses.replace(config, **found)
    return config


def read_params(
    folder: str | os.PathLike,
    config: Config,
    dtype: str = "float32",
    shardings: Any = None,
    beside: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The parameter tree of a checkpoint folder.

    Names, shapes and types are all checked before anything is read; from then on there is one
    shard of one leaf at a time in host memory, or one layer of it where shards are large
    (`shards.STAGING_BYTES`).

    Args:
      folder: holds `model.safetensors`, or shards and `model.safetensors.index.json`.
      config: from `read_config`.
      dtype: "float32" or "bfloat16", of every leaf.
      shardings: a tree of shardings, one a leaf (`lrm_jax.parallel.rules.plan`); every device gets
        its shards straight from the file. None for whole leaves on the default device.
      beside: tensors whose names begin with one of these are not the network's and stay unread
        (`read_beside`); elsewhere an unknown tensor is an error.

    Raises:
      ValueError: `shardings` is not a tree of this configuration.
      UserError: an unreadable or truncated file; a missing, unexpected or misshapen tensor, by name
        and file.
    """
    if str(dtype) not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not supported; {did_you_mean(str(dtype), DTYPES)}")
    kind = DTYPES[str(dtype)]
    wanted = names.leaves(config)
    homes = None if shardings is None else _homes(shardings, wanted)
    with contextlib.ExitStack() as stack:
        tensors = _Tensors(Path(folder), stack)
        tensors.forget(beside)
        shapes = {name: leaf.shape for leaf in wanted for name in leaf.names}
        extra = {names.HEAD: shapes[names.EMBEDDINGS]} if config.tie_word_embeddings else {}
        tensors.check(shapes, extra)
        if extra and names.HEAD in tensors.where:
            # A tied checkpoint may repeat the table as its head, but not contradict it.
            if not tensors.equal(names.HEAD, names.EMBEDDINGS):
                raise UserError(
                    f"{tensors.where[names.HEAD]}: {names.HEAD} differs from {names.EMBEDDINGS}, "
                    "which config.json ties to it; set tie_word_embeddings to false"
                )
        tree: dict[str, Any] = {}
        for leaf in wanted:
            node = tree
            for key in leaf.path[:-1]:
                node = node.setdefault(key, {})
            home = None if homes is None else homes[leaf.path]
            node[leaf.path[-1]] = shards.assemble(leaf, kind, home, tensors.read_part)
    return tree


def read_beside(folder: str | os.PathLike, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Tensors of a checkpoint that are no part of the network, float32, by name.

    UserError if one is missing, or a file is unreadable.
    """
    with contextlib.ExitStack() as stack:
        tensors = _Tensors(Path(folder), stack)
        for name in names:
            if name not in tensors.where:
                raise UserError(f"{folder}: no tensor {name} in its safetensors")
        return {name: tensors.read(name).astype(np.float32) for name in names}


def _homes(shardings: Any, wanted: list[names.Leaf]) -> dict[tuple[str, ...], Any]:
    homes = {
        tuple(str(key.key) for key in path): sharding
        for path, sharding in jax.tree_util.tree_leaves_with_path(shardings)
    }
    if differing := sorted(homes.keys() ^ {leaf.path for leaf in wanted}):
        raise ValueError(f"shardings do not fit the configuration: {'/'.join(differing[0])}")
    return homes


def save_pretrained(folder: str | os.PathLike, config: Config, params: dict[str, Any]) -> None:
    """Writes a checkpoint folder that `from_pretrained` and transformers both load.

    Leaves keep their dtype. Files above 5 GB are split into shards. An index of an earlier save
    that no longer applies is removed.

    Raises:
      ValueError: the tree is not one of this configuration.
      UserError: the folder cannot be written.
    """
    folder = Path(folder)
    wanted = names.leaves(config)
    arrays = _matching(params, wanted)
    files: list[list[tuple[names.Leaf, int]]] = [[]]
    used = total = 0
    for leaf in wanted:
        array = arrays[leaf.path]
        size = array.size // len(leaf.names) * array.dtype.itemsize
        for i in range(len(leaf.names)):
            if used and used + size > SHARD_BYTES:
                files.append([])
                used = 0
            files[-1].append((leaf, i))
            used, total = used + size, total + size

    with atomic.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        weight_map = {}
        for number, content in enumerate(files):
            name = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
            name = name if len(files) > 1 else _SINGLE
            tensors = {}
            for leaf, i in content:
                array = arrays[leaf.path]
                tensors[leaf.names[i]] = leaf.to_file(
                    np.asarray(array[i] if leaf.stacked else array)
                )
            _write_safetensors(folder / name, tensors)
            weight_map |= dict.fromkeys(tensors, name)
        if len(files) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            atomic.write_json(folder / _INDEX, index)
            (folder / _SINGLE).unlink(missing_ok=True)
        else:
            (folder / _INDEX).unlink(missing_ok=True)
        dtype = str(arrays[("embed_tokens",)].dtype)
        atomic.write_json(folder / "config.json", {**config.to_hf(), "dtype": dtype})
        stops = {"eos_token_id": list(config.eos_token_id), "pad_token_id": config.pad_token_id}
        stops = {k: v for k, v in stops.items() if v not in (None, [])}
        if stops:
            atomic.write_json(folder / "generation_config.json", stops)


def _matching(params: dict[str, Any], wanted: list[names.Leaf]) -> dict[tuple[str, ...], Any]:
    arrays = {
        tuple(str(key.key) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    shapes = {leaf.path: leaf.tree_shape for leaf in wanted}
    for path in sorted(arrays.keys() ^ shapes.keys()):
        verb = "lacks" if path in shapes else "has, beyond the configuration,"
        raise ValueError(f"the parameter tree {verb} {'/'.join(path)}")
    for path, shape in shapes.items():
        if arrays[path].shape != shape:
            raise ValueError(f"{'/'.join(path)}: {arrays[path].shape}, configuration says {shape}")
    return arrays


def _write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # transformers refuses a file that does not say which framework's layout it has.
        safetensors.numpy.save_file(tensors, temporary, metadata={"format": "pt"})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_object(path: Path) -> dict[str, Any]:
    value = atomic.read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object")
    return value


class _Tensors:
    """The tensors of a checkpoint folder, by name. `where` gives the file of each."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack):
        self.where: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        index = folder / _INDEX
        listed: dict[str, str] = {}
        if (folder / _SINGLE).is_file():
            files = [folder / _SINGLE]
        elif index.is_file():
            listed = _read_object(index).get("weight_map")
            if not isinstance(listed, dict):
                raise UserError(f"{index} has no weight_map")
            files = [folder / name for name in sorted(set(listed.values()))]
        else:
            raise UserError(f"{folder} has neither {_SINGLE} nor {_INDEX}: no weights to load")
        for path in files:
            if not path.is_file():
                raise UserError(f"{path} is missing, though {_INDEX} lists it; fetch it again")
            with _reading(path):
                self._open[path] = stack.enter_context(safetensors.safe_open(path, "numpy"))
                self.where |= dict.fromkeys(self._open[path].keys(), path)
        for name, file in listed.items():
            if name not in self.where:
                raise UserError(f"{folder / file} lacks {name}, though {_INDEX} lists it")

    def check(self, shapes: dict[str, tuple[int, ...]], optional: dict[str, tuple[int, ...]]):
        files = ", ".join(path.name for path in self._open)
        folder = next(iter(self._open)).parent
        for name in shapes:
            if name not in self.where:
                raise UserError(f"{folder}: no tensor {name} in {files}; config.json calls for it")
        for name, path in self.where.items():
            shape = shapes.get(name, optional.get(name))
            if shape is None:
                raise UserError(
                    f"{path}: unexpected tensor {name}; config.json has no place for it"
                )
            part = self._open[path].get_slice(name)
            if tuple(part.get_shape()) != shape:
                raise UserError(
                    f"{path}: {name} has shape {list(part.get_shape())}, config.json calls for "
                    f"{list(shape)}"
                )
            if part.get_dtype() not in _FILE_DTYPES:
                raise UserError(
                    f"{path}: {name} is {part.get_dtype()}; only {', '.join(_FILE_DTYPES)} are "
                    "read (quantised checkpoints are not supported)"
                )

    def forget(self, beginnings: tuple[str, ...]) -> None:
        """Passes over the tensors whose names begin so."""
        self.where = {n: p for n, p in self.where.items() if not n.startswith(beginnings)}

    def read(self, name: str) -> np.ndarray:
        path = self.where[name]
        with _reading(path):
            return self._open[path].get_tensor(name)

    def read_part(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        path = self.where[name]
        with _reading(path):
            return self._open[path].get_slice(name)[index]

    def equal(self, one: str, other: str) -> bool:
        """Whether two matrices of one shape are equal, compared some rows at a time."""
        rows = self._open[self.where[one]].get_slice(one).get_shape()[0]
        parts = (slice(at, min(at + 8192, rows)) for at in range(0, rows, 8192))
        return all(
            np.array_equal(self.read_part(one, (p,)), self.read_part(other, (p,))) for p in parts
        )


@contextlib.contextmanager
def _reading(path: Path):
    try:
        yield
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or unreadable ({error}); fetch it again") from error
