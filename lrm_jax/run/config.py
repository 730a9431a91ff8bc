"""Typed configuration: frozen dataclasses built from `ml_collections` files, checked key by key."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import math
import numbers
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lrm_jax.run.errors import UserError, did_you_mean

T = TypeVar("T")
_BOUNDS = {
    "ge": ("at least", lambda v, b: v >= b),
    "gt": ("more than", lambda v, b: v > b),
    "le": ("at most", lambda v, b: v <= b),
    "lt": ("less than", lambda v, b: v < b),
}


def field(
    default: Any = dataclasses.MISSING,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: Sequence[Any] | None = None,
    default_factory: Any = dataclasses.MISSING,
) -> Any:
    """A dataclass field with bounds that `build` enforces, e.g. `lr: float = field(3e-4, gt=0)`.

    Args:
      default, default_factory: as for `dataclasses.field`; without either the key is required.
      ge, gt, le, lt: bounds on a number, or on each number of a tuple.
      choices: the values allowed, for the field itself or for each element of a tuple.
    """
    limits = {"ge": ge, "gt": gt, "le": le, "lt": lt, "choices": choices}
    metadata = {k: v for k, v in limits.items() if v is not None}
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def sibling(file: str, name: str) -> Any:
    """The config module NAME.py that lies beside ``file`` (configs are files, not a package)."""
    path = Path(file).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(cls: type[T], config: Any, *, key: str = "config") -> T:
    """Builds the dataclass `cls`, nested ones included, from a `ConfigDict` or a mapping.

    Types are checked, not coerced, except that an int is taken where a float is due and a list
    where a tuple is. After the fields, a `validate(self)` method is called if the class has one; it
    may raise UserError or ValueError, and its message is prefixed with the key.

    Args:
      cls: a dataclass type. Field types may be bool, int, float, str, Any, Literal, Optional/Union,
        tuples, lists, dicts and other dataclasses.
      config: the values; keys that are absent take the dataclass's defaults.
      key: how the user addresses `config`; error messages name `key.field`.
    Raises:
      UserError: an unknown or missing key, a wrong type, a value out of range.
    """
    if dataclasses.is_dataclass(config) and isinstance(config, cls):
        _validate(config, key)
        return config
    values = _mapping(config)
    if values is None:
        raise UserError(
            f"{key} must be a group of settings for {cls.__name__}, not {_show(config)}"
        )
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for name in values:
        if name not in fields:
            raise UserError(f"unknown key {key}.{name}: {did_you_mean(name, fields)}")
    hints = typing.get_type_hints(cls)
    made = {}
    for name, spec in fields.items():
        full = f"{key}.{name}"
        if name not in values:
            required = (
                spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
            )
            if required:
                raise UserError(
                    f"missing key {full}: {cls.__name__} needs it ({_type_name(hints[name])})"
                )
            continue
        value = _convert(hints[name], values[name], full)
        _check_bounds(spec.metadata, value, full)
        made[name] = value
    try:
        built = cls(**made)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    except (ValueError, TypeError) as error:  # raised by a __post_init__
        raise UserError(f"{key}: {error}") from error
    for name, spec in fields.items():  # defaults are held to the same bounds
        if name not in made:
            _check_bounds(spec.metadata, getattr(built, name), f"{key}.{name}")
    _validate(built, key)
    return built


def to_dict(config: Any) -> Any:
    """The plain form (dict, list, str, number, bool, None) of a dataclass, ConfigDict or nested
    mapping.

    `build(cls, to_dict(x)) == x` for every dataclass that `build` can make.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    mapping = _mapping(config)
    if mapping is not None:
        return {str(k): to_dict(v) for k, v in mapping.items()}
    if isinstance(config, (list, tuple)):
        return [to_dict(v) for v in config]
    if isinstance(config, (set, frozenset)):
        return sorted((to_dict(v) for v in config), key=repr)
    if isinstance(config, np.generic):
        return config.item()
    if isinstance(config, (str, bool, int, float)) or config is None:
        return config
    if hasattr(config, "__array__"):
        array = np.asarray(config)
        digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        return {"dtype": str(array.dtype), "shape": list(array.shape), "sha256": digest}
    if hasattr(config, "__fspath__"):
        return config.__fspath__()
    raise TypeError(f"{type(config).__name__} has no plain form: {config!r}")


