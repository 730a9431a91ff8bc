"""What can be seen in simulated frames: image positions and states that scene questions ask for."""

import dataclasses

import mujoco
import numpy as np

from lrm_jax.envs.base import Env
from lrm_jax.labels import Clip
from lrm_jax.reward_training.scene_heads import thing_facts
from lrm_jax.run.errors import UserError

_HEIGHT, _DISTANCE = 0.25, 0.40  # metres that count as 1 in answers about height and distance


def project(env: Env, points: np.ndarray) -> np.ndarray:
    """Image coordinates (x right, y down, 0 to 1, clipped) of world points float [...,3]."""
    model = env.mj_model
    camera = model.camera(env.camera).id
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, model.cam_quat[camera])
    local = (np.asarray(points) - model.cam_pos[camera]) @ rotation.reshape(3, 3)
    half = np.tan(np.radians(model.cam_fovy[camera]) / 2)
    flat = local[..., :2] / (-local[..., 2:] * half)
    return np.clip(np.stack([(1 + flat[..., 0]) / 2, (1 - flat[..., 1]) / 2], -1), 0, 1)


def scene_facts(env: Env, arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """For each (cube, plate) of a scene: facts about them in every frame, float32 [E*T] by name.

    UserError: the task has no cubes and plates.
    """
    if not {"cubes", "plates"} <= set(arrays):
        raise UserError(f"scene questions ask about cubes and plates: {env.name} has none to see")
    cubes, plates, tcp = (np.asarray(arrays[k]) for k in ("cubes", "plates", "tcp"))
    episodes, frames = tcp.shape[:2]
    gripper = project(env, tcp)
    out = []
    for c, p in env.alternatives:
        cube, plate = cubes[:, :, c], plates[:, :, p]
        at, goal = project(env, cube), project(env, plate)
        gap = np.linalg.norm(cube - tcp, axis=-1)
        away = np.linalg.norm(cube[..., :2] - plate[..., :2], axis=-1)
        facts = {
            "object_x": at[..., 0], "object_y": at[..., 1],
            "plate_x": goal[..., 0], "plate_y": goal[..., 1],
            "gripper_x": gripper[..., 0], "gripper_y": gripper[..., 1],
            "gripper_height": np.clip(tcp[..., 2] / _HEIGHT, 0, 1),
            "gripper_to_object": np.clip(gap / _DISTANCE, 0, 1),
            "object_to_plate": np.clip(away / _DISTANCE, 0, 1),
            "object_held": np.asarray(arrays["grasped"])[:, :, c],
            "object_on_plate": (away < 0.06) & (cube[..., 2] < 0.035),
            "gripper_open": np.asarray(arrays["open"]) > 0.5,
        }  # fmt: skip
        out.append({k: v.reshape(episodes * frames).astype(np.float32) for k, v in facts.items()})
    return out


def with_facts(clips: list[Clip], env: Env, arrays: dict[str, np.ndarray]) -> list[Clip]:
    """The clips with the facts about the things that their sentence names."""
    tables = scene_facts(env, arrays)
    colours = np.asarray(arrays["colours"])
    frames = arrays["tcp"].shape[1]
    cube_x, plate_x = (project(env, arrays[k])[..., 0] for k in ("cubes", "plates"))
    made = []
    for clip in clips:
        mine = colours[clip.episode]
        sentences = env.sentences(mine)
        table = tables[sentences.index(clip.task)]
        facts = {name: values[clip.frames] for name, values in table.items()}
        within = clip.frames - clip.episode * frames
        facts |= thing_facts(cube_x[clip.episode][within], plate_x[clip.episode][within], mine)
        made.append(dataclasses.replace(clip, facts=facts))
    return made
