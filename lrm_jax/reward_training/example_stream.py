"""One head's labelled examples straight from a mixture, for collections too large to be stored.

Episodes are decoded and labelled in the mixture's threads. The stream's state is that of the
mixture's iterator, which the loop keeps in its checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lrm_jax.episodes.mixture import Drawn, Mixture
from lrm_jax.labels import ClipSettings, ExampleSettings, FrameStore, HeldOut, make_clips
from lrm_jax.reward_training.lessons import Labelled, Lesson, examples_of
from lrm_jax.rewards.heads import Head
from lrm_jax.run.errors import UserError

_PATIENCE = 1000  # draws in a row that teach a head nothing, after which something must be wrong


class ExampleStream:
    """Batches of `rows` examples without end; `per_episode` come from each episode drawn.

    An episode is labelled by itself: simulated progress of failures is not carried to the time
    scale of other demonstrations, and wrong sentences are those that the episode names. Episodes
    with a held-out sentence, and those that teach the head nothing (a failure without progress has
    no pairs), are passed over.

    Args:
      mixture: its view makes all frames one size.
    Raises:
      UserError: `per_episode` does not divide `rows`; from `next`, when a thousand draws in a row
        teach nothing, or a source has too many broken episodes.
    """

    def __init__(
        self,
        mixture: Mixture,
        head: Head,
        clips: ClipSettings,
        examples: ExampleSettings,
        rows: int,
        per_episode: int = 8,
        held_out: HeldOut | None = None,
    ):
        if per_episode < 1 or rows % per_episode:
            raise UserError(f"per_episode is {per_episode}: it must divide rows, which is {rows}")
        self._head, self._clips, self._examples = head, clips, examples
        self._episodes, self._each = rows // per_episode, per_episode
        self._held_out = held_out or HeldOut(())
        self._inner = mixture.mapped(self._label)

    def __iter__(self) -> Iterator[Labelled]:
        return self

    def __next__(self) -> Labelled:
        parts: list[Labelled] = []
        passed, why = 0, ""
        while len(parts) < self._episodes:
            found = next(self._inner)
            if isinstance(found, Labelled):
                parts.append(found)
                passed = 0
                continue
            passed, why = passed + 1, found
            if passed >= _PATIENCE:
                raise UserError(
                    f"{passed} episodes in a row teach {self._head.name!r} nothing: {why}"
                )
        return Labelled(
            np.concatenate([p.frames for p in parts]),
            [s for p in parts for s in p.sentences],
            np.concatenate([p.label for p in parts]),
        )

    def get_state(self) -> Any:
        """The place behind the batches handed out so far, a JSON value."""
        return self._inner.get_state()

    def set_state(self, state: Any) -> None:
        """Goes on from where an equal stream's `get_state` was."""
        self._inner.set_state(state)

    def _label(self, drawn: Drawn, rng: np.random.Generator) -> Labelled | str:
        """An episode's examples, or why it has none."""
        episode = drawn.episode
        if episode.task in self._held_out:
            return "their sentences are held out"
        store = FrameStore.from_episodes([episode])
        seed = int(rng.integers(2**31))
        clips = make_clips([episode], store, self._clips, seed, self._held_out)
        sentences = tuple(sorted({c.task for c in clips}))
        try:
            found = examples_of(self._head, clips, sentences, self._examples, seed)
        except UserError as error:
            return str(error)
        # All once before any twice.
        order = np.resize(rng.permutation(len(found)), self._each)
        return Labelled(
            store.frames[found.images[order]],
            [sentences[t] for t in found.task[order]],
            found.label[order],
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Streamed:
    """What heads learn from as it comes, and where that has got to; the loop's data iterator.

    streams: by head, each of them new. sentences: all that they can ask about. size: (height,
    width) of their frames, pixels. facts: all that they depend on.
    """

    streams: Mapping[str, ExampleStream]
    sentences: tuple[str, ...]
    size: tuple[int, int]
    facts: Any

    def get_state(self) -> dict[str, Any]:
        """The streams' places, a JSON value."""
        return {name: stream.get_state() for name, stream in self.streams.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from where the `get_state` of an equal object was."""
        for name, stream in self.streams.items():
            stream.set_state(state[name])


class StreamBatches:
    """A lesson's batches from a stream, in the order of the steps."""

    def __init__(self, lesson: Lesson, stream: ExampleStream, seed: int):
        self._lesson, self._stream, self._seed = lesson, stream, seed

    def __call__(self, step: int) -> Any:
        return self._lesson.batch(next(self._stream), np.random.default_rng([self._seed, 9, step]))
