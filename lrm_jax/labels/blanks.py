"""Clips of blank pictures, in which nothing is done: a camera that fails must not pay a reward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lrm_jax.labels.store import BLANK, Clip, FrameStore

_PICTURES = 256
_LENGTH = 8  # frames of a clip


def with_blanks(
    store: FrameStore, clips: Sequence[Clip], share: float, seed: int
) -> tuple[FrameStore, list[Clip]]:
    """`clips` and, for a `share` of them, clips under the same sentences that show blank pictures.

    Half of the pictures are greys from black to white, the others of any colour; each is of one
    colour all over. Half of the clips begin with the episode's own first frame, so that both a
    camera that fails and one that never worked are among them. Progress and completion are 0.

    Args:
      store: what `clips` index; the blank pictures become one more episode at its end.
      share: in [0, 1].
    """
    rng = np.random.default_rng([seed, 9])
    height, width = store.frames.shape[1:3]
    colours = rng.integers(0, 256, (_PICTURES, 3))
    greys = np.linspace(0, 255, _PICTURES // 2).round().astype(int)
    colours[: len(greys)] = greys[:, None]
    pictures = np.broadcast_to(
        colours.astype(np.uint8)[:, None, None], (_PICTURES, height, width, 3)
    )
    first = len(store.frames)
    more = FrameStore(pictures, np.array([0, _PICTURES]))
    made = list(clips)
    for number in np.flatnonzero(rng.random(len(clips)) < share):
        clip = clips[number]
        frames = first + rng.integers(0, _PICTURES, _LENGTH)
        if rng.random() < 0.5:
            frames[0] = clip.frames[0]
        zeros = np.zeros(_LENGTH, np.float32)
        made.append(Clip(frames, len(store.starts) - 1, clip.task, zeros, zeros.copy(), BLANK))
    return FrameStore.joined([store, more]), made
