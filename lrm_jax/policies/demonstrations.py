"""Demonstration episodes as arrays for behaviour cloning."""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import numpy as np

from lrm_jax.run.errors import UserError


@flax.struct.dataclass
class Demonstrations:
    """M (observation, next chunk) samples; leaves are numpy or device arrays.

    frames uint8 [M,H,W,3]; proprio float32 [M,P]; task_ids int32 [M]; chunks float32 [M,C,A]: the
    expert's next C actions; mask bool [M,C]: False past the end of the episode; episodes int32 [M]:
    the episode that a sample comes from. waypoints float32 [M,2,3]: where the tool will close its
    gripper and where it will open it again, NaN once that has happened (see hindsight_waypoints).
    """

    frames: np.ndarray
    proprio: np.ndarray
    task_ids: np.ndarray
    chunks: np.ndarray
    mask: np.ndarray
    episodes: np.ndarray
    waypoints: np.ndarray

    def __len__(self) -> int:
        return len(self.episodes)


def action_chunks(actions: np.ndarray, chunk: int) -> tuple[np.ndarray, np.ndarray]:
    """actions [S,A] -> the next `chunk` actions at every step [S,C,A], and their mask bool [S,C].

    Past the end the last action is repeated and masked.
    """
    index = np.arange(len(actions))[:, None] + np.arange(chunk)
    inside = index < len(actions)
    return np.asarray(actions, np.float32)[np.minimum(index, len(actions) - 1)], inside


def hindsight_waypoints(proprio: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Where the tool closes and opens its gripper, seen from each of S steps; float32 [S,2,3].

    The demonstration itself says so, later: no label is needed. The first closing command and the
    opening command that follows it count; entries are NaN from then on, and if there is none.
    proprio [S or more,P] starts with the tool's position; the last action is the gripper's.
    """
    steps = len(actions)
    found = np.full((steps, 2, 3), np.nan, np.float32)
    closed = np.flatnonzero(actions[:, -1] < 0)
    if len(closed):
        close = int(closed[0])
        found[:close, 0] = proprio[close, :3]
        opened = np.flatnonzero(actions[close:, -1] > 0)
        if len(opened):
            open_ = close + int(opened[0])
            found[:open_, 1] = proprio[open_, :3]
    return found


def from_episodes(
    frames: Sequence[np.ndarray],
    proprio: Sequence[np.ndarray],
    task_ids: Sequence[int],
    actions: Sequence[np.ndarray],
    chunk: int,
    stride: int = 1,
) -> Demonstrations:
    """Samples of every `stride`-th step of E episodes.

    Episode e has S_e actions [S_e,A], and frames [S_e or more,H,W,3] and proprio [S_e or more,P] of
    the states in which they were taken (a final state is ignored).
    """
    if not len(frames) == len(proprio) == len(task_ids) == len(actions) > 0:
        raise UserError(
            f"demonstrations need as many frames ({len(frames)}), proprio ({len(proprio)}), tasks "
            f"({len(task_ids)}) and actions ({len(actions)}), and at least one episode"
        )
    rows = {
        name: []
        for name in ("frames", "proprio", "task_ids", "chunks", "mask", "episodes", "waypoints")
    }
    for e, (images, states, task, taken) in enumerate(
        zip(frames, proprio, task_ids, actions, strict=True)
    ):
        steps = len(taken)
        if min(len(images), len(states)) < steps or steps == 0:
            raise UserError(
                f"episode {e} has {len(images)} frames and {len(states)} proprio rows for "
                f"{steps} actions"
            )
        chunks, mask = action_chunks(taken, chunk)
        rows["frames"].append(np.asarray(images[:steps:stride], np.uint8))
        rows["proprio"].append(np.asarray(states[:steps:stride], np.float32))
        rows["chunks"].append(chunks[::stride])
        rows["mask"].append(mask[::stride])
        kept = len(chunks[::stride])
        rows["waypoints"].append(hindsight_waypoints(np.asarray(states), taken)[::stride])
        rows["task_ids"].append(np.full(kept, task, np.int32))
        rows["episodes"].append(np.full(kept, e, np.int32))
    return Demonstrations(**{name: np.concatenate(parts) for name, parts in rows.items()})


def split_by_episode(
    data: Demonstrations, fraction: float, seed: int
) -> tuple[Demonstrations, Demonstrations]:
    """(train, validation): whole episodes apart, since neighbouring frames are near copies.

    At least one episode goes to each side.
    """
    episodes = np.unique(data.episodes)
    count = round(fraction * len(episodes))
    if not 1 <= count < len(episodes):
        raise UserError(
            f"validation share {fraction} of {len(episodes)} demonstration episodes leaves "
            f"{count} to validate and {len(episodes) - count} to train: both need one"
        )
    chosen = np.random.default_rng(seed).permutation(episodes)[:count]
    held = np.isin(data.episodes, chosen)
    return _rows(data, np.flatnonzero(~held)), _rows(data, np.flatnonzero(held))


def proprio_statistics(data: Demonstrations, floor: float = 1e-2) -> tuple[np.ndarray, np.ndarray]:
    """mean, std float32 [P]; stds below `floor` (a constant input) are raised to it."""
    values = data.proprio.astype(np.float64)
    std = np.maximum(values.std(0), floor)
    return values.mean(0).astype(np.float32), std.astype(np.float32)


def _rows(data: Demonstrations, index: np.ndarray) -> Demonstrations:
    fields = {name: getattr(data, name)[index] for name in data.__dataclass_fields__}
    return Demonstrations(**fields)
