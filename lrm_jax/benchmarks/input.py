"""Does input starve the training step? What the input pipeline gives beside what a step needs.

    python -m lrm_jax.benchmarks.input --json=FILE [--size=256 --need=55]

Synthetic episodes are written in each format and read back through a mixture, decoded, thinned and
resized in threads, as reward training does once; then batches are drawn from the memory-mapped
store, as every step does. The need is in examples per second and host: 55 is the paper's batch of
128 on a TPU v5e 4x4 at the compiler's lower bound of a step of the 8B model (0.578 s, see
WORKSPACE.md), shared by its four hosts. The last figure is the share of a run in which a consumer
of that speed waits.
"""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from lrm_jax.episodes import Episode, SourceSettings
from lrm_jax.episodes.lerobot_writer import write_lerobot
from lrm_jax.episodes.mixture import Mixture, Reading, View
from lrm_jax.episodes.opening import open_source
from lrm_jax.reward_training.stream import DataSettings, load_episodes, store_episodes
from lrm_jax.run import atomic
from lrm_jax.run.cli import reject_arguments, run_app

_JSON = flags.DEFINE_string("json", None, "File for the figures.", required=True)
_SIZE = flags.DEFINE_integer("size", 256, "Height and width that frames get, in pixels.", 16)
_EPISODES = flags.DEFINE_integer("episodes", 16, "Episodes of each data set.", 2)
_FRAMES = flags.DEFINE_integer("frames", 90, "Frames of an episode.", 4)
_KEPT = flags.DEFINE_integer("kept", 33, "Frames of an episode that are kept.", 2)
_ROWS = flags.DEFINE_integer("rows", 32, "Examples in a batch of one host.", 1)
_IMAGES = flags.DEFINE_integer("images", 3, "Images of an example.", 1)
_THREADS = flags.DEFINE_integer("threads", 4, "Threads that decode.", 1)
_NEED = flags.DEFINE_float("need", 55.0, "Examples/s that the step of one host takes.", 0.001)
_SECONDS = flags.DEFINE_float("seconds", 5.0, "Time for each measurement.", 0.05)

HEIGHT, WIDTH = 240, 320  # of the stored pictures


def main(argv: list[str]) -> None:
    reject_arguments(argv)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        absent = write_all(root)
        view = View(_KEPT.value, (_SIZE.value, _SIZE.value))
        decoding = {}
        for path in sorted(p for p in root.iterdir() if p.is_dir() or p.suffix == ".hdf5"):
            source = open_source(SourceSettings(name=path.stem, path=str(path), fps=0.0, task="t"))
            reading = Reading(_THREADS.value, 2 * _THREADS.value)
            decoding[path.stem] = speed(iter(Mixture([source], view=view, reading=reading)))
        stored = store_speed(root)
    figures = {
        "benchmark": "input",
        "stored_pixels": [HEIGHT, WIDTH],
        "size": _SIZE.value,
        "kept_frames": _KEPT.value,
        "threads": _THREADS.value,
        "decoding": decoding,
        "not_measured": absent,
        "store": stored,
        "need_examples_per_second": _NEED.value,
        "ratio_to_need": stored["examples_per_second"] / _NEED.value,
        "device": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    path = Path(_JSON.value)
    with atomic.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_json(path, figures)
    print(json.dumps(figures, indent=2))


def write_all(root: Path) -> dict[str, str]:
    """The data sets; what could not be written, and why."""
    import h5py

    episodes = [_episode(i) for i in range(_EPISODES.value)]
    write_lerobot(root / "lerobot", episodes)
    with h5py.File(root / "hdf5.hdf5", "w") as file:
        file.create_group("data").attrs["env_args"] = '{"env_kwargs": {"control_freq": 10}}'
        for i, episode in enumerate(episodes):
            chunks = (1, HEIGHT, WIDTH, 3)
            file.create_dataset(
                f"data/demo_{i}/obs/agentview_rgb", data=episode.frames, chunks=chunks
            )
    try:
        from lrm_jax.episodes.lrm_sim import write_lrm_sim

        write_lrm_sim(root / "rlds", {"train": episodes})
    except Exception as error:  # the extra is not installed
        return {"rlds": f"{type(error).__name__}: {error}"}
    return {}


def store_speed(root: Path) -> dict[str, Any]:
    """Batches from the stored frames: examples/s, and how long a consumer of `--need` waits."""
    folder = root / "store"
    folder.mkdir()
    settings = DataSettings(
        source=SourceSettings(name="lerobot", path=str(root / "lerobot")), frames=_KEPT.value
    )
    started = time.perf_counter()
    store_episodes(folder, settings, (_SIZE.value, _SIZE.value))
    seconds = time.perf_counter() - started
    store, episodes, _ = load_episodes(folder)
    rng = np.random.default_rng(0)
    shape = (_ROWS.value, _IMAGES.value)

    def batch() -> np.ndarray:
        return store.frames[rng.integers(0, len(store.frames), shape)]

    rate = per_second(batch)
    step, waited, steps = _ROWS.value / _NEED.value, 0.0, 0
    begun = time.perf_counter()
    while steps < 3 or time.perf_counter() - begun < _SECONDS.value:
        before = time.perf_counter()
        batch()
        waited += time.perf_counter() - before
        time.sleep(step)  # the device computes
        steps += 1
    return {
        "episodes_stored_per_second": len(episodes) / seconds,
        "batches_per_second": rate,
        "examples_per_second": rate * _ROWS.value,
        "share_of_time_waiting": waited / (time.perf_counter() - begun),
    }


def speed(stream: Iterator[Any]) -> dict[str, float]:
    """Episodes and frames per second of a stream, its first episode apart."""
    started = time.perf_counter()
    next(stream)
    first = time.perf_counter() - started
    rate = per_second(lambda: next(stream))
    return {
        "first_episode_seconds": first,
        "episodes_per_second": rate,
        "kept_frames_per_second": rate * min(_KEPT.value, _FRAMES.value),
    }


def per_second(call: Callable[[], Any]) -> float:
    """How often `call` returns in a second, over `--seconds`."""
    started, count = time.perf_counter(), 0
    while not count or time.perf_counter() - started < _SECONDS.value:
        call()
        count += 1
    return count / (time.perf_counter() - started)


def _episode(number: int) -> Episode:
    """A bright square moves over a noisy still picture: neither trivial for a codec nor noise."""
    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    frames = np.repeat(small.repeat(8, 0).repeat(8, 1)[None], _FRAMES.value, 0)
    for t, frame in enumerate(frames):
        left = t * (WIDTH - 40) // _FRAMES.value
        frame[100:140, left : left + 40] = 255
    return Episode(frames, f"move the square {number}", 10.0, success=True, camera="image")


if __name__ == "__main__":
    run_app(main)
