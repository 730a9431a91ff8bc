"""Episodes of data sets on disk, as reward training takes them: drawn, thinned, resized, stored.

Training looks at frames in random order and many times; videos can be read forwards only. So the
frames that examples can show are decoded once, in threads, into one file that is mapped to memory
afterwards: the step never waits for a decoder, and a restart decodes nothing again.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrm_jax.episodes import (
    BrokenEpisode,
    Episode,
    Limit,
    Quarantine,
    SourceSettings,
    open_source,
)
from lrm_jax.episodes.mixture import Drawn, Mixture, Reading, View
from lrm_jax.labels import FrameStore
from lrm_jax.run import atomic, config
from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError
from lrm_jax.run.progress import bar

_FRAMES, _EPISODES = "frames.uint8", "episodes.json"


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which episodes on disk are trained on.

    mixture: a config file whose sources they are, such as configs/data/lrm24.py. source: a single
      data set instead. Both empty: none. root: the folder that relative paths start from.
    episodes: so many draws of the mixture, by weight; 0 takes every episode once.
    frames: at most so many of each episode are kept, evenly spaced; 0 keeps all.
    absent: "error", or "skip": sources of the mixture that are not on the disk are left out, and
      said so.
    limit: how many broken episodes each source may have.
    stream: episodes are decoded while training draws them, endlessly and by weight, and none is
      stored but those that validate: for data larger than the disk or the memory. per_episode: so
      many examples of a head come from each episode drawn.
    """

    mixture: str = ""
    source: SourceSettings = field(default_factory=lambda: SourceSettings(name="data", path=""))
    root: str = ""
    episodes: int = field(0, ge=0)
    frames: int = field(33, ge=0)
    absent: str = field("error", choices=("error", "skip"))
    limit: Limit = field(default_factory=Limit)
    reading: Reading = field(default_factory=Reading)
    seed: int = field(0, ge=0)
    stream: bool = False
    per_episode: int = field(8, ge=1)

    def validate(self):
        if self.stream and not self.used:
            raise UserError("stream: name the data sets, by mixture or source.path")
        if self.stream and self.episodes:
            raise UserError("stream: a stream has no end, leave episodes at 0")
        if self.mixture and self.source.path:
            raise UserError("name either a mixture or a source.path, not both")
        if 0 < self.frames < 2:
            raise UserError("frames is 1: keep at least 2 of each episode")

    @property
    def used(self) -> bool:
        """Whether any data set is named."""
        return bool(self.mixture or self.source.path)

    def sources(self) -> tuple[SourceSettings, ...]:
        """The data sets' settings, with paths from `root`."""
        named = load_mixture(self.mixture) if self.mixture else (self.source,)
        root = Path(os.path.expanduser(self.root))
        return tuple(
            dataclasses.replace(s, path=str(root / os.path.expanduser(s.path))) for s in named
        )


