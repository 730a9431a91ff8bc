"""Trees of arrays in one safetensors file with a checksum.

For parameters and stage results. Checkpoints of a running loop are in `lrm_jax.run.checkpoints`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lrm_jax.run import atomic
from lrm_jax.run.errors import UserError, did_you_mean

# The types we store and safetensors' names for them. The format (8 bytes of header length, a JSON
# header, the raw little-endian data) is written and read here because the library's numpy
# interface, 0.8, refuses to read bfloat16 and writes transposed arrays wrongly.
_DTYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16",
    "uint32": "U32", "int32": "I32", "uint64": "U64", "int64": "I64",
    "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
}  # fmt: skip
_KEY = "prng_key:"


def named_leaves(tree: Any) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The leaves of `tree` as numpy arrays by their path ("params.dense.kernel"), and notes on
    some.

    Typed PRNG keys become their uint32 data with the note "prng_key:IMPLEMENTATION"; the notes are
    what
    `restore_leaf` needs to undo that.
    """
    import jax

    arrays, notes = {}, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
        if name in arrays:
            raise ValueError(f"two leaves are both called {name!r}")
        key_note, leaf = without_key_type(leaf)
        if key_note is not None:
            notes[name] = key_note
        array = np.asarray(leaf)
        if str(array.dtype) not in _DTYPES:
            raise TypeError(f"{name}: {array.dtype} ({type(leaf).__name__}) cannot be stored")
        arrays[name] = array
    return arrays, notes


def without_key_type(leaf: Any) -> tuple[str | None, Any]:
    """A typed PRNG key as (note, its uint32 data); any other leaf as (None, leaf)."""
    import jax

    if not hasattr(leaf, "dtype") or not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return None, leaf
    return _KEY + str(jax.random.key_impl(leaf)), jax.random.key_data(leaf)


def restore_leaf(array: np.ndarray, note: str | None) -> Any:
    """The leaf that `named_leaves` turned into `array` and `note`."""
    if note is None:
        return array
    import jax

    return jax.random.wrap_key_data(array, impl=note.removeprefix(_KEY))


def restore_like(
    arrays: Mapping[str, np.ndarray], notes: Mapping[str, str], like: Any, where: str
) -> Any:
    """A tree of the structure of `like` with the leaves `arrays`; UserError if they do not fit.

    Leaves of `like` need `shape` and `dtype` only (arrays or `jax.ShapeDtypeStruct`); Python
    numbers are matched by shape () and come back as Python numbers.
    """
    import jax

    paths, treedef = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(p, simple=True, separator=".") or "value" for p, _ in paths]
    extra = sorted(set(arrays) - set(names))
    if extra:
        raise UserError(
            f"{where} holds {extra[0]!r}, which this model lacks: {did_you_mean(extra[0], names)}"
        )
    leaves = []
    for name, (_, want) in zip(names, paths, strict=True):
        if name not in arrays:
            raise UserError(f"{where} lacks {name!r}: it was written for another model or setting")
        got = restore_leaf(arrays[name], notes.get(name))
        if isinstance(want, (bool, int, float)):
            if got.shape != ():
                raise UserError(f"{where}: {name!r} has shape {got.shape}, expected a number")
            leaves.append(type(want)(got))
            continue
        if tuple(got.shape) != tuple(want.shape) or got.dtype != want.dtype:
            raise UserError(
                f"{where}: {name!r} is {got.dtype}{list(got.shape)}, "
                f"expected {want.dtype}{list(want.shape)}"
            )
        leaves.append(got)
    return treedef.unflatten(leaves)


def save_tree(
    path: str | os.PathLike[str], tree: Any, metadata: Mapping[str, Any] | None = None
) -> str:
    """Writes a tree of arrays as one safetensors file, atomically.

    Args:
      path: the file; its folder must exist.
      tree: any pytree of numpy/jax arrays, numbers and typed PRNG keys.
      metadata: JSON values to keep with it.
    Returns:
      The SHA-256 of names, dtypes, shapes and contents (64 hex digits); also kept in the file.
    """
    arrays, notes = named_leaves(tree)
    digest = tree_digest(arrays)
    plain = _plain_structure(tree)
    header = {
        "format": "lrm_jax tree 1",
        "sha256": digest,
        "notes": json.dumps(notes),
        "structure": json.dumps(plain) if plain is not None else "",
        "metadata": json.dumps(dict(metadata or {})),
    }
    atomic.write_bytes(path, _encode(arrays, header))
    return digest


