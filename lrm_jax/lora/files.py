"""PEFT's adapter folders: `adapter_config.json` and `adapter_model.safetensors`, in and out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from lrm_jax.lora import spelling as spell
from lrm_jax.lora.config import LoraConfig
from lrm_jax.lora.sites import Leaf, Site, get, module_of, put, replaced, sites
from lrm_jax.lora.transform import Tree, factors_of, scales_of
from lrm_jax.run import atomic
from lrm_jax.run.errors import UserError, did_you_mean

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Naming ml_dtypes' bfloat16 here also lets safetensors' numpy interface read that type.
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def read_config(folder: str | os.PathLike[str]) -> LoraConfig:
    """The configuration of an adapter folder; UserError if it is missing or not supported."""
    path = Path(folder) / CONFIG
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder; give a folder with {CONFIG} and {WEIGHTS}")
    raw = atomic.read_json(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no JSON object")
    return LoraConfig.from_peft(raw, str(path))


def load_peft(
    folder: str | os.PathLike[str],
    leaves: Sequence[Leaf],
    *,
    spellings: Sequence[tuple[str, str]] = (),
    params: Tree | None = None,
    allow_identity_adapter: bool = False,
) -> Tree:
    """Reads an adapter that PEFT (or `save_peft`) wrote.

    Everything in the file must have a place, and everything that the configuration calls for must
    be in the file: PEFT itself leaves factors that it does not find at zero, and serves the base.

    Args:
      folder: holds `adapter_config.json` and `adapter_model.safetensors`.
      leaves: of the base's parameter tree, with their names in the checkpoint.
      spellings: other beginnings of names, see `spelling.Spelling`.
      params: the base's parameters; needed only if the adapter replaces some layers of a stack and
        not the others.
      allow_identity_adapter: accept an adapter whose every B is zero.

    Returns:
      An adapter tree (see `transform`), factors and replacements float32.

    Raises:
      UserError: one line that names the file and the tensor or field: a missing, truncated or
        invalid file; a feature that is not supported; a tensor without a place, without its
        partner, of another shape or type, or not finite; a tensor that is missing; every B zero.
    """
    folder = Path(folder)
    config = read_config(folder)
    path = folder / WEIGHTS
    tensors = _read(path)
    names = spell.Spelling(spellings)
    pairs, whole = _sort(path, tensors, leaves, names)
    places = _places(path, config, leaves, names, pairs)
    if not allow_identity_adapter and not any(np.any(pair["b"]) for pair in pairs.values()):
        raise UserError(
            f"{path}: every lora_B is zero, so the adapter changes nothing; train it, or allow it "
            "with allow_identity_adapter"
        )
    factors: Tree = {}
    for site in places:
        for name, array in _factors(path, site, pairs, names).items():
            put(factors, (*site.path, name), jnp.asarray(array))
        put(factors, (*site.path, "scale"), scales_of(site))
        if config.dropout:
            rate = np.full(site.tree_shapes()["scale"], config.dropout, np.float32)
            put(factors, (*site.path, "dropout"), jnp.asarray(rate))
    with _blaming(folder / CONFIG):
        wanted = replaced(config, leaves, names.of_file)
    for name in wanted:
        if name not in whole:
            raise UserError(f"{path}: no {names.of_file(name)}, which modules_to_save calls for")
    if params is not None:
        # PEFT saves the base's output layer too where the adapter reaches it: no replacement.
        for name, (leaf, i) in _tensors_of(leaves).items():
            if name in whole and name not in wanted:
                base = np.asarray(get(params, leaf.path))[i if leaf.stacked else ...]
                if np.array_equal(leaf.from_file(whole[name]).astype(base.dtype), base):
                    del whole[name]
    replacements = _replacements(path, leaves, whole, params)
    return {"lora": factors, "params": replacements} if replacements else {"lora": factors}


def save_peft(
    folder: str | os.PathLike[str],
    adapter: Tree,
    config: LoraConfig,
    leaves: Sequence[Leaf],
    *,
    base_model: str | None = None,
) -> None:
    """Writes an adapter tree as a folder that PEFT loads, with the same outputs.

    Args:
      folder: is made if it is missing.
      adapter: one adapter (not stacked), of `init`, `load_peft` or training.
      config: that it was made with.
      leaves: of the base's parameter tree, with their names in the checkpoint.
      base_model: name or folder of the base, for the record.

    Raises:
      ValueError: the tree is not one of this configuration.
      UserError: the folder cannot be written.
    """
    tensors: dict[str, np.ndarray] = {}
    places = {site.path: site for site in sites(config, leaves)}
    found = dict(factors_of(adapter["lora"]))
    if found.keys() != places.keys():
        odd = "/".join(min(found.keys() ^ places.keys()))
        raise ValueError(f"the configuration and the adapter disagree about {odd}")
    for where, site in places.items():
        pair, shapes = found[where], site.tree_shapes()
        for name in ("a", "b"):
            if pair[name].shape != shapes[name]:
                raise ValueError(f"{'/'.join(where)}/{name} is {pair[name].shape}, {shapes[name]}")
        if not np.allclose(pair["scale"], scales_of(site), rtol=1e-6, atol=0):
            raise ValueError(f"{'/'.join(where)}: its scale is not the configuration's")
        for i, (module, rank) in enumerate(zip(site.modules, site.ranks, strict=True)):
            if not rank:
                continue
            at = i if site.leaf.stacked else ...
            wanted = site.file_shapes(rank)
            both = {"a": pair["a"][at][:, :rank], "b": pair["b"][at][:rank]}
            for name, array in both.items():
                array = np.asarray(array, np.float32).T.reshape(wanted[name])
                key = f"{spell.PREFIX}{module}.lora_{name.upper()}.weight"
                tensors[key] = np.ascontiguousarray(array)
    taken = replaced(config, leaves)
    for name, (leaf, i) in taken.items():
        array = get(adapter.get("params", {}), leaf.path)
        if array is None:
            raise ValueError(f"the adapter lacks {'/'.join(leaf.path)}, which it should replace")
        array = np.asarray(array[i] if leaf.stacked else array, np.float32)
        tensors[spell.PREFIX + name] = leaf.to_file(array)
    folder = Path(folder)
    with atomic.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        data = safetensors.numpy.save(tensors, metadata={"format": "pt"})
        atomic.write_bytes(folder / WEIGHTS, data)
        atomic.write_json(folder / CONFIG, config.to_peft(base_model))


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        more = ""
        if (path.parent / "adapter_model.bin").is_file():
            more = ", only adapter_model.bin, which is not read: convert it to safetensors"
        raise UserError(f"{path} is missing{more}")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            tensors = {}
            for key in file.keys():
                kind = file.get_slice(key).get_dtype()
                if kind not in _DTYPES:
                    raise UserError(f"{path}: {key} is {kind}; only {', '.join(_DTYPES)} are read")
                tensors[key] = np.asarray(file.get_tensor(key), np.float32)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or unreadable ({error}); fetch it again") from error
    for key, value in tensors.items():
        if not np.isfinite(value).all():
            raise UserError(f"{path}: {key} holds numbers that are not finite")
    return tensors


@contextlib.contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Names the file in errors about what stands in it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _sort(path, tensors, leaves, names):
    """The tensors as factors {module: {"a", "b"}} and whole weights {name: tensor}, ours names."""
    known = {name for leaf in leaves for name in leaf.names}
    modules = {module_of(name) for leaf in leaves if leaf.is_kernel for name in leaf.names}
    pairs: dict[str, dict[str, np.ndarray]] = {}
    whole: dict[str, tuple[int, np.ndarray]] = {}
    for key, value in tensors.items():
        if spell.is_original(key):
            continue  # PEFT's frozen copy of the base, which it never reads back.
        if (found := spell.factor(key)) is not None:
            module = names.of_checkpoint(found[0])
            if module in modules:
                pairs.setdefault(module, {})[found[1]] = value
                continue
        elif (found := spell.whole(key, names, known)) is not None:
            # A wrapper within another holds the weights that the network runs with.
            if found[0] not in whole or whole[found[0]][0] < found[1]:
                whole[found[0]] = (found[1], value)
            continue
        near = did_you_mean(names.of_checkpoint(key.removeprefix(spell.PREFIX)), known | modules)
        raise UserError(f"{path}: {key} has no place in this model; {near}")
    for module, pair in pairs.items():
        for name, other in (("a", "b"), ("b", "a")):
            if name not in pair:
                raise UserError(
                    f"{path}: {names.of_file(module)} has lora_{other.upper()} but no "
                    f"lora_{name.upper()}"
                )
    return pairs, {name: value for name, (_, value) in whole.items()}


def _places(path, config, leaves, names, pairs) -> list[Site]:
    """The sites of the configuration, which are those that the file has factors for."""
    with _blaming(path.parent / CONFIG):
        places = sites(config, leaves, names.of_file)
    wanted = {m for s in places for m, r in zip(s.modules, s.ranks, strict=True) if r}
    for module in sorted(wanted - pairs.keys()):
        raise UserError(f"{path}: no factors for {names.of_file(module)}, a target of {CONFIG}")
    for module in sorted(pairs.keys() - wanted):
        raise UserError(f"{path}: {names.of_file(module)} has factors but is no target in {CONFIG}")
    return places


def _factors(path, site: Site, pairs, names) -> dict[str, np.ndarray]:
    shapes = site.tree_shapes()
    out = {name: np.zeros(shapes[name], np.float32) for name in ("a", "b")}
    for i, (module, rank) in enumerate(zip(site.modules, site.ranks, strict=True)):
        if not rank:
            continue
        at = i if site.leaf.stacked else ...
        for name, shape in site.file_shapes(rank).items():
            tensor = pairs[module][name]
            if tensor.shape != shape:
                raise UserError(
                    f"{path}: lora_{name.upper()} of {names.of_file(module)} has shape "
                    f"{list(tensor.shape)}, the model and {CONFIG} call for {list(shape)}"
                )
            matrix = tensor.reshape(tensor.shape[0], -1).T
            if name == "a":
                out["a"][at][..., :rank] = matrix
            else:
                out["b"][at][:rank] = matrix
    return out


def _tensors_of(leaves: Sequence[Leaf]) -> dict[str, tuple[Leaf, int]]:
    return {name: (leaf, i) for leaf in leaves for i, name in enumerate(leaf.names)}


def _replacements(path, leaves, whole: dict[str, np.ndarray], params) -> Tree:
    tree: Tree = {}
    for leaf in leaves:
        given = [whole.get(name) for name in leaf.names]
        if all(value is None for value in given):
            continue
        if any(value is None for value in given):
            if params is None:
                lacking = leaf.names[[value is None for value in given].index(True)]
                raise UserError(f"{path} replaces some layers but not {lacking}; pass params")
            array = np.array(get(params, leaf.path), np.float32)
        else:
            array = np.empty(leaf.tree_shape, np.float32)
        for i, (name, value) in enumerate(zip(leaf.names, given, strict=True)):
            if value is None:
                continue
            if value.shape != leaf.shape:
                raise UserError(
                    f"{path}: {name} has shape {list(value.shape)}, the model calls for "
                    f"{list(leaf.shape)}"
                )
            array[i if leaf.stacked else ...] = leaf.from_file(value)
        put(tree, leaf.path, jnp.asarray(array))
    return tree


def facts(folders: dict[str, Any]) -> dict[str, dict[str, str]]:
    """SHA-256 of the files of adapter folders, by name: what a manifest says of them."""
    return {
        name: {file: atomic.sha256(Path(folder) / file) for file in (CONFIG, WEIGHTS)}
        for name, folder in folders.items()
    }
