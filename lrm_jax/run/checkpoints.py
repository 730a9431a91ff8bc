"""Checkpoints of a running loop, one folder an iteration, through Orbax.

A save copies the state to the host and returns; the disk is written beside the steps that follow.
With several processes all of them make the same calls, over a folder that all of them see; process
0 writes what all share, and each writes its own shards.
"""

from __future__ import annotations

import base64
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrm_jax.run import atomic, config, processes, trees
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
    data: Any = None
    """The state of this process's data iterator, as it was given; None where there was none."""


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

    # The one that saved last: of several processes' saves only one may be under way, because Orbax
    # names the places where they wait for each other by the step alone.
    _saved_last: Checkpoints | None = None

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
        """Waits for the save under way, as `wait` does, and ends Orbax's threads."""
        if self._manager_ is not None:
            try:
                self.wait()
            finally:
                self._manager_.close()
                self._manager_ = None
                if Checkpoints._saved_last is self:
                    Checkpoints._saved_last = None

    def wait(self) -> None:
        """Returns once every save is whole on the disk.

        Raises:
          UserError: it could not be written: the disk is full, say.
        """
        if self._manager_ is not None:
            with atomic.writing(self.folder):
                self._manager_.wait_until_finished()

    def steps(self) -> list[int]:
        """The iterations stored, ascending, without a look at their content; waits for the save
        under way."""
        self.wait()
        self._manager.reload()
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        state: Any,
        metadata: Mapping[str, Any] | None = None,
        *,
        data: Any = None,
    ) -> None:
        """Begins to store `state` after iteration `step`, and returns once it is copied to the
        host: the caller may change it or donate its buffers.

        It is on the disk after the next `save` began, or after `wait` or `close`; a kill before
        leaves the checkpoint before it. What went wrong in writing is raised by whichever of them
        comes next.

        Args:
          step: the iteration, >= 0. One already stored with this number is replaced.
          state: a pytree of arrays, numbers and typed PRNG keys: parameters, optimiser state, key,
            iteration. With several processes its jax.Arrays are global ones.
          metadata: JSON values to keep with it, the same in all processes.
          data: the state of this process's data iterator: bytes or a JSON value.
        """
        import orbax.checkpoint as ocp

        arrays, notes = _orbax_leaves(state)
        facts = {
            "fingerprint": self.fingerprint,
            "digests": _digests(arrays),
            "notes": notes,
            "leaves": {k: [list(a.shape), str(a.dtype)] for k, a in arrays.items()},
            "user": atomic.finite(dict(metadata or {})),
            "data": _gathered(data),
        }
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays), metadata=ocp.args.JsonSave(facts)
        )
        other, Checkpoints._saved_last = Checkpoints._saved_last, self
        if other not in (None, self) and processes.count() > 1:
            other.wait()
        with atomic.writing(self.folder):
            for later in [s for s in self.steps() if s >= step]:
                self._manager.delete(later)  # passed over by latest_valid: the loop redoes them
            self._manager.save(step, args=args, force=True)

    def latest_valid(self, like: Any) -> Checkpoint | None:
        """The newest checkpoint that is whole and was made with these settings, or None.

        Changes nothing on the disk: `save` replaces those that were passed over.

        Args:
          like: a tree of the structure, shapes, dtypes and shardings to restore to, e.g. the
            initial state.
        Raises:
          UserError: a whole checkpoint of the same settings does not fit `like`, or was made by
            another number of processes whose data iterators it holds.
        """
        for step in reversed(self.steps()):
            reason = arrays = None
            try:
                facts = self._metadata(step)
                if facts["fingerprint"] != self.fingerprint:
                    reason = "made with other settings; not used"
                else:
                    arrays = self._arrays(step, like, facts)
            except UserError:
                raise
            except Exception as error:  # Orbax reports damage by many types
                what = one_line(error)[:200] or type(error).__name__
                reason = f"damaged ({what}); going back to the one before it"
            if not _all_agree(reason is None):
                reason = reason or "another process cannot read it; going back to the one before it"
            if reason is not None:
                note(f"{self._path(step)}: {reason}")
                continue
            where = str(self._path(step))
            state = trees.restore_like(arrays, facts["notes"], like, where)
            return Checkpoint(step, state, facts["user"], _own(facts["data"], where))
        return None

    @property
    def _manager(self) -> Any:
        if self._manager_ is None:
            import orbax.checkpoint as ocp

            with atomic.writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep,
                step_prefix="step",
                step_format_fixed_length=6,
                enable_async_checkpointing=True,
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
        found = _digests(arrays)
        if wrong := [name for name, digest in facts["digests"].items() if found[name] != digest]:
            raise ValueError(f"the checksum of {wrong[0]} does not match")
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