def load_tree(path: str | os.PathLike[str], like: Any = None) -> Any:
    """Reads a file of `save_tree`; leaves are numpy arrays (PRNG keys are typed keys).

    Args:
      path: the file.
      like: a tree of the structure, shapes and dtypes expected. Without it the tree is rebuilt from
        dicts, lists, tuples and None; a tree that had other nodes (an optimiser state) needs
        `like`.
    Raises:
      UserError: missing, truncated, damaged (checksum), or not fitting `like`.
    """
    arrays, notes, header = _read(Path(path))
    if like is not None:
        return restore_like(arrays, notes, like, str(path))
    if not header.get("structure"):
        raise ValueError(f"{path} holds a tree of classes: pass like=")
    return _rebuild(json.loads(header["structure"]), arrays, notes)


def load_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata given to `save_tree`, after the same checks as `load_tree`."""
    return json.loads(_read(Path(path))[2]["metadata"])


def tree_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over sorted names, dtypes, shapes and contents: 64 hex digits."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        a = np.ascontiguousarray(arrays[name])
        total.update(f"{name}\0{a.dtype}\0{a.shape}\0".encode())
        total.update(a.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def numpy_dtype(name: str) -> np.dtype:
    """The numpy type of a name such as "float32", "bfloat16" included."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _encode(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    # The format asks for aligned data: widest types first, as the reference writer orders them.
    order = sorted(arrays, key=lambda n: (-arrays[n].dtype.itemsize, n))
    end, chunks = 0, []
    for name in order:
        a = arrays[name]
        data = np.ascontiguousarray(a).tobytes()
        span = [end, end + len(data)]
        header[name] = {
            "dtype": _DTYPES[str(a.dtype)],
            "shape": list(a.shape),
            "data_offsets": span,
        }
        end += len(data)
        chunks.append(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *chunks])


def _decode(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata; ValueError where the bytes are not a whole safetensors file."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or len(data) < 8 + length:
        raise ValueError(f"{len(data)} bytes, the header alone needs {8 + length}")
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    body = memoryview(data)[8 + length :]
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end != len(body):
        raise ValueError(f"{len(body)} bytes of data, the header announces {end}")
    types = {theirs: ours for ours, theirs in _DTYPES.items()}
    arrays = {}
    for name, entry in header.items():
        if entry["dtype"] not in types:
            raise ValueError(f"{name} has the unknown type {entry['dtype']}")
        start, stop = entry["data_offsets"]
        flat = np.frombuffer(body[start:stop], numpy_dtype(types[entry["dtype"]]))
        arrays[name] = flat.reshape(
            entry["shape"]
        ).copy()  # writable, and lets go of the whole file
    return arrays, metadata


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, str]]:
    mend = "delete it and run again, or restore it from a copy"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    try:
        arrays, header = _decode(data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is truncated or damaged ({error}); {mend}") from error
    if "sha256" not in header:
        raise UserError(
            f"{path} lacks the checksum that lrm_jax writes; give a file that lrm_jax saved"
        )
    if tree_digest(arrays) != header["sha256"]:
        raise UserError(f"{path} is damaged: its checksum does not match; {mend}")
    return arrays, json.loads(header.get("notes", "{}")), header


def _plain_structure(tree: Any, path: str = "") -> Any:
    """The nesting of dicts, lists, tuples and None as JSON, or None where another node occurs."""

    def join(k: Any) -> str:
        return f"{path}.{k}" if path else str(k)

    if tree is None:
        return {"none": 0}
    if type(tree) is dict:
        if not all(isinstance(k, str) for k in tree):
            return None
        children = {k: _plain_structure(v, join(k)) for k, v in tree.items()}
        return None if None in children.values() else {"dict": children}
    if type(tree) in (list, tuple):
        items = [_plain_structure(v, join(i)) for i, v in enumerate(tree)]
        return None if None in items else {type(tree).__name__: items}
    if isinstance(tree, (bool, int, float, np.generic)) or hasattr(tree, "dtype"):
        kind = type(tree).__name__ if type(tree) in (bool, int, float) else "array"
        return {kind: path or "value"}
    return None


def _rebuild(
    node: Mapping[str, Any], arrays: Mapping[str, np.ndarray], notes: Mapping[str, str]
) -> Any:
    ((kind, value),) = node.items()
    if kind == "none":
        return None
    if kind == "dict":
        return {k: _rebuild(v, arrays, notes) for k, v in value.items()}
    if kind in ("list", "tuple"):
        items = [_rebuild(v, arrays, notes) for v in value]
        return items if kind == "list" else tuple(items)
    leaf = restore_leaf(arrays[value], notes.get(value))
    return {"bool": bool, "int": int, "float": float}[kind](leaf) if kind != "array" else leaf
