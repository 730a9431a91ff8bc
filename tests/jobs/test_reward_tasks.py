"""Several tasks in one training: clips, held-out sentences and tables, on made-up episodes."""

import dataclasses
import functools
import types

import mujoco
import numpy as np
import pytest

from lrm_jax.jobs import open_loop, reward
from lrm_jax.jobs.scene_facts import project
from lrm_jax.jobs.settings import CollectSettings, EnvSettings, TaskEpisodes
from lrm_jax.labels.clips import normal_sentence
from lrm_jax.labels.store import KINDS
from lrm_jax.reward_training import RewardTraining

EPISODES, FRAMES, STRIDE, SIDE = 6, 9, 2, 16


@functools.cache
def _env(name: str, combos: str = "train"):
    return _task(name, combos).env.make()


def _arrays(env, number: int) -> dict[str, np.ndarray]:
    """Episodes of `simulated.collect`'s shapes: a frame's first pixel says task, episode and frame,
    its second the progress in 1/200 under the episode's own sentence. Even episodes succeed."""
    rng = np.random.default_rng(number)
    own = rng.integers(len(env.alternatives), size=EPISODES)
    colours = env.scenes[rng.integers(len(env.scenes), size=EPISODES)]
    said = np.array(env.words.in_use(env.config.wordings))
    wording = said[rng.integers(len(said), size=EPISODES)]
    rise = np.linspace(0, 1, FRAMES)
    ends = np.where(np.arange(EPISODES) % 2 == 0, 1.0, 0.4)
    progress = np.zeros((EPISODES, FRAMES, len(env.alternatives)), np.float32)
    frames = np.zeros((EPISODES, FRAMES, SIDE, SIDE, 3), np.uint8)
    for e in range(EPISODES):
        progress[e, :, own[e]] = rise * ends[e]
        frames[e, :, 0, 0, 0], frames[e, :, 0, 0, 1] = number, e
        frames[e, :, 0, 0, 2] = np.arange(FRAMES)
        frames[e, :, 0, 1, 0] = np.round(200 * rise * ends[e])
    camera = env.mj_model.camera(env.camera).id
    turn = np.zeros(9)
    mujoco.mju_quat2Mat(turn, env.mj_model.cam_quat[camera])
    steps = STRIDE * (FRAMES - 1)
    return {
        "frames": frames,
        "progress": progress,
        "success": progress >= 1,
        "grasped": np.zeros((EPISODES, FRAMES, len(env.alternatives)), bool),
        "things": rng.uniform(0.3, 0.6, (EPISODES, FRAMES, sum(env.groups), 3)),
        "tcp": rng.uniform(0.1, 0.3, (EPISODES, FRAMES, 3)),
        "open": np.ones((EPISODES, FRAMES)),
        "eye_place": np.broadcast_to(env.mj_model.cam_pos[camera], (EPISODES, FRAMES, 3)),
        "eye_turn": np.broadcast_to(turn.reshape(3, 3), (EPISODES, FRAMES, 3, 3)),
        "proprio": np.zeros((EPISODES, steps + 1, 9)),
        "actions": np.zeros((EPISODES, steps, 7)),
        "task_id": _task_ids(env, own, colours, wording),
        "own": own,
        "colours": colours,
        "mode": np.zeros(EPISODES, int),
    }


def _task_ids(env, own, colours, wording) -> np.ndarray:
    wanted = [
        env.sentences(c, int(w))[int(o)] for o, c, w in zip(own, colours, wording, strict=True)
    ]
    return np.array([env.instructions.index(s) for s in wanted])


def _task(name: str, combos: str) -> TaskEpisodes:
    settings = {"combos": combos, "wordings": "train"}
    collect = CollectSettings(EPISODES, stride=STRIDE)
    return TaskEpisodes(EnvSettings(name, settings, SIDE), collect)


