"""Where in a parameter tree an adapter's factors go, and which leaves it replaces.

The tree's layout and its names in a checkpoint come from the caller, as a list of leaves: this part
knows nothing of any model. A leaf may stack the same weight of several layers (a scan); then its
factors are stacked likewise, and a layer that is not adapted, or has a smaller rank than the others
in its stack, has zeros there. Zeros stay zeros in training: where both factors of a rank are zero,
so are both gradients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from lrm_jax.lora.config import LoraConfig, no_match


class Leaf(Protocol):
    """One leaf of a parameter tree, as `qwen3_vl.names.Leaf` describes it.

    path: its keys. names: its tensors in the checkpoint, several if `stacked` (on the leading
    axis). shape: of one such tensor; a kernel is that tensor as a matrix [out, in], transposed.
    """

    path: tuple[str, ...]
    names: tuple[str, ...]
    shape: tuple[int, ...]
    stacked: bool

    @property
    def is_kernel(self) -> bool: ...

    @property
    def tree_shape(self) -> tuple[int, ...]: ...

    def from_file(self, tensor: np.ndarray) -> np.ndarray: ...

    def to_file(self, array: np.ndarray) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Site:
    """A linear map of the tree (or a stack of them) with factors.

    leaf: its kernel. modules: their names in the checkpoint. ranks: of each, 0 for none.
    scales: of each, 0.0 for none.
    """

    leaf: Leaf
    modules: tuple[str, ...]
    ranks: tuple[int, ...]
    scales: tuple[float, ...]

    @property
    def path(self) -> tuple[str, ...]:
        return self.leaf.path[:-1]

    @property
    def rank(self) -> int:
        return max(self.ranks)

    def tree_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the leaves "a" and "b" and "scale" in the adapter tree."""
        *lead, fan_in, fan_out = self.leaf.tree_shape
        a, b = (*lead, fan_in, self.rank), (*lead, self.rank, fan_out)
        return {"a": a, "b": b, "scale": tuple(lead)}

    def file_shapes(self, rank: int) -> dict[str, tuple[int, ...]]:
        """Shapes of PEFT's lora_A and lora_B; a convolution's B has trailing ones."""
        out, *rest = self.leaf.shape
        return {"a": (rank, *rest), "b": (out, rank, *(1,) * (len(rest) - 1))}


def module_of(tensor: str) -> str:
    """The module that holds a tensor of the checkpoint."""
    return tensor.rpartition(".")[0]


def sites(config: LoraConfig, leaves: Sequence[Leaf], spelling=lambda name: name) -> list[Site]:
    """Where the factors of an adapter with this configuration go.

    Args:
      config: what to adapt.
      leaves: of the parameter tree.
      spelling: gives a module's name as the configuration's author knew it.

    Raises:
      UserError: the configuration reaches no module.
    """
    found, modules = [], []
    for leaf in leaves:
        if not leaf.is_kernel:
            continue
        own = [module_of(name) for name in leaf.names]
        modules += own
        # "all-linear" leaves out convolutions and the output layer, the one kernel at the top.
        linear = len(leaf.shape) == 2 and len(leaf.path) > 2
        spelled = [spelling(m) for m in own]
        hits = [config.targets_module(m, linear) for m in spelled]
        if any(hits):
            pairs = list(zip(spelled, hits, strict=True))
            ranks = tuple(config.rank_of(m) if hit else 0 for m, hit in pairs)
            scales = tuple(config.scale_of(m) if hit else 0.0 for m, hit in pairs)
            found.append(Site(leaf, tuple(own), ranks, scales))
    if not found:
        raise no_match("targets", config.targets, modules)
    return found


def replaced(
    config: LoraConfig, leaves: Sequence[Leaf], spelling=lambda name: name
) -> dict[str, tuple[Leaf, int]]:
    """The tensors that `modules_to_save` replaces: (leaf, place in its stack) by name.

    Raises:
      UserError: one of the modules is not in the model.
    """
    known = [(n, leaf, i) for leaf in leaves for i, n in enumerate(leaf.names)]
    for saved in config.modules_to_save:
        alone = dataclasses.replace(config, modules_to_save=(saved,))
        if not any(alone.saves(spelling(name)) for name, _, _ in known):
            raise no_match("modules_to_save", saved, [module_of(name) for name, _, _ in known])
    return {name: (leaf, i) for name, leaf, i in known if config.saves(spelling(name))}


def put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def get(tree: Any, path: Sequence[str]) -> Any:
    """The node at `path`, or None if there is none."""
    for key in path:
        if not isinstance(tree, dict) or key not in tree:
            return None
        tree = tree[key]
    return tree
