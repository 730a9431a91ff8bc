"""Broken episodes: counted and reported, up to a limit; never silently dropped."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lrm_jax.episodes.broken import BrokenEpisode, check
from lrm_jax.episodes.episode import Episode
from lrm_jax.episodes.source import Source
from lrm_jax.run import atomic
from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError


@dataclasses.dataclass(frozen=True)
class Limit:
    """How many broken episodes a source may have: the larger of `count` and `share` of it."""

    count: int = field(10, ge=0)
    share: float = field(0.01, ge=0, le=1)

    def of(self, episodes: int) -> int:
        """The number for a source of so many episodes."""
        return max(self.count, int(self.share * episodes))


class Quarantine:
    """A source whose broken episodes are put aside.

    `quarantine[i]` and `load(i)` raise BrokenEpisode for them as the source does, but write them
    down first: source, episode's id and reason, in `report` (JSON), rewritten with each new one.
    Thread-safe.

    Args:
      source: any reader. limit: see `Limit`. report: a file, or None.
    Raises:
      UserError: from the access that finds one broken episode more than the limit.
    """

    def __init__(
        self,
        source: Source,
        limit: Limit | None = None,
        report: str | os.PathLike[str] | None = None,
    ):
        self.source, self.name = source, source.name
        self.limit = (limit or Limit()).of(len(source))
        self._path = None if report is None else Path(report)
        self._lock = threading.Lock()
        self._broken: dict[int, dict[str, str]] = {}
        self._read: set[int] = set()

    def __len__(self) -> int:
        return len(self.source)

    def id(self, i: int) -> str:
        """What the data set itself calls episode `i`."""
        return self.source.id(i)

    def __getitem__(self, i: int) -> Episode:
        return self._guarded(i, lambda: check(self.source[i]))

    def load(self, i: int, see: Callable[[Episode], Episode] | None = None) -> Episode:
        """Episode `i`, passed through `see`, with its frames decoded to an array."""

        def read() -> Episode:
            episode = check(self.source[i])
            if see is not None:
                episode = see(episode)
            return dataclasses.replace(episode, frames=np.asarray(episode.frames))

        return self._guarded(i, read)

    def good(self) -> Iterator[Episode]:
        """The episodes that are not broken as far as can be seen without decoding, in order."""
        for i in range(len(self)):
            try:
                yield self[i]
            except BrokenEpisode:
                continue  # written down by self[i]

    @property
    def broken(self) -> int:
        """How many broken episodes were met so far."""
        return len(self._broken)

    def summary(self) -> dict[str, Any]:
        """The report: source, episodes, read, broken, limit, by_kind, and each broken episode."""
        with self._lock:
            found = [self._broken[i] for i in sorted(self._broken)]
            return {
                "source": self.name,
                "episodes": len(self),
                "read": len(self._read),
                "broken": len(found),
                "limit": self.limit,
                "by_kind": dict(Counter(b["kind"] for b in found)),
                "quarantined": found,
            }

    def write(self) -> None:
        """Writes the report, if it has a place."""
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_json(self._path, self.summary())

    def _guarded(self, i: int, read: Callable[[], Episode]) -> Episode:
        try:
            episode = read()
        except BrokenEpisode as error:
            self._put_aside(i, error)
            raise
        with self._lock:
            self._read.add(i)
        return episode

    def _put_aside(self, i: int, error: BrokenEpisode) -> None:
        with self._lock:
            self._read.add(i)
            known = i in self._broken
            self._broken[i] = {
                "source": self.name, "episode": self.source.id(i), "kind": error.kind,
                "reason": str(error),
            }  # fmt: skip
            count = len(self._broken)
        if not known:
            self.write()
        if count > self.limit:
            where = f"; the report is {self._path}" if self._path else ""
            raise UserError(
                f"{self.name}: {count} broken episodes are more than the limit of {self.limit}; "
                f"the last is {self.source.id(i)}: {error}{where}"
            ) from error
