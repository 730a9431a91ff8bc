"""Files and folders that are either whole or absent, whenever the process is killed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lrm_jax.run.errors import UserError

# Conditions of the machine that the user mends, not the program.
_USER_ERRNO = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a full disk or missing permission inside the block into a UserError that names
    `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _USER_ERRNO:
            raise
        raise UserError(
            f"cannot write {path}: {_USER_ERRNO[error.errno]}; mend that, then the same command "
            "resumes"
        ) from error


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes `data` to `path`: a reader sees the old content or the new, never a part.

    Written beside its place, flushed to the disk, then renamed.
    """
    path = Path(path)
    with writing(path):
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
        try:
            with os.fdopen(handle, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON, atomically. NaN and infinities become null."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def finite(value: Any) -> Any:
    """`value` for strict JSON: arrays and numpy numbers plain, NaN and infinities None."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if hasattr(value, "tolist"):  # numpy and jax arrays and scalars
        return finite(value.tolist())
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return str(value)


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value in `path`; UserError if the file is missing or not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is damaged or not JSON ({error}); delete it and run again"
        ) from error


def publish_folder(temporary: Path, final: Path) -> None:
    """Moves the finished folder `temporary` to `final`, replacing what was there.

    Every file is flushed first. A kill leaves `final` as it was, or absent, or whole: never a
    mixture.
    """
    with writing(final):
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                with open(path, "rb") as f:
                    os.fsync(f.fileno())
            elif path.is_dir():
                sync_folder(path)
        sync_folder(temporary)
        old = None
        if final.exists():
            old = (
                Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.", suffix=".old"))
                / "x"
            )
            os.replace(final, old)
        os.replace(temporary, final)
        sync_folder(final.parent)
    if old is not None:
        shutil.rmtree(old.parent, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries (which names exist) to the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, 64 hex digits."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
