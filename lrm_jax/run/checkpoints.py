"""Checkpoints of a running loop, one folder an iteration, through Orbax."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrm_jax.run import atomic, config, trees
from lrm_jax.run.errors import UserError, one_line
from lrm_jax.run.progress import note


class Checkpoint(NamedTuple):
    """One restored iteration."""

    step: int
    """The iteration it was saved after."""
    state: Any
    """The tree that was saved, on the devices of the tree it was restored like."""
    metadata: dict[str, Any]
    """What the caller saved beside it."""


class Checkpoints:
    """`FOLDER/step_000012` for each of the last iterations of a loop.

    A save that was cut off by a kill is not seen; a checkpoint that is damaged is passed over, with
    a line that says so, in favour of the one before. Checkpoints made with other settings are not
    used.

    Args:
      folder: where; made if missing.
      settings: everything the loop's state depends on (a dataclass, dict, fingerprint, ...).
      keep: how many of the latest to keep.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Any, *, keep: int = 2):
        self.folder = Path(folder).absolute()
        self.fingerprint = config.fingerprint(settings)
        self._keep = keep
        self._manager_: Any = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends Orbax's threads."""
        if self._manager_ is not None:
            self._manager_.close()
            self._manager_ = None

    def steps(self) -> list[int]:
        """The iterations stored, ascending, without a look at their content."""
        self._manager.reload()
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, metadata: Mapping[str, Any] | None = None) -> None:
        """Stores `state` after iteration `step`; on return it is on the disk.

        Args:
          step: the iteration, >= 0. One already stored with this number is replaced.
          state: a pytree of arrays, numbers and typed PRNG keys: parameters, optimiser
            state, key, iteration.
          metadata: JSON values to keep with it.
        """
        import orbax.checkpoint as ocp

        arrays, notes = _orbax_leaves(state)
        facts = {
            "fingerprint": self.fingerprint,
            "sha256": _digest(arrays),
            "notes": notes,
            "leaves": {k: [list(a.shape), str(a.dtype)] for k, a in arrays.items()},
            "user": atomic.finite(dict(metadata or {})),
        }
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays), metadata=ocp.args.JsonSave(facts)
        )
        with atomic.writing(self.folder):
            for later in [s for s in self.steps() if s >= step]:
                self._manager.delete(later)  # passed over by latest_valid: the loop redoes them
            self._manager.save(step, args=args, force=True)
            self._manager.wait_until_finished()

    def latest_valid(self, like: Any) -> Checkpoint | None:
        """The newest checkpoint that is whole and was made with these settings, or None.

        Changes nothing on the disk: `save` replaces those that were passed over.

        Args:
          like: a tree of the structure, shapes, dtypes and shardings to restore to, e.g. the
            initial state.
        Raises:
          UserError: a whole checkpoint of the same settings does not fit `like`.
        """
        for step in reversed(self.steps()):
            try:
                facts = self._metadata(step)
                if facts["fingerprint"] != self.fingerprint:
                    note(f"{self._path(step)}: made with other settings; not used")
                    continue
                arrays = self._arrays(step, like, facts)
            except UserError:
                raise
            except Exception as error:  # Orbax reports damage by many types
                reason = one_line(error)[:200] or type(error).__name__
                note(f"{self._path(step)}: damaged ({reason}); going back to the one before it")
                continue
            state = trees.restore_like(arrays, facts["notes"], like, str(self._path(step)))
            return Checkpoint(step, state, facts["user"])
        return None

    @property
    def _manager(self) -> Any:
        if self._manager_ is None:
            import orbax.checkpoint as ocp

            with atomic.writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            # Synchronous: a loop iteration takes seconds, a save tens of milliseconds, and "saved"
            # must mean saved.
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep,
                step_prefix="step",
                step_format_fixed_length=6,
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,
            )
            self._manager_ = ocp.CheckpointManager(self.folder, options=options)
        return self._manager_

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}"

    def _metadata(self, step: int) -> dict[str, Any]:
        import orbax.checkpoint as ocp

        restored = self._manager.restore(
            step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore())
        )
        return dict(restored.metadata)

    def _arrays(self, step: int, like: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The stored leaves on the devices of the leaves of `like`; ValueError where the content is
        damaged."""
        import jax
        import orbax.checkpoint as ocp

        wanted, _ = _orbax_leaves(like)
        target = {}
        for name, (shape, dtype_name) in facts["leaves"].items():
            dtype = trees.numpy_dtype(dtype_name)
            sharding = getattr(wanted.get(name), "sharding", None)
            # Leaves that are numpy stay numpy: JAX without x64 would narrow their 64-bit numbers.
            target[name] = (
                jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
                if sharding is not None
                else np.empty(shape, dtype)
            )
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        arrays = dict(self._manager.restore(step, args=args).state)
        if facts["sha256"] and _digest(arrays) != facts["sha256"]:
            raise ValueError("its checksum does not match")
        return arrays


def _orbax_leaves(state: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Leaves by name as arrays (jax arrays stay on their devices), and the notes of
    `trees.named_leaves`."""
    import jax

    arrays, notes = {}, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
        if name in arrays:
            raise ValueError(f"two leaves are both called {name!r}")
        note_of, leaf = trees.without_key_type(leaf)
        if note_of is not None:
            notes[name] = note_of
        arrays[name] = (
            leaf if isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)) else np.asarray(leaf)
        )
    return arrays, notes


def _digest(arrays: Mapping[str, Any]) -> str:
    """Checksum of the contents; "" where a leaf lives partly on other hosts."""
    if not all(getattr(a, "is_fully_addressable", True) for a in arrays.values()):
        return ""
    return trees.tree_digest({k: np.asarray(v) for k, v in arrays.items()})
