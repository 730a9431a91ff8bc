"""Sharding rules as data: which mesh axes cut which dimensions of the leaves at which paths.

A rule is (regular expression, axes of the last dimensions). The first rule whose expression matches
the whole path (keys joined by "/") decides. Axes are aligned to the right, so one rule serves a
layer's kernel [in, out] and the same kernels stacked [L, in, out]. Each entry of the axes is None,
a mesh axis, or a tuple of mesh axes. As in big_vision and openpi, rules replace annotations in the
network.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lrm_jax.run.errors import UserError

Axes = tuple[str | tuple[str, ...] | None, ...]
Rule = tuple[str, Axes]
INDIVISIBLE = ("error", "replicate")


@dataclasses.dataclass(frozen=True)
class Fallback:
    """A dimension that a rule would have cut but could not, and so is whole on every device."""

    path: str
    dimension: int
    size: int
    axes: tuple[str, ...]
    parts: int

    def __str__(self) -> str:
        return (
            f"{self.path}: dimension {self.dimension} of {self.size} is not a multiple of "
            f"{self.parts} ({'*'.join(self.axes)}); kept whole"
        )


@dataclasses.dataclass(frozen=True)
class Plan:
    """Shardings of a tree (same structure, NamedSharding leaves) and what could not be cut."""

    shardings: Any
    fallbacks: tuple[Fallback, ...]


def plan(tree: Any, rules: Sequence[Rule], mesh: Mesh, *, indivisible: str = "error") -> Plan:
    """The shardings of every leaf of `tree` (arrays or shapes) on `mesh`.

    Args:
      tree: nested dicts; only shapes are looked at.
      rules: in order; see the module.
      mesh: its axes that a rule does not name copy the leaf.
      indivisible: what to do where a dimension is no multiple of its axes: "error", or "replicate"
        that dimension and say so in `fallbacks`.
    Raises:
      UserError: a leaf that no rule matches; a rule for more dimensions than a leaf has, or with an
        axis that the mesh lacks or that it uses twice; with "error" an indivisible dimension.
    """
    if indivisible not in INDIVISIBLE:
        raise ValueError(f"indivisible={indivisible!r} is none of {INDIVISIBLE}")
    fallbacks: list[Fallback] = []

    def one(path, leaf):
        name = path_name(path)
        axes = _axes_of(name, np.shape(leaf), rules)
        return NamedSharding(mesh, _spec(name, np.shape(leaf), axes, mesh, indivisible, fallbacks))

    return Plan(jax.tree_util.tree_map_with_path(one, tree), tuple(fallbacks))


def follow(state: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
    """Shardings of an optimiser's state: a leaf goes where the parameter goes whose path ends its
    own and whose shape it has; single numbers go everywhere.

    Args:
      state: e.g. `jax.eval_shape(optimiser.init, params)`.
      params: the tree that was optimised. shardings: its shardings.
    Raises:
      UserError: an array of the state that resembles no parameter.
    """
    known = {}
    placed = jax.tree.leaves(shardings)
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(params), placed, strict=True
    ):
        known[path_name(path)] = (np.shape(leaf), sharding)

    def one(path, leaf):
        parts = path_name(path).split("/")
        for start in range(len(parts)):
            shape, sharding = known.get("/".join(parts[start:]), (None, None))
            if shape == np.shape(leaf):
                return sharding
        if math.prod(np.shape(leaf)) == 1:
            return NamedSharding(mesh, PartitionSpec())
        raise UserError(
            f"sharding: {'/'.join(parts)} {list(np.shape(leaf))} of the optimiser's state belongs "
            "to no parameter"
        )

    return jax.tree_util.tree_map_with_path(one, state)


def path_name(path: Sequence[Any]) -> str:
    """A tree path as keys joined by "/"."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def shard_bytes(tree: Any, shardings: Any) -> int:
    """Bytes of `tree` (arrays or shapes) that one device holds under `shardings`."""
    return sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    )


def _axes_of(name: str, shape: tuple[int, ...], rules: Sequence[Rule]) -> Axes:
    for pattern, axes in rules:
        if re.fullmatch(pattern, name):
            if len(axes) > len(shape):
                raise UserError(
                    f"sharding: rule {pattern!r} cuts {len(axes)} dimensions, {name} has shape "
                    f"{list(shape)}"
                )
            return (None,) * (len(shape) - len(axes)) + tuple(axes)
    raise UserError(f'sharding: no rule matches {name} {list(shape)}; add one (".*" copies)')


def _spec(name, shape, axes, mesh, indivisible, fallbacks) -> PartitionSpec:
    entries, used = [], set()
    for dimension, (size, entry) in enumerate(zip(shape, axes, strict=True)):
        group = (entry,) if isinstance(entry, str) else tuple(entry or ())
        for axis in group:
            if axis not in mesh.axis_names:
                raise UserError(
                    f"sharding: the rule for {name} names axis {axis!r}, the mesh has "
                    f"{', '.join(mesh.axis_names)}"
                )
            if axis in used:
                raise UserError(f"sharding: the rule for {name} uses axis {axis!r} twice")
            used.add(axis)
        parts = math.prod(mesh.shape[axis] for axis in group)
        if size % parts:
            fallback = Fallback(name, dimension, size, group, parts)
            if indivisible == "error":
                raise UserError(f"sharding: {str(fallback).removesuffix('; kept whole')}")
            fallbacks.append(fallback)
            group = ()
        # One name stands alone: jax counts P("x") and P(("x",)) as different in some versions.
        entries.append(group[0] if len(group) == 1 else group or None)
    return PartitionSpec(*entries)
