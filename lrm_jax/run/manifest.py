"""`manifest.json`: what a result was made with, so that it can be made again."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from lrm_jax.run import atomic, processes
from lrm_jax.run import config as typed_config
from lrm_jax.run.errors import UserError
from lrm_jax.run.preemption import Terminated

FILE = "manifest.json"
PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "mujoco", "mujoco-mjx", "brax", "numpy",
    "safetensors", "tokenizers", "ml_collections", "libtpu",
)  # fmt: skip


def write(folder: str | os.PathLike[str], *, config: Any = None, **facts: Any) -> dict[str, Any]:
    """Writes `FOLDER/manifest.json` and returns its content.

    Args:
      folder: an existing folder.
      config: the run's configuration: a dataclass, ConfigDict, dict or None.
      facts: JSON values to add, by convention `hashes={"model": ..., "adapter": ..., "prompt":
        ...}`,
        `seeds={...}`, `job=...`. Starting a device backend is avoided until JAX has one: `device`
        is filled in by `update` and at the end of `recording`.
    """
    content = {
        "package": {"name": "lrm_jax", "version": _own_version(), "git": git_revision()},
        "config": None if config is None else typed_config.to_dict(config),
        "config_fingerprint": None if config is None else typed_config.fingerprint(config),
        "argv": list(sys.argv),
        "versions": versions(),
        "python": platform.python_version(),
        "host": {"system": platform.platform(), "cpus": _cpus()},
        "environment": {
            k: os.environ[k] for k in ("XLA_FLAGS", "JAX_PLATFORMS") if k in os.environ
        },
        "device": device(),
        **facts,
    }
    atomic.write_json(Path(folder) / FILE, content)
    return content


def update(folder: str | os.PathLike[str], **facts: Any) -> dict[str, Any]:
    """Adds `facts` to the manifest in `folder`; dictionaries are merged one level deep."""
    path = Path(folder) / FILE
    content = atomic.read_json(path)
    for name, value in facts.items():
        old = content.get(name)
        content[name] = (
            {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        )
    content["device"] = device() or content.get("device")
    atomic.write_json(path, content)
    return content


@contextlib.contextmanager
def recording(
    folder: str | os.PathLike[str], *, config: Any = None, **facts: Any
) -> Iterator[None]:
    """Writes the manifest, and on leaving the block how the run ended.

    `runs` lists each start in this folder with its times and status ("done", "failed",
    "interrupted", or "running" if it was killed), so a resumed run keeps the history of its earlier
    tries. Of several processes the first writes.
    """
    if not processes.is_first():
        yield
        return
    runs: list[dict[str, Any]] = []
    with contextlib.suppress(UserError):  # none yet, or damaged: begin a new history
        runs = list(atomic.read_json(Path(folder) / FILE).get("runs", []))
    began = time.time()
    entry = {
        "started": _stamp(began),
        "ended": None,
        "seconds": None,
        "status": "running",
        "argv": list(sys.argv),
    }
    write(folder, config=config, runs=[*runs, entry], **facts)
    entry["status"] = "failed"
    try:
        yield
        entry["status"] = "done"
    except (KeyboardInterrupt, Terminated):
        entry["status"] = "interrupted"
        raise
    except UserError as error:
        entry["error"] = str(error)
        raise
    except BaseException as error:
        entry["error"] = f"{type(error).__name__}: {error}"[:500]
        raise
    finally:
        entry["ended"] = _stamp(time.time())
        entry["seconds"] = round(time.time() - began, 3)
        update(folder, runs=[*runs, entry])


def versions() -> dict[str, str]:
    """Versions of the installed packages that results depend on."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def git_revision() -> dict[str, Any] | None:
    """`{"commit", "dirty"}` of the clone that this package runs from, or None outside one."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None

    def git(*args: str) -> str:
        command = ["git", "-c", "safe.directory=*", "-C", str(folder), *args]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "-uno")),
        }
    except (OSError, subprocess.SubprocessError):  # no git, no commit yet, a broken clone
        return None


def device() -> dict[str, Any] | None:
    """The devices of JAX, or None while JAX has not started (asking would start it)."""
    from lrm_jax.run.platform import backend_started

    if not backend_started():
        return None
    import jax

    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": len(devices),
        "processes": jax.process_count(),
    }


def _own_version() -> str:
    import lrm_jax

    return lrm_jax.__version__


def _cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))  # those we may use, not those that exist
    except AttributeError:
        return os.cpu_count() or 1


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))
