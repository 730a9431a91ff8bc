"""Several sources as one stream of decoded episodes: by weight, reproducible, restartable.

grain does the work: `MapDataset` shuffles, interleaves and shards numbers of episodes; its threads
decode ahead of whoever iterates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lrm_jax.episodes.broken import BrokenEpisode
from lrm_jax.episodes.episode import Episode
from lrm_jax.episodes.frames import ChosenFrames
from lrm_jax.episodes.quarantine import Quarantine
from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError


@dataclasses.dataclass(frozen=True)
class Reading:
    """How episodes are decoded ahead. threads: that decode. ahead: episodes decoded and waiting."""

    threads: int = field(4, ge=1)
    ahead: int = field(16, ge=1)


class Drawn(NamedTuple):
    """source: number of it in the mixture. number: of the episode in the source."""

    source: int
    number: int
    episode: Episode


@dataclasses.dataclass(frozen=True)
class View:
    """What is kept of an episode.

    frames: at most so many, evenly spaced, first and last among them; 0 keeps all. size: (height,
    width) in pixels; None keeps it. Of a success the share `meta["trim_end"]` of its frames is cut
    off the end before, where neither `progress` nor `meta["success_frame"]` says when it was done.
    What belongs to frames (progress, success_frame, proprio) is kept for those that are; actions
    go, and the stride is then 1.
    """

    frames: int = 0
    size: tuple[int, int] | None = None

    def __call__(self, episode: Episode) -> Episode:
        count = len(episode.frames)
        done = episode.meta.get("success_frame")
        if episode.success and done is None and episode.progress is None:
            cut = int(episode.meta.get("trim_end", 0.0) * count)
            count = max(count - cut, min(count, 2))
        kept = min(self.frames or count, count)
        places = np.round(np.linspace(0, count - 1, kept)).astype(np.int64)
        same = len(places) == len(episode.frames)
        if same and self.size in (None, tuple(episode.frames.shape[1:3])):
            return episode
        meta = dict(episode.meta)
        if done is not None:  # the first kept frame at which it is done; the last is always kept
            meta["success_frame"] = int(np.searchsorted(places, done))
        proprio, stride = episode.proprio, int(meta.get("stride", 1))
        if not same:
            meta["stride"] = 1
            proprio = None if proprio is None else proprio[places * stride]
        if others := meta.get("progress_by_task"):
            meta["progress_by_task"] = {s: np.asarray(p)[places] for s, p in others.items()}
        return dataclasses.replace(
            episode,
            frames=ChosenFrames(episode.frames, places, self.size),
            fps=episode.fps * max(kept - 1, 1) / max(count - 1, 1),
            progress=None if episode.progress is None else np.asarray(episode.progress)[places],
            proprio=proprio,
            actions=episode.actions if same else None,
            meta=meta,
        )


class Mixture:
    """An endless stream of `Drawn` episodes of several sources.

    Each source is shuffled anew in every pass over it; passes over a small one come more often.
    Sources are interleaved evenly, so that after any number of draws each has its share, within
    one. The order depends on `seed` alone, not on threads; broken episodes are left out (and
    counted by their quarantine).

    Args:
      sources: behind quarantines. weights: relative shares of draws, one a source.
      view: what is kept of an episode.
      numbers: which episodes of each source; all by default.
      process, processes: every draw belongs to exactly one process; all have every source's share.
    """

    def __init__(
        self,
        sources: Sequence[Quarantine],
        weights: Sequence[float] | None = None,
        *,
        view: Callable[[Episode], Episode] | None = None,
        seed: int = 0,
        process: int = 0,
        processes: int = 1,
        reading: Reading | None = None,
        numbers: Sequence[range] | None = None,
    ):
        if not sources:
            raise UserError("a mixture needs at least one source")
        weights = [1.0] * len(sources) if weights is None else list(weights)
        if len(weights) != len(sources) or min(weights) <= 0:
            raise UserError(f"a mixture of {len(sources)} sources needs as many positive weights")
        self._sources, self._view = list(sources), view
        self._numbers = [range(len(s)) for s in sources] if numbers is None else list(numbers)
        self._weights, self._seed = weights, seed
        self._process, self._processes = process, processes
        self._reading = reading or Reading()

    def __iter__(self) -> MixtureIterator:
        """Iterators count for themselves: each begins at the beginning."""
        return self.mapped(None)

    def mapped(self, make: Callable[[Drawn, np.random.Generator], Any] | None) -> MixtureIterator:
        """The stream of `make(drawn, rng)`, called in the threads that decode; rng depends on
        `seed` and the place in the stream alone. None gives the draws themselves."""
        import grain

        parts = [
            grain.MapDataset.source(numbers)
            .seed(int(np.random.default_rng([self._seed, k]).integers(2**31)))
            .shuffle()
            .repeat()[self._process :: self._processes]
            .map(_Numbered(k))
            for k, numbers in enumerate(self._numbers)
        ]
        drawn = grain.MapDataset.mix(parts, self._weights).map(self._load)
        if make is not None:
            # The place in the stream is that of the process: its number belongs to the seed.
            seed = int(np.random.default_rng([self._seed, self._process, 1]).integers(2**31))
            drawn = drawn.random_map(
                lambda one, rng: None if one is None else make(one, rng), seed=seed
            )
        return MixtureIterator(iter(self._read(drawn)))

    def once(self) -> Iterator[Drawn]:
        """Every episode of every source once, in their order, decoded ahead; weights and shuffling
        do not count."""
        import grain

        pairs = [(k, n) for k, numbers in enumerate(self._numbers) for n in numbers]
        own = pairs[self._process :: self._processes]
        return iter(self._read(grain.MapDataset.source(own).map(self._load)))

    def _read(self, drawn: Any) -> Any:
        import grain

        options = grain.ReadOptions(
            num_threads=self._reading.threads,
            prefetch_buffer_size=max(self._reading.ahead, self._reading.threads),
        )
        return drawn.to_iter_dataset(options)

    def _load(self, drawn: tuple[int, int]) -> Drawn | None:
        source, number = drawn
        try:
            episode = self._sources[source].load(number, self._view)
        except BrokenEpisode:
            return None  # its quarantine has written it down, and stops when they are too many
        return Drawn(source, number, episode)


class MixtureIterator:
    """The stream, and its place: `set_state(get_state())` goes on with the same draws."""

    def __init__(self, inner: Any):
        self._inner = inner

    def __iter__(self) -> MixtureIterator:
        return self

    def __next__(self) -> Any:
        return next(self._inner)

    def get_state(self) -> dict[str, Any]:
        """The place after what was handed out so far, as JSON can hold it; what is decoded ahead
        does not count."""
        return self._inner.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a place that `get_state` of an equal mixture gave."""
        self._inner.set_state(state)


class _Numbered:
    def __init__(self, source: int):
        self._source = source

    def __call__(self, number: int) -> tuple[int, int]:
        return self._source, int(number)
