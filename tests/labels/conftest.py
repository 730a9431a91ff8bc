"""Toy episodes: frames whose pixels say which episode and which frame they are."""

import dataclasses

import numpy as np
import pytest

COLOURS = ("red", "green", "blue")


@dataclasses.dataclass
class ToyEpisode:
    frames: np.ndarray
    task: str
    success: bool | None
    progress: np.ndarray | None
    meta: dict


def sentence(cube, plate):
    return f"put the {COLOURS[cube]} cube on the {COLOURS[plate]} plate"


def toy_episodes(count=12, seed=0):
    """Successes that are done at a random moment, failures that stop half-way, and others without
    progress."""
    rng = np.random.default_rng(seed)
    made = []
    for e in range(count):
        length = int(rng.integers(20, 41))
        frames = np.zeros((length, 4, 4, 3), np.uint8)
        frames[..., 0], frames[..., 1] = e, np.arange(length)[:, None, None]
        success = e % 2 == 0
        ramp = np.minimum(np.arange(length) / (0.8 * length), 1.0).astype(np.float32)
        cube, plate, other = rng.integers(0, 3, 3)
        made.append(
            ToyEpisode(
                frames=frames,
                task=sentence(cube, plate),
                success=success,
                progress=None if e % 6 == 5 else (ramp if success else 0.5 * ramp),
                meta={"progress_by_task": {sentence(other, plate): np.minimum(ramp, 0.3)}},
            )
        )
    return made


@pytest.fixture(scope="module")
def episodes():
    return toy_episodes()