@pytest.fixture(scope="module")
def job():
    return reward.RewardJob(
        env=_task("PutOnPlate", "train").env, collect=CollectSettings(EPISODES, stride=STRIDE),
        more=(_task("LiftPeg", "train"),), held_out=_task("PutOnPlate", "held_out").env,
        more_held_out=(_task("LiftPeg", "held_out"),), unseen=(_task("PlaceInBowl", "all"),),
        validation_episodes=2,
        training=RewardTraining(
            clips=dataclasses.replace(RewardTraining().clips, wrong_sentences=3, rewinds=0.5)
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def learnt(job):
    """What the training is given: a store, its clips, and those that only validate."""
    tasks = [TaskEpisodes(job.env, job.collect), *job.more]
    found = [(t, _arrays(_env(t.env.name), i)) for i, t in enumerate(tasks)]
    given = {}

    def train(settings, store, clips, folder, *, validation_clips, held_out, **rest):
        given.update(store=store, clips=clips, validation=validation_clips, held_out=held_out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward, "train", train)
        reward._train(job, found, None, types.SimpleNamespace(path=None))
    return found, given


def test_clips_show_the_frames_of_their_own_task_and_episode(learnt):
    found, given = learnt
    store = given["store"]
    assert len(store.frames) == 2 * EPISODES * FRAMES and len(store.starts) == 2 * EPISODES + 1
    seen = set()
    for clip in (*given["clips"], *given["validation"]):
        task, episode, frame = np.moveaxis(store.frames[clip.frames, 0, 0].astype(int), -1, 0)
        number = clip.episode // EPISODES
        assert (task == number).all() and (episode == clip.episode % EPISODES).all()
        np.testing.assert_array_equal(store.of(clip.episode)[frame], clip.frames)
        env, arrays = _env(found[number][0].env.name), found[number][1]
        place = clip.episode % EPISODES
        assert clip.task in {
            s for w in env.words.in_use("train") for s in env.sentences(arrays["colours"][place], w)
        }
        seen.add((number, KINDS[clip.kind]))
    assert {(0, "success"), (1, "success"), (1, "failure"), (0, "wrong_sentence")} <= seen


def test_a_wrong_sentence_is_worded_like_the_right_one(learnt):
    """Else the wording would give away that a sentence is wrong."""
    found, given = learnt
    wordings = set()
    for clip in given["clips"]:
        task, arrays = found[clip.episode // EPISODES]
        env, place = _env(task.env.name), clip.episode % EPISODES
        wording = env.wording_of(arrays["task_id"][place])
        assert clip.task in env.sentences(arrays["colours"][place], wording)
        wordings.add(wording)
    assert len(wordings) > 1


def test_facts_are_about_what_the_sentence_names(learnt):
    found, given = learnt
    for clip in given["clips"]:
        task, arrays = found[clip.episode // EPISODES]
        env, place = _env(task.env.name), clip.episode % EPISODES
        wording = env.wording_of(arrays["task_id"][place])
        said = env.mentions[env.sentences(arrays["colours"][place], wording).index(clip.task)]
        frame = given["store"].frames[clip.frames, 0, 0, 2]
        things = arrays["things"][place][frame]
        np.testing.assert_allclose(
            clip.facts["object_x"], project(env, things[:, said[0]])[:, 0], atol=1e-6
        )
        if len(said) > 1:
            np.testing.assert_allclose(
                clip.facts["plate_y"], project(env, things[:, said[1]])[:, 1], atol=1e-6
            )
        else:
            assert "plate_x" not in clip.facts
        assert ("left_cube_colour" in clip.facts) == (env.name == "PutOnPlate")


def test_the_last_episodes_of_each_task_only_validate(learnt):
    _, given = learnt
    trained = {c.episode for c in given["clips"]}
    assert trained == {0, 1, 2, 3, 6, 7, 8, 9}
    assert {c.episode for c in given["validation"]} == {4, 5, 10, 11}


def test_held_out_sentences_cover_colours_wordings_and_whole_tasks(job, learnt):
    held = reward.held_out_sentences(job)
    names = ("PutOnPlate", "LiftPeg", "PlaceInBowl")
    plate, peg, bowl = (_env(name, "all") for name in names)
    for template in (plate.words.plain, *plate.words.train, *plate.words.held_out):
        assert template.format("red", "blue") in held  # a held-out pair, in any wording
    assert plate.words.train[0].format("purple", "red") not in held
    assert plate.words.held_out[0].format("purple", "red") in held
    assert peg.words.plain.format("green") in held and peg.words.plain.format("red") not in held
    assert all(sentence in held for sentence in bowl.sentences_in_use())
    assert not any(normal_sentence(c.task) in held.sentences for c in learnt[1]["clips"])


class _Judge:
    """Knows the truth from the pixels, unless it does not know the wording."""

    def __init__(self, words):
        self.words = words

    def score(self, frames, tasks, *, interval, heads=None):
        truth = frames[..., 0, 1, 0].astype(np.float64) / 200
        known = np.array([any(w in t for w in self.words) for t in tasks])[:, None]
        truth = np.where(known, truth, 0.0)
        order = np.zeros_like(truth)
        order[:, interval:] = np.sign(truth[:, interval:] - truth[:, :-interval])
        done = (truth >= 1).astype(float)
        return types.SimpleNamespace(progress=truth, completion=done, contrastive=order)


def test_tables_of_several_tasks():
    tasks = [_task("PutOnPlate", "held_out"), _task("LiftPeg", "held_out")]
    unseen = [_task("PlaceInBowl", "all")]
    arrays = [(t, _arrays(t.env.make(), i)) for i, t in enumerate((*tasks, *unseen))]
    # It does not know the held-out wordings: "dish", "goes", "stick", "off".
    judge = _Judge(("put the", "place the", "move the", "lift", "pick up", "raise", "bowl"))
    made = open_loop.tables(judge, arrays[:2], arrays[2:], {"progress_mae": 0.1}, several=True)
    assert made["episodes"] == 2 * EPISODES and set(made["by_task"]) == {"PutOnPlate", "LiftPeg"}
    assert made["unseen"]["PlaceInBowl"]["episodes"] == EPISODES
    mae = made["metrics"]["progress_mae"]["model"]["value"]
    assert mae < 0.01 and made["metrics"]["progress_mae"]["met"]
    assert made["any_distance"]["model"]["value"] == 1.0
    assert made["any_distance"]["time ramp"]["value"] == 1.0
    assert made["any_distance"]["constant"]["value"] == 0.5
    assert made["reworded"]["episodes"] == 2 * EPISODES
    assert made["reworded"]["metrics"]["progress_mae"]["model"]["value"] > 0.2
    assert set(made["reworded_by_task"]) == set(made["by_task"])
    assert all(own["episodes"] == EPISODES for own in made["reworded_by_task"].values())
