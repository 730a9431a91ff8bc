"""Dictionaries of arrays as folders of ``.npy`` files, read back memory-mapped."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np


def save_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write each array as ``folder/NAME.npy``."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", np.asarray(array))


def load_arrays(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of a folder; large ones stay on disk until they are read."""
    return {p.stem: np.load(p, mmap_mode="r") for p in sorted(folder.glob("*.npy"))}