def _digests(arrays: Mapping[str, Any]) -> dict[str, str]:
    """A checksum of 64 bits of each array's content, 16 hex digits.

    It is a sum modulo 2^32 of mixed words (twice, with other seeds): whole numbers may be added in
    any order, so that shards on several devices and hosts give what one array gives, and nothing
    has to be brought together but the sums.
    """
    import jax

    sums = {
        name: _array_sums(a, np) if isinstance(a, np.ndarray) else _jitted_sums(_everywhere(a))(a)
        for name, a in arrays.items()
        if not isinstance(a, jax.ShapeDtypeStruct)
    }
    return {k: "".join(f"{int(word):08x}" for word in v) for k, v in jax.device_get(sums).items()}


@functools.cache
def _jitted_sums(home: Any):
    import jax

    return jax.jit(lambda x: _array_sums(x, jax.numpy), out_shardings=home)


def _everywhere(array: Any) -> Any:
    """Where all processes can read what is computed from an array; None for wherever."""
    from jax.sharding import NamedSharding, PartitionSpec

    sharding = array.sharding
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec())
    return None


def _array_sums(x: Any, xp: Any) -> Any:
    """Two sums of an array's mixed words, uint32 [2]; `xp` is numpy or jax.numpy."""
    words = _words(x, xp)
    place = xp.zeros((), np.uint32)
    for axis, size in enumerate(words.shape):  # the flat index, without a reshape across shards
        shape = (1,) * axis + (size,) + (1,) * (words.ndim - axis - 1)
        place = place * np.uint32(size & 0xFFFFFFFF)
        place = place + xp.arange(size, dtype=np.uint32).reshape(shape)
    return xp.stack(
        [xp.sum(_mixed(words ^ _mixed(place + np.uint32(s))), dtype=np.uint32) for s in (1, 2**31)]
    )


def _words(x: Any, xp: Any) -> Any:
    """The bits of an array as uint32; 64-bit numbers, which only numpy has here, as two."""
    if x.dtype == bool:
        return x.astype(np.uint32)
    size = np.dtype(x.dtype).itemsize
    kind = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}[size]
    if xp is np:
        return np.atleast_1d(np.ascontiguousarray(x)).view(kind).astype(np.uint32)
    import jax

    return xp.atleast_1d(jax.lax.bitcast_convert_type(x, kind)).astype(np.uint32)


def _mixed(x: Any) -> Any:
    """The finaliser of MurmurHash3: every bit of a word depends on every bit of the argument."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _gathered(data: Any) -> list[Any]:
    """The iterators' states of all processes, as JSON values."""
    own = {"bytes": base64.b64encode(data).decode()} if isinstance(data, bytes) else {"json": data}
    import jax

    if jax.process_count() == 1:
        return [own]
    from jax.experimental import multihost_utils

    processes.meet()
    text = np.frombuffer(json.dumps(own).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded)
    return [
        json.loads(bytes(np.asarray(row[:n])).decode())
        for row, n in zip(rows, lengths, strict=True)
    ]


def _own(gathered: list[Any], where: str) -> Any:
    """This process's entry of `_gathered`."""
    import jax

    count = jax.process_count()
    if all(one.get("json", "") is None for one in gathered):
        return None
    if len(gathered) != count:
        raise UserError(
            f"{where} holds the data iterators of {len(gathered)} processes, this run has {count}: "
            "start as many, or begin anew in another work folder"
        )
    own = gathered[jax.process_index()]
    return base64.b64decode(own["bytes"]) if "bytes" in own else own["json"]


def _all_agree(fine: bool) -> bool:
    """Whether `fine` holds in every process."""
    import jax

    if jax.process_count() == 1:
        return fine
    from jax.experimental import multihost_utils

    processes.meet()
    return bool(multihost_utils.process_allgather(np.int32(fine)).all())
