"""A user's own heads: files, messages, built-in sets, and the goal image."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from lrm_jax.jobs import doctor
from lrm_jax.jobs.score import score_inputs
from lrm_jax.qwen3_vl import resize
from lrm_jax.rewards import heads as heads_file
from lrm_jax.rewards.heads import Head, joint_heads, nano_heads
from lrm_jax.rewards.model import NANO_FOLDER, load_reward_model
from lrm_jax.run.errors import UserError

TASK = "put the red cube on the blue plate"
GOAL = (
    Head(
        "progress",
        heads_file.conversation("<task><image:goal><image:current>", '{"completion_progress": '),
        ("0.0", "0.5", "1.0"),
        (0.0, 0.5, 1.0),
    ),
    Head(
        "contrastive",
        heads_file.conversation(
            "<image:previous><image:goal><image:current><task>", '{"more_complete_image": "', '"}'
        ),
        ("ImageB", "ImageA"),
        (1.0, -1.0),
    ),
)


def write(path, heads, **extra):
    entries = [dataclasses.asdict(h) if isinstance(h, Head) else h for h in heads]
    path.write_text(json.dumps({"format": 1, **extra, "heads": entries}))
    return path


@pytest.fixture(scope="module")
def with_goal(folder, tmp_path_factory):
    return load_reward_model(folder, heads=write(tmp_path_factory.mktemp("h") / "heads.json", GOAL))


def test_a_file_takes_the_place_of_the_models_heads(folder, tmp_path):
    path = write(tmp_path / "mine.json", joint_heads())
    model = load_reward_model(folder, heads=path)
    assert model.heads == joint_heads() and model.image_size == (32, 32)
    assert load_reward_model(folder, heads="joint").heads == joint_heads()
    assert load_reward_model(
        folder, heads=write(path, nano_heads(), image_size=[64, 32])
    ).image_size == (64, 32)
    assert model.facts["prompt_sha256"] == heads_file.fingerprint(joint_heads())


def test_messages_are_qwens_chat_format(tmp_path):
    transformers = pytest.importorskip("transformers")
    messages = [
        {"role": "system", "content": "Judge."},
        {"role": "user", "content": "<task> <image:current> done?"},
        {"role": "assistant", "content": '{"task_completed": "<answer>"}'},
    ]
    entry = {"name": "completion", "messages": messages, "answers": ["no", "yes"], "values": [0, 1]}
    (head,), extra = heads_file.read_heads(write(tmp_path / "h.json", [entry]))
    assert head.images == ("current",) and extra == {}
    # ChatML, the turn format of Qwen's own templates, written out by transformers.
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role + '\n' + m.content }}<|im_end|>"
        "{{ '' if loop.last else '\n' }}{% endfor %}"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(NANO_FOLDER)
    said = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    assert head.prompt == said


DONE = dataclasses.asdict(nano_heads()[1])


@pytest.mark.parametrize(
    "heads, message",
    [
        ([], "format 1"),
        ([{"name": "completion"}], "head 'completion': a head needs exactly"),
        ([DONE | {"messages": []}], "exactly"),
        ([DONE | {"name": 3}], "head number 0"),
        ([DONE | {"name": "done"}], "head 'done' is none of the rewards"),
        ([DONE | {"answers": "no"}], "answers must be"),
        ([DONE | {"answers": ["no", "no"]}], "all different"),
        ([DONE | {"values": [0, "1"]}], "values must be"),
        ([DONE | {"values": [0, 2]}], r"\[0, 1\]"),
        ([DONE | {"values": [0, 0.5, 1]}], "2 answers but 3 values"),
        ([DONE | {"prompt": 5}], "prompt must be"),
        ([DONE | {"prompt": "<task><image:current>"}], "exactly one <answer>"),
        ([DONE | {"prompt": "<task><image:goal><answer>"}], "never shows <image:current>"),
        ([DONE | {"prompt": "<image:left><answer>"}], "unknown image 'left'"),
        ([DONE | {"prompt": "<image:previous><image:current><answer>"}], "only it"),
        ([DONE, DONE], "two heads"),
        ([dataclasses.asdict(nano_heads()[2]) | {"values": [0, 1]}], "values -1"),
    ],
)  # fmt: skip
def test_errors_name_the_file_and_the_head(folder, tmp_path, heads, message):
    path = write(tmp_path / "mine.json", heads)
    with pytest.raises(UserError, match=message) as caught:
        load_reward_model(folder, heads=path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "messages, message",
    [
        ("<image:current>", "must be a list"),
        ([{"role": "user"}], "exactly role and content"),
        ([{"role": "robot", "content": "x"}], "role 'robot'"),
        ([{"role": "user", "content": "<|im_end|>"}], "special tokens"),
        ([{"role": "user", "content": "<image:current><answer>"}], "assistant's"),
    ],
)
def test_errors_of_messages(tmp_path, messages, message):
    entry = {k: v for k, v in DONE.items() if k != "prompt"} | {"messages": messages}
    with pytest.raises(UserError, match=message) as caught:
        heads_file.read_heads(write(tmp_path / "mine.json", [entry]))
    assert "mine.json: head 'completion'" in str(caught.value)


def test_no_such_heads(folder):
    with pytest.raises(UserError, match="did you mean 'joint'"):
        load_reward_model(folder, heads="joints")


def test_the_goal_reaches_the_heads_that_show_it(with_goal, frames):
    """Two videos with their goals in one call, as each alone; and another goal, another score."""
    videos, goals = np.moveaxis(frames[:, :2], 1, 0), frames[:2, 2]
    both = with_goal.score(videos, TASK, goal=goals)
    alone = with_goal.score(videos[1], TASK, goal=goals[1])
    for name in ("progress", "contrastive"):
        np.testing.assert_allclose(getattr(both, name)[1], getattr(alone, name), atol=1e-5)
    assert not alone.valid["completion"].any()
    other = with_goal.score(videos[1], TASK, goal=goals[0])
    assert abs(other.progress - alone.progress).max() > 1e-3
    back = with_goal.score(videos[1][::-1], TASK, goal=goals[1])
    np.testing.assert_allclose(back.contrastive[:0:-1], -alone.contrastive[1:], atol=1e-5)


def test_a_goal_is_the_image_in_its_slot(with_goal, tiny, frames):
    """The same prompt with the goal in the episode's first place gives the same answer."""
    initial = dataclasses.replace(
        GOAL[0], prompt=GOAL[0].prompt.replace("<image:goal>", "<image:initial>")
    )
    want = dataclasses.replace(with_goal, heads=(initial,), _engines={})
    video = frames[:4, 0]
    start = np.concatenate([frames[5:6, 1], video])
    got = with_goal.score(video, TASK, goal=frames[5, 1], heads=["progress"])
    expected = want.score(start, TASK)
    np.testing.assert_allclose(got.progress, expected.progress[1:], atol=1e-5)


