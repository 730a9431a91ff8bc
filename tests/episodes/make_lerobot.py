"""Writes `data/lerobot_v3` and `lerobot_v21` with the `lerobot` package itself (0.4.4 and 0.3.3),
and what its own loader reads from the first. Not run by the tests: lerobot pins another torch.

    python tests/episodes/make_lerobot.py FOLDER [EXPECTED.npz]

With LEROBOT_PICTURES=1 frames are pictures in the tables, not videos (`data/lerobot_images`).
"""

import os
import sys

import numpy as np

CAMERA = "observation.images.front"
FPS = 10
# Frames, sentence and success of each episode.
EPISODES = (
    (12, "put the cup on the plate", True),
    (7, "öffne die Schublade", False),
    (9, "put the cup on the plate", True),
)


def frame(episode: int, place: int) -> np.ndarray:
    """A picture whose colour says which episode and frame it is, uint8 [64, 64, 3]."""
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[..., 0], picture[..., 1] = 60 + 60 * episode, 10 + 18 * place
    picture[:, : 5 * place + 1, 2] = 200
    return picture


def main(folder: str, expected: str = "") -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    kind = "image" if os.environ.get("LEROBOT_PICTURES") else "video"
    vector = {"dtype": "float32", "shape": (2,), "names": ["x", "y"]}
    features = {
        CAMERA: {"dtype": kind, "shape": (64, 64, 3), "names": ["height", "width", "channels"]},
        "observation.state": vector,
        "action": vector,
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
    }
    made = LeRobotDataset.create(
        repo_id="a/b", fps=FPS, features=features, root=folder, use_videos=kind == "video"
    )
    for episode, (count, task, success) in enumerate(EPISODES):
        for place in range(count):
            values = {
                CAMERA: frame(episode, place),
                "observation.state": np.array([episode, place], np.float32),
                "action": np.array([place, episode], np.float32),
                "next.success": np.array([success and place == count - 1]),
            }
            try:
                made.add_frame(values | {"task": task})
            except ValueError:  # 0.3
                made.add_frame(values, task=task)
        made.save_episode()
    getattr(made, "finalize", lambda: None)()
    if expected:
        read = LeRobotDataset("a/b", root=folder, video_backend="pyav")
        items = [read[i] for i in range(len(read))]
        pictures = np.stack([i[CAMERA].numpy() for i in items]).transpose(0, 2, 3, 1)
        np.savez_compressed(
            expected,
            frames=np.round(pictures * 255).astype(np.uint8),
            episode=np.array([int(i["episode_index"]) for i in items]),
            task=np.array([i["task"] for i in items]),
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