def load_mixture(path: str | os.PathLike[str]) -> tuple[SourceSettings, ...]:
    """The sources that a config file of a mixture names; UserError if it cannot be read."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"mixture {path}: there is no such file")
    module = config.sibling(str(path), path.stem)
    if not hasattr(module, "get_config"):
        raise UserError(f"mixture {path}: it has no get_config()")
    given = module.get_config().sources
    found = tuple(
        config.build(SourceSettings, s, key=f"{path.name}:sources[{i}]")
        for i, s in enumerate(given)
    )
    names = [s.name for s in found]
    if len(set(names)) < len(names):
        raise UserError(f"mixture {path}: two sources have one name")
    if not found:
        raise UserError(f"mixture {path}: it names no source")
    return found


def open_sources(
    settings: DataSettings, reports: str | os.PathLike[str] | None = None
) -> tuple[list[Quarantine], list[float]]:
    """The sources behind quarantines, whose reports go to `reports`/NAME.json, and their weights.

    Raises:
      UserError: a source that is not there (unless absent="skip"), or none at all.
    """
    opened, weights, lacking = [], [], []
    for source in settings.sources():
        if settings.absent == "skip" and not Path(source.path).exists():
            lacking.append(source.name)
            continue
        report = None if reports is None else Path(reports) / f"{source.name}.json"
        opened.append(open_source(source, settings.limit, report))
        weights.append(source.weight)
    if not opened:
        raise UserError(f"none of the sources is on the disk: {', '.join(lacking)}")
    if lacking:
        print(f"left out, not on the disk: {', '.join(lacking)}", flush=True)
    return opened, weights


def mixture(
    settings: DataSettings,
    sources: Sequence[Quarantine],
    weights: Sequence[float],
    size: tuple[int, int],
    process: int = 0,
    processes: int = 1,
    numbers: Sequence[range] | None = None,
) -> Mixture:
    """The endless stream of episodes: `settings.frames` frames of `size` (height, width) each;
    numbers: which of each source, all by default."""
    return Mixture(
        sources, weights, view=View(settings.frames, size), seed=settings.seed,
        process=process, processes=processes, reading=settings.reading, numbers=numbers,
    )  # fmt: skip


def apart(sources: Sequence[Quarantine], count: int) -> tuple[list[range], list[range]]:
    """The episodes of each source that are trained on, and those that only validate: its last ones,
    `count` of all sources by their shares of the episodes, but never all of a source.

    UserError: there are not so many.
    """
    sizes = np.array([len(s) for s in sources])
    if count and count > sizes.sum() - len(sizes):
        raise UserError(
            f"validation_episodes is {count}: too many of the {sizes.sum()} episodes of "
            f"{len(sizes)} data sets, each of which keeps at least one to train on"
        )
    # Sums of shares, rounded: they end at `count`, whatever the single shares are rounded to.
    ends = np.round(np.cumsum(sizes) * (count / max(sizes.sum(), 1))).astype(int)
    kept = np.minimum(np.diff(ends, prepend=0), np.maximum(sizes - 1, 0))
    pairs = [(int(size - own), int(size)) for size, own in zip(sizes, kept, strict=True)]
    return [range(first) for first, _ in pairs], [range(*pair) for pair in pairs]


def store_episodes(
    folder: str | os.PathLike[str],
    settings: DataSettings,
    size: tuple[int, int],
    validation: int = 0,
) -> dict[str, Any]:
    """Decodes the episodes that `settings` name into `folder`, for `load_episodes`; behind them
    once each those of the `validation` that `apart` keeps and that are not broken. Of a stream
    these alone, and all sentences of the others, read from episodes whose frames stay encoded.

    Returns:
      What was read, by source: the quarantines' summaries, without those of each episode.
    Raises:
      UserError: nothing there or nothing whole; more broken episodes than allowed; two frames of
        an episode are not left; nothing is left to train on, or to validate.
    """
    folder = Path(folder)
    sources, weights = open_sources(settings, folder / "quarantine")
    learnt, kept = apart(sources, validation)
    stream = mixture(settings, sources, weights, size, numbers=learnt)
    whole = settings.episodes == 0
    total = sum(map(len, learnt)) if whole else settings.episodes
    drawn: Iterator[Drawn] = stream.once() if whole else itertools.islice(stream, total)
    sentences: list[str] = []
    if settings.stream:
        sentences, total, drawn = _sentences(sources, learnt), 0, iter(())
    behind = mixture(settings, sources, weights, size, numbers=kept).once() if validation else ()
    rows: list[list[dict[str, Any]]] = [[], []]
    with (
        atomic.writing(folder),
        open(folder / _FRAMES, "wb") as file,
        bar(total=total + validation, desc="decoding", unit="episode") as progress,
    ):
        for own, episodes in zip(rows, (drawn, behind), strict=True):
            for one in episodes:
                np.ascontiguousarray(one.episode.frames).tofile(file)
                own.append(_row(one, sources))
                progress.update(1)
    if not (rows[0] or sentences) or (validation and not rows[1]):
        raise UserError("no episode could be read: see the reports of the quarantine")
    for source in sources:
        source.write()
    validating, rows = len(rows[1]), [*rows[0], *rows[1]]
    atomic.write_json(
        folder / _EPISODES,
        {"size": list(size), "episodes": rows, "validation": validating, "sentences": sentences},
    )
    summaries = {s.name: s.summary() for s in sources}
    counts = {name: sum(r["source"] == name for r in rows) for name in summaries}
    return {
        name: {k: v for k, v in summary.items() if k != "quarantined"} | {"drawn": counts[name]}
        for name, summary in summaries.items()
    }


def load_episodes(folder: str | os.PathLike[str]) -> tuple[FrameStore, list[Episode], int]:
    """What `store_episodes` wrote, and how many episodes, the last ones, validate; frames stay on
    the disk until they are looked at."""
    folder = Path(folder)
    written = atomic.read_json(folder / _EPISODES)
    rows = written["episodes"]
    starts = np.concatenate([[0], np.cumsum([r["frames"] for r in rows])]).astype(np.int64)
    shape = (int(starts[-1]), *written["size"], 3)
    # A file of no bytes cannot be mapped.
    frames = np.memmap(folder / _FRAMES, np.uint8, "r", shape=shape) if rows else np.empty(
        shape, np.uint8
    )
    episodes = []
    for row, begin, end in zip(rows, starts[:-1], starts[1:], strict=True):
        arrays = {
            name: None if row[name] is None else np.asarray(row[name], np.float32)
            for name in ("progress", "proprio")
        }
        meta = dict(row["meta"])
        if others := meta.get("progress_by_task"):
            meta["progress_by_task"] = {s: np.asarray(p, np.float32) for s, p in others.items()}
        episodes.append(
            Episode(
                frames=frames[begin:end], task=row["task"], fps=row["fps"], success=row["success"],
                source=row["source"], camera=row["camera"], meta=meta, **arrays,
            )
        )  # fmt: skip
    return FrameStore(frames, starts), episodes, written["validation"]


def load_sentences(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """All sentences that the episodes of a stream name, as `store_episodes` wrote them."""
    return tuple(atomic.read_json(Path(folder) / _EPISODES)["sentences"])


def _sentences(sources: Sequence[Quarantine], numbers: Sequence[range]) -> list[str]:
    """Those that these episodes name, whether or not they are their own; sorted."""
    found: set[str] = set()
    places = [(source, n) for source, own in zip(sources, numbers, strict=True) for n in own]
    for source, number in bar(places, desc="sentences", unit="episode"):
        try:
            episode = source[number]
        except BrokenEpisode:
            continue  # its quarantine has written it down
        found |= {episode.task, *episode.meta.get("progress_by_task", {})}
        found |= set(episode.meta.get("other_tasks", ()))
    return sorted(found)


def _row(drawn: Drawn, sources: Sequence[Quarantine]) -> dict[str, Any]:
    episode = drawn.episode
    return {
        "source": sources[drawn.source].name, "id": sources[drawn.source].id(drawn.number),
        "frames": len(episode.frames), "task": episode.task, "fps": episode.fps,
        "success": episode.success, "camera": episode.camera, "progress": episode.progress,
        "proprio": episode.proprio, "meta": episode.meta,
    }  # fmt: skip