def fingerprint(*parts: Any) -> str:
    """A digest of configurations: 16 hex digits, equal in every process and on every machine.

    Dictionaries are compared without regard to order; 1 and 1.0 differ (`build` removes that
    difference, so fingerprint what it returns). Arrays count by dtype, shape and content.
    """
    plain = [to_dict(p) for p in parts]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: Any, new: Any, prefix: str = "", limit: int = 3) -> list[str]:
    """What changed from plain `old` to plain `new`: at most `limit` lines "key: 1 -> 2"."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines: list[str] = []
        for name in dict.fromkeys([*old, *new]):
            path = f"{prefix}.{name}" if prefix else str(name)
            if name not in old:
                lines.append(f"{path}: new")
            elif name not in new:
                lines.append(f"{path}: gone")
            else:
                lines += differences(old[name], new[name], path, limit)
        return lines[:limit]
    return [] if old == new else [f"{prefix or 'value'}: {_show(old)} -> {_show(new)}"]


def _mapping(config: Any) -> dict[str, Any] | None:
    """`config` as a dict of one level with ml_collections' references resolved, or None."""
    if hasattr(config, "items") and hasattr(
        config, "lock"
    ):  # ConfigDict: plain iteration resolves references
        return {k: config[k] for k in config}
    return dict(config) if isinstance(config, Mapping) else None


def _validate(built: Any, key: str) -> None:
    check = getattr(built, "validate", None)
    if check is None:
        return
    try:
        check()
    except (UserError, ValueError) as error:
        raise UserError(f"{key}: {error}") from error


def _check_bounds(limits: Mapping[str, Any], value: Any, key: str) -> None:
    if not limits or value is None:
        return
    for element in value if isinstance(value, (tuple, list)) else (value,):
        choices = limits.get("choices")
        if choices is not None and element not in choices:
            raise UserError(
                f"{key} is {_show(element)}: {did_you_mean(str(element), map(str, choices))}"
            )
        for name, (words, holds) in _BOUNDS.items():
            # Written as "not holds" so that NaN, which compares false with everything, is refused.
            if name in limits and not holds(element, limits[name]):
                raise UserError(f"{key} is {_show(element)}: must be {words} {limits[name]}")


def _convert(expected: Any, value: Any, key: str) -> Any:
    """`value` as an instance of the annotation `expected`, or UserError."""
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if expected is Any or isinstance(expected, TypeVar):
        return value
    if origin is typing.Annotated:
        return _convert(args[0], value, key)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, expected, value, key)
    if origin is typing.Literal:
        if value in args and type(value) in {type(a) for a in args}:
            return value
        raise UserError(f"{key} is {_show(value)}: {did_you_mean(str(value), map(str, args))}")
    if dataclasses.is_dataclass(expected):
        return build(expected, value, key=key)
    kind = origin or expected
    if kind in (tuple, list, Sequence) or getattr(kind, "__name__", "") == "Sequence":
        return _convert_sequence(kind, args, expected, value, key)
    if kind in (dict, Mapping):
        mapping = _mapping(value)
        if mapping is None:
            raise _wrong_type(expected, value, key)
        of = args[1] if len(args) == 2 else Any
        return {k: _convert(of, v, f"{key}.{k}") for k, v in mapping.items()}
    return _convert_scalar(kind, expected, value, key)


def _convert_union(args: Sequence[Any], expected: Any, value: Any, key: str) -> Any:
    if value is None and type(None) in args:
        return None
    options = [a for a in args if a is not type(None)]
    if len(options) == 1:
        return _convert(options[0], value, key)  # keeps the inner message
    for option in options:
        try:
            return _convert(option, value, key)
        except UserError:
            continue
    raise _wrong_type(expected, value, key)


def _convert_sequence(kind: Any, args: Sequence[Any], expected: Any, value: Any, key: str) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, (tuple, list)):
        raise _wrong_type(expected, value, key)
    fixed = kind is tuple and args and args[-1] is not Ellipsis
    if fixed and len(args) != len(value):
        raise UserError(
            f"{key} has {len(value)} elements: {_type_name(expected)} needs {len(args)}"
        )
    of = args if fixed else [args[0] if args else Any] * len(value)
    items = [_convert(t, v, f"{key}[{i}]") for i, (t, v) in enumerate(zip(of, value, strict=True))]
    return items if kind is list else tuple(items)


def _convert_scalar(kind: Any, expected: Any, value: Any, key: str) -> Any:
    is_bool = isinstance(value, (bool, np.bool_))
    if kind is bool and is_bool:
        return bool(value)
    if kind is int and isinstance(value, numbers.Integral) and not is_bool:
        return int(value)
    if kind is float and isinstance(value, numbers.Real) and not is_bool:
        if math.isnan(value):
            raise UserError(f"{key} is not a number (nan): give a finite value")
        return float(value)
    if kind not in (bool, int, float) and isinstance(kind, type) and isinstance(value, kind):
        return value
    raise _wrong_type(expected, value, key)


def _wrong_type(expected: Any, value: Any, key: str) -> UserError:
    return UserError(
        f"{key} is {_show(value)} ({type(value).__name__}): must be {_type_name(expected)}"
    )


def _type_name(annotation: Any) -> str:
    if typing.get_origin(annotation) is None and hasattr(annotation, "__name__"):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