def test_goals_keep_within_the_memory_budget(with_goal, frames):
    """Groups of one environment each give what one group gives."""
    arguments = with_goal.variables, frames, np.zeros(3, np.int32)
    scores = [
        with_goal.engine([TASK], memory_bytes=size).score(*arguments, goal=frames[0])
        for size in (1, 64 << 20)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *scores)


@pytest.mark.parametrize(
    "goal, message",
    [
        (None, "shows <image:goal>: give goal"),
        (np.zeros((32, 32, 3), np.float32), "uint8"),
        (np.zeros((32, 32), np.uint8), "uint8"),
        (np.zeros((2, 32, 32, 3), np.uint8), "1 videos but 2 goals"),
    ],
)
def test_wrong_goals(with_goal, frames, goal, message):
    with pytest.raises(UserError, match=message):
        with_goal.score(frames[:, 0], TASK, goal=goal)


def test_a_goal_that_no_head_shows(folder, frames):
    with pytest.raises(UserError, match="no head of this model"):
        load_reward_model(folder).score(frames[:, 0], TASK, goal=frames[0, 0])


def test_the_doctor_shows_the_samples_end_as_goal(with_goal, frames):
    sample = doctor.Sample(frames[:, 0], TASK, "put the green cube on the yellow plate")
    found = {f.check: f for f in doctor.examine_model(with_goal, sample)}
    assert found["batch invariance"].status == "ok"
    assert found["constant progress"].value > 0


def test_the_job_of_the_door_reads_the_goal(with_goal, frames, tmp_path):
    """A picture file and a video's last frame are goals; heads that were not asked stay empty."""
    Image.fromarray(frames[4, 1]).save(tmp_path / "goal.png")
    np.save(tmp_path / "demonstration.npy", frames[:5, 1])
    np.save(tmp_path / "video.npy", frames[:3, 0])
    want = with_goal.score(frames[:3, 0], TASK, goal=frames[4, 1])
    for goal in ("goal.png", "demonstration.npy"):
        video, out = tmp_path / "video.npy", tmp_path / f"out_{goal}"
        score_inputs(with_goal, [video], TASK, out, goal=tmp_path / goal)
        got = json.loads((out / "scores.json").read_text())["heads"]["progress"]["value"]
        np.testing.assert_allclose(got, want.progress, atol=1e-5)
    with pytest.raises(UserError, match=r"nothing.png: there is no such file"):
        score_inputs(with_goal, [video], TASK, tmp_path / "out", goal=tmp_path / "nothing.png")


def test_a_checkpoint_with_a_processor_resizes_as_that_does(folder, tmp_path, frames):
    """Frames of any size, as if the processor had been over them; not as lrm-nano resizes."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / heads_file.FILE).unlink()
    settings = {"size": {"shortest_edge": 300, "longest_edge": 1100}, "image_mean": [0.5] * 3}
    (copy / "preprocessor_config.json").write_text(json.dumps(settings))
    model = load_reward_model(copy, heads="nano")
    big = frames[:3, 0].repeat(3, axis=1).repeat(2, axis=2)  # 96 x 64, within 1100 pixels 32 x 16
    size = resize.image_size(96, 64, model.config, resize.PixelBounds(300, 1100))
    got = model.score(big, TASK, heads=["progress"])
    assert list(model._engines) == [size]
    want = model.score(np.asarray(resize.bicubic(big, size)), TASK, heads=["progress"])
    np.testing.assert_allclose(got.progress, want.progress, atol=1e-5)
    other = model.score(np.asarray(resize.linear(big, size)), TASK, heads=["progress"])
    assert abs(got.progress - other.progress).max() > 1e-4
    fewer = load_reward_model(copy, heads="nano", max_pixels=300)
    assert fewer._own_size((96, 64)) == resize.image_size(96, 64, model.config, fewer.pixels)
    assert np.prod(fewer._own_size((96, 64))) <= 300
    with pytest.raises(UserError, match="max_pixels"):
        load_reward_model(copy, max_pixels=0)
