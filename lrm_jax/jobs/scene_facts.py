"""What can be seen in simulated frames: image positions and states that scene questions ask for."""

import dataclasses

import mujoco
import numpy as np

from lrm_jax.envs.base import Env
from lrm_jax.labels import Clip
from lrm_jax.reward_training.scene_heads import SIDES, THINGS, thing_facts
from lrm_jax.run.errors import UserError

_HEIGHT, _DISTANCE = 0.25, 0.40  # metres that count as 1 in answers about height and distance


def project(
    env: Env, points: np.ndarray, place: np.ndarray | None = None, turn: np.ndarray | None = None
) -> np.ndarray:
    """Image coordinates (x right, y down, 0 to 1, clipped) of world points float [...,3].

    place float [...,3], turn float [...,3,3]: of the camera, where it is not the model's own.
    """
    camera = env.mj_model.camera(env.camera).id
    if place is None or turn is None:
        rotation = np.zeros(9)
        mujoco.mju_quat2Mat(rotation, env.mj_model.cam_quat[camera])
        place, turn = env.mj_model.cam_pos[camera], rotation.reshape(3, 3)
    local = np.einsum("...i,...ij->...j", np.asarray(points) - place, turn)
    half = np.tan(np.radians(env.mj_model.cam_fovy[camera]) / 2)
    flat = local[..., :2] / (-local[..., 2:] * half)
    return np.clip(np.stack([(1 + flat[..., 0]) / 2, (1 - flat[..., 1]) / 2], -1), 0, 1)


def scene_facts(env: Env, arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """For each sentence of a scene: facts about what it names in each frame, float32 [E*T] by name.

    "object" is the thing that the sentence names first and "plate" the one that it names second,
    whatever they are; tasks that name one thing have no facts about a second. object_on_plate is of
    plates alone.
    """
    if "things" not in arrays:
        raise UserError(f"scene questions ask about coloured things: {env.name} has none to see")
    things, tcp = np.asarray(arrays["things"]), np.asarray(arrays["tcp"])
    eye = np.asarray(arrays["eye_place"]), np.asarray(arrays["eye_turn"])
    gripper = project(env, tcp, *eye)
    out = []
    for number, said in enumerate(env.mentions):
        thing = things[:, :, said[0]]
        at = project(env, thing, *eye)
        gap = np.linalg.norm(thing - tcp, axis=-1)
        facts = {
            "object_x": at[..., 0], "object_y": at[..., 1],
            "gripper_x": gripper[..., 0], "gripper_y": gripper[..., 1],
            "gripper_height": np.clip(tcp[..., 2] / _HEIGHT, 0, 1),
            "gripper_to_object": np.clip(gap / _DISTANCE, 0, 1),
            "object_held": np.asarray(arrays["grasped"])[:, :, number],
            "gripper_open": np.asarray(arrays["open"]) > 0.5,
        }  # fmt: skip
        if len(said) > 1:
            second = things[:, :, said[1]]
            goal = project(env, second, *eye)
            away = np.linalg.norm(thing[..., :2] - second[..., :2], axis=-1)
            facts |= {
                "plate_x": goal[..., 0], "plate_y": goal[..., 1],
                "object_to_plate": np.clip(away / _DISTANCE, 0, 1),
            }  # fmt: skip
            if _kind(env, said[1]) == "plate":
                facts["object_on_plate"] = (away < 0.06) & (thing[..., 2] < 0.035)
        out.append({k: v.reshape(-1).astype(np.float32) for k, v in facts.items()})
    return out


def _kind(env: Env, thing: int) -> str:
    """What a thing is: its geom's name without the number."""
    return next(name for name, own, _ in env.painted if own == thing).rstrip("0123456789")


def with_facts(clips: list[Clip], env: Env, arrays: dict[str, np.ndarray]) -> list[Clip]:
    """The clips with the facts about the things that their sentence names.

    clips: of the episodes of `arrays` alone, `frames` and `episode` counted from its first.
    """
    tables = scene_facts(env, arrays)
    colours = np.asarray(arrays["colours"])
    frames = arrays["tcp"].shape[1]
    things = np.asarray(arrays["things"])
    eye = np.asarray(arrays["eye_place"]), np.asarray(arrays["eye_turn"])
    places = [project(env, things[:, :, i], *eye)[..., 0] for i in range(things.shape[2])]
    kinds = [_kind(env, i) for i in range(things.shape[2])]
    made = []
    for clip in clips:
        mine = colours[clip.episode]
        wording = env.wording_of(arrays["task_id"][clip.episode])
        table = tables[env.sentences(mine, wording).index(clip.task)]
        facts = {name: values[clip.frames] for name, values in table.items()}
        within = clip.frames - clip.episode * frames
        for kind in THINGS:
            which = [i for i, k in enumerate(kinds) if k == kind]
            if len(which) == len(SIDES):
                x = np.stack([places[i][clip.episode][within] for i in which], 1)
                facts |= thing_facts(kind, x, mine[which])
        made.append(dataclasses.replace(clip, facts=facts))
    return made
