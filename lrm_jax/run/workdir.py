"""The folder of one run: stages that are computed once, a lock, and resumption after a kill at any
time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lrm_jax.run import atomic, config, processes
from lrm_jax.run.errors import UserError
from lrm_jax.run.progress import note

T = TypeVar("T")
_MARK = "stage.json"  # a stage folder is complete if and only if it holds this file, written last


class Workdir:
    """A run's folder, held by one process at a time, or by all processes of one run.

    Use as a context manager, or call `close`. Layout:

        stages/NAME/           one finished stage: its files and stage.json (fingerprint, settings,
        checksums) stages/.NAME.work/     what an unfinished stage keeps between tries
        (`Stage.scratch`) checkpoints/           a running loop's iterations
        (`lrm_jax.run.checkpoints`) manifest.json, metrics.jsonl, summary.json, report.html, ...

    Args:
      path: the folder; made if missing.
    Raises:
      UserError: it cannot be made or written, or another live process holds it.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path).expanduser().absolute()
        self._shown = str(path)
        self._made = not self.path.exists()
        self._lock: int | None = None
        if processes.is_first():
            self._open(path)
        processes.wait_for_all(f"work folder {self.path.name}")

    def _open(self, path: str | os.PathLike[str]) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(
                f"work folder {path} cannot be written ({error.strerror}): "
                "choose another with --workdir=DIR"
            ) from error
        self._lock = handle
        self._acquire(handle)
        self._clean()

    def __enter__(self) -> Workdir:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __fspath__(self) -> str:
        return str(self.path)

    def close(self) -> None:
        """Lets another process have the folder; removes it if this process made it and left it
        empty."""
        if self._lock is None:
            return
        # The lock file stays: unlinking it would let a waiting process lock a file that no longer
        # has a name.
        if self._made and [p.name for p in self.path.iterdir()] == [".lock"]:
            with contextlib.suppress(OSError):
                (self.path / ".lock").unlink()
                self.path.rmdir()
        os.close(self._lock)
        self._lock = None

    def stage(self, name: str, settings: Any, after: Sequence[Stage] = ()) -> Stage:
        """The stage `name`; `.done` says whether an earlier run has finished it with the same
        settings.

        Args:
          name: a file name, e.g. "demonstrations".
          settings: everything the result depends on besides earlier stages: a dataclass, ConfigDict
            or dict.
          after: the stages whose results this one reads. If one of them changes, this one is
            computed again.
        """
        if not name or name != Path(name).name or name.startswith("."):
            raise ValueError(f"not a stage name: {name!r}")
        return Stage(self.path / "stages", name, settings, after)

    def _acquire(self, handle: int) -> None:
        import fcntl  # here, so that the package can be imported where it does not exist

        # flock belongs to the open file: the system drops it when the process dies, so no lock
        # outlives its holder. It may be missing on network file systems: then there is no
        # protection, and we say so.
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(handle)
            self._lock = None
            raise UserError(
                f"work folder {self._shown} is in use by {holder}: "
                "wait for it, end it, or choose another with --workdir=DIR"
            ) from None
        except OSError as error:
            note(
                f"{self.path}: no file locks here ({error.strerror}); "
                "do not start two runs in this folder"
            )
        os.ftruncate(handle, 0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        os.pwrite(
            handle, f"process {os.getpid()} on {socket.gethostname()} since {started}".encode(), 0
        )

    def _clean(self) -> None:
        """Removes what a killed process left half-written. We hold the lock, so nobody is writing
        it."""
        for folder in (self.path, self.path / "stages"):
            if folder.is_dir():
                for path in folder.glob(".*"):
                    if path.name.endswith((".tmp", ".old")):
                        shutil.rmtree(path) if path.is_dir() else path.unlink()


class Stage:
    """One step of a run whose files are kept. Made by `Workdir.stage`.

        demos = work.stage("demonstrations", settings)
        if not demos.done:
            with demos.write() as folder:
                save_tree(folder / "episodes.safetensors", tree)
        tree = load_tree(demos.path / "episodes.safetensors")

    or, in one call, `demos.run(compute, load)`.

    Attributes:
      name: its name. path: the folder of its files once it is done.
      fingerprint: 16 hex digits over the settings, the stages before it and the version of lrm_jax.
    """

    def __init__(self, root: Path, name: str, settings: Any, after: Sequence[Stage]):
        self.name = name
        self.path = root / name
        self._root = root
        self._facts = {
            "version": _package_version(),
            "after": {s.name: s.fingerprint for s in after},
            "settings": config.to_dict(settings),
        }
        self.fingerprint = config.fingerprint(self._facts)
        self._done: bool | None = None

    @property
    def done(self) -> bool:
        """Whether the files of this stage are there, whole, and made with these settings.

        Where an older result has to be computed again, a line on stderr says why.
        """
        if self._done is None:
            why = self._why_not() if processes.is_first() else ""
            if why:
                note(f"{self.name}: {why}; computing it again")
            self._done = processes.as_first(why is None)
        return self._done

    @property
    def seconds(self) -> float:
        """How long computing this stage took, in seconds, over all tries. Needs `done`."""
        return float(atomic.read_json(self.path / _MARK)["seconds"])

    @property
    def scratch(self) -> Path:
        """A folder that survives a kill, for the checkpoints of a long stage; deleted when the
        stage is done.

        Emptied first if an earlier try had other settings.
        """
        folder = self._root / f".{self.name}.work"
        if processes.is_first():
            self._own_scratch(folder)
        processes.wait_for_all(f"scratch {self.name}")
        return folder

    def _own_scratch(self, folder: Path) -> None:
        owner = folder / "fingerprint"
        if folder.exists() and (not owner.exists() or owner.read_text() != self.fingerprint):
            if owner.exists():
                note(
                    f"{self.name}: its settings changed since it was interrupted; starting it anew"
                )
            shutil.rmtree(folder)
        with atomic.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if not owner.exists():
            atomic.write_bytes(owner, self.fingerprint.encode())

    @contextlib.contextmanager
    def write(self) -> Iterator[Path]:
        """Gives an empty folder to fill; on leaving the block normally it becomes the stage's
        result.

        An exception or a kill leaves the stage as it was before. Of several processes each fills a
        folder, and the first one's counts.
        """
        if not processes.is_first():
            with tempfile.TemporaryDirectory() as other:
                yield Path(other)
            self._published()
            return
        temporary = self._root / f".{self.name}.tmp"
        with atomic.writing(temporary):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        started = time.monotonic()
        try:
            with atomic.writing(temporary):
                yield temporary
            processes.wait_for_all(f"stage {self.name} computed")
            self._finish(temporary, time.monotonic() - started)
            processes.wait_for_all(f"stage {self.name} published")
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def run(self, compute: Callable[[Path], Any], load: Callable[[Path], T]) -> T:
        """`load(folder)` of the finished stage, after `compute(folder)` where it is not done yet.

        The result always comes through `load`, so a fresh run and a resumed one see the same thing.
        """
        if not self.done:
            with self.write() as folder:
                compute(folder)
        return load(self.path)

    def _published(self) -> None:
        """What the others do while the first process finishes the stage."""
        processes.wait_for_all(f"stage {self.name} computed")
        processes.wait_for_all(f"stage {self.name} published")
        self._done = True

    def _finish(self, temporary: Path, seconds: float) -> None:
        files = {
            str(p.relative_to(temporary)): {"bytes": p.stat().st_size, "sha256": atomic.sha256(p)}
            for p in sorted(temporary.rglob("*"))
            if p.is_file()
        }
        scratch = self._root / f".{self.name}.work"
        mark = {"fingerprint": self.fingerprint, "seconds": seconds, "files": files, **self._facts}
        atomic.write_json(temporary / _MARK, mark)
        atomic.publish_folder(temporary, self.path)
        shutil.rmtree(scratch, ignore_errors=True)
        self._done = True

    def _why_not(self) -> str | None:
        """Why the stored result cannot be used; None if it can, "" if there is none."""
        try:
            mark = json.loads((self.path / _MARK).read_text(encoding="utf-8"))
            if not isinstance(mark, dict) or "fingerprint" not in mark:
                raise ValueError("no fingerprint")
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except ValueError:
            return f"{self.path / _MARK} is damaged"
        if mark["fingerprint"] != self.fingerprint:
            before, now = mark.get("after", {}), self._facts["after"]
            changed = [n for n in now if before.get(n) != now[n]]
            if mark.get("version") != self._facts["version"]:
                return f"made by lrm_jax {mark.get('version')}, this is {self._facts['version']}"
            if changed or set(before) != set(now):
                return f"stage {(changed or sorted(set(before) ^ set(now)))[0]} before it changed"
            what = config.differences(mark.get("settings"), self._facts["settings"])
            return "settings changed (" + ", ".join(what) + ")"
        for name, facts in mark["files"].items():
            path = self.path / name
            if not path.is_file():
                return f"{path} is missing"
            if path.stat().st_size != facts["bytes"] or atomic.sha256(path) != facts["sha256"]:
                return f"{path} is truncated or damaged"
        return None


def _package_version() -> str:
    import lrm_jax

    return lrm_jax.__version__
