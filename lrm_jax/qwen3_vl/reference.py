"""A checkpoint folder by reference: what adapters say about the base they were trained on.

Adapters are megabytes and are stored by value; the base is gigabytes, does not change, and is named
by its place and by the digest of its files.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lrm_jax.run import atomic
from lrm_jax.run.errors import UserError


def of(folder: str | os.PathLike) -> dict[str, Any]:
    """{"path": str, "sha256": {file name: digest}} of a folder's config and safetensors, for JSON.

    Raises:
      UserError: no such folder, or one without weights.
    """
    path = Path(folder).absolute()
    files = sorted([*path.glob("config.json"), *path.glob("*.safetensors")])
    if len(files) < 2:
        raise UserError(f"{folder}: no checkpoint there to refer to (config.json and safetensors)")
    return {"path": str(path), "sha256": {file.name: atomic.sha256(file) for file in files}}


def check(reference: dict[str, Any], folder: str | os.PathLike | None = None) -> Path:
    """The folder that `reference` names, or `folder` in its place, once its files prove the same.

    Raises:
      UserError: the folder is gone or its files differ; says which.
    """
    path = Path(folder or reference["path"])
    if not path.is_dir():
        raise UserError(f"the adapters' base {path} is gone; say where it is now")
    found, wanted = of(path)["sha256"], reference["sha256"]
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise UserError(
                f"{path / name} is not the file that the adapters were trained on (its sha256 "
                "differs); give the folder with their base"
            )
    return path
