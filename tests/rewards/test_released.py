"""The converter of published prompts, on a checkout written here in our own words."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from lrm_jax.rewards import released
from lrm_jax.rewards.heads import conversation, nano_heads, read_heads
from lrm_jax.rewards.judges import prompts
from lrm_jax.rewards.model import load_reward_model
from lrm_jax.rewards.saving import save_reward_model
from lrm_jax.run.errors import UserError

# The forms that published servers use: an f-string, lists that branch on the images, `.strip()`.
SERVER = '''
import os
raise SystemExit("a converter must not run this")
TOPREWARD_PREFIX = "A film of a robot that did this: "
TOPREWARD_SUFFIX = ". Is it so? " "I say: True"
ROBOREWARD_PROMPT = ("Marks from 1 to 5, please.\\n" "It was told: {task}")
PLAIN = '{ "completion_progress": 0.5 }'

def picture(x):
    return Image.fromarray(x) if isinstance(x, Array) else x

def compare(image_a, image_b, task_description):
    """Answers with "more_complete_image"."""
    a, b = 1, 2
    first = picture(image_a)
    second = picture(image_b)
    shown = [first, second]
    prompt = (
        f"Job: {task_description}!\\n" "One <image> and two <image>, which?\\n"
        '{"more_complete_image" : "..."}'
    )
    for i, part in enumerate(prompt.split("<image>")):
        content.append({"type": "text", "text": part})
    return model(prompt)

def parse(response):
    return json.loads(response)["more_complete_image"]

def estimate(image, task_description, reward_type="progress", goal_image=None, initial_image=None):
    if image.dtype != np.uint8:
        image = (image * 255).astype(np.uint8)
    now, goal, start = picture(image), picture(goal_image), picture(initial_image)
    now = picture(image)
    goal = picture(goal_image)
    start = picture(initial_image)
    images = []
    if reward_type == "progress":
        parts = ["Job: " + task_description]
        if goal is not None:
            parts.append(" Goal <image>")
            images.append(goal)
        if start is not None:
            parts.append(" Start <image>")
            images.append(start)
        parts.append(" Now <image>")
        images.append(now)
        parts.append(' How far? { "completion_progress": x }')
        prompt = "".join(parts)
    else:
        images.append(now)
        prompt = f"How good is <image> at {task_description}?"
    return model(prompt, images)

def finished(image, task_description):
    text = f"Job: {task_description}.\\n\\nSee: <image>\\n\\n"
    text += f'Over? {{"task_completed": "yes"/"no"}}'
    content = [{"type": "text", "text": part.strip()} for part in text.split("<image>")]
    return model(content)

def robometer(frames, task_description):
    official_prompt = f"How far is '{task_description}' in each picture?"
    other = "x"
'''


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "code" / "server").mkdir(parents=True)
    (tmp_path / "code" / "setup.py").write_text("VERSION = 1\n")
    (tmp_path / "code" / "server" / "serve.py").write_text(SERVER)
    return tmp_path / "code"


QUESTIONS = {
    "progress": "Job: <task> Start <image:initial> Now <image:current> How far? "
    '{ "completion_progress": x }',
    "completion": "Job: <task>.\n\nSee:<image:current>Over? "
    '{"task_completed": "yes"/"no"}',
    "contrastive": "Job: <task>!\nOne <image:previous> and two <image:current>, which?\n"
    '{"more_complete_image" : "..."}',
}  # fmt: skip
SCAFFOLDS = {
    "progress": ('{ "completion_progress": ', " }"),
    "completion": ('{"task_completed": "', '"}'),
    "contrastive": ('{"more_complete_image" : "', '"}'),
}


def test_prompts_are_those_of_the_source(checkout):
    heads = released.released_heads(checkout)
    for head, plain in zip(heads, nano_heads(), strict=True):
        assert (head.name, head.answers, head.values) == (plain.name, plain.answers, plain.values)
        assert head.prompt == conversation(QUESTIONS[head.name], *SCAFFOLDS[head.name])


@pytest.mark.parametrize(
    "goal, initial, images",
    [
        (True, True, ("goal", "initial", "current")),
        (True, False, ("goal", "current")),
        (False, False, ("current",)),
    ],
)
def test_the_images_of_progress_can_be_chosen(checkout, goal, initial, images):
    heads = released.released_heads(checkout, goal=goal, initial=initial)
    assert [h.images for h in heads] == [images, ("current",), ("previous", "current")]
    assert ("Goal <image:goal>" in heads[0].prompt) == goal


def test_judges(checkout):
    found = released.released_judges(checkout)
    for name, prompt in found.items():
        prompts.cut(prompt, name, answers=name != "robometer")  # a judge takes it
    assert found == {
        "topreward": "<|im_start|>user\n<video>A film of a robot that did this: <task>. Is it so? "
        "I say:<answer>",
        "roboreward": "<|im_start|>user\n<video>Marks from 1 to 5, please.\nIt was told: <task>"
        "<|im_end|>\n<|im_start|>assistant\nANSWER: <answer><|im_end|>",
        "robometer": "<|im_start|>user\nHow far is '<task>' in each picture?<video>",
    }


SECOND = """
def finished_too(image, task):
    prompt = f'{task} in <image>: {{"task_completed": "?"}}'
"""


def change(checkout, old, new):
    path = checkout / "server" / "serve.py"
    assert old in SERVER
    path.write_text(SERVER.replace(old, new))


def test_a_function_decides_between_two_prompts(checkout):
    (checkout / "other.py").write_text(textwrap.dedent(SECOND))
    with pytest.raises(UserError, match=r"several prompts.*finished_too.*name a function"):
        released.released_heads(checkout)
    heads = released.released_heads(checkout, functions={"completion": "finished_too"})
    assert "<task> in <image:current>: " in heads[1].prompt
    with pytest.raises(UserError, match="head 'completion'; the key stands in: "):
        released.released_heads(checkout, functions={"completion": "compare"})


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("more_complete_image", "better", r"head 'contrastive'.*stands in: no function"),
        ("One <image> and two <image>", "Both", r"head 'contrastive'.*serve.py:\d+ compare"),
        ('f"Job: {task_description}!', 'f"Job: {secret()}!', "head 'contrastive'"),
        ("def compare(", "def compare((", "not Python source"),
    ],
)
def test_what_is_missing_is_named(checkout, old, new, message):
    change(checkout, old, new)
    with pytest.raises(UserError, match=message):
        released.released_heads(checkout)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("TOPREWARD_SUFFIX", "TOPREWARD_END", r"TOPREWARD_SUFFIX; there are TOPREWARD_END, TOP"),
        ("I say: True", "I say: Yes", "does not end in ' True'"),
        ("told: {task}", "told: {job}", "other fields than task"),
        ("official_prompt", "prompt", r"official_prompt\); there are prompt"),
    ],
)
def test_what_is_missing_of_judges_is_named(checkout, old, new, message):
    change(checkout, old, new)
    with pytest.raises(UserError, match=message):
        released.released_judges(checkout)


def test_folders_that_are_no_checkout(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        released.released_heads(tmp_path / "nothing")
    with pytest.raises(UserError, match="no Python file"):
        released.released_heads(tmp_path)


def test_the_command_writes_a_file_that_a_model_asks_by(
    checkout, tiny, tokenizer, frames, tmp_path
):
    def run(*words):
        command = [sys.executable, "-m", "lrm_jax.jobs.convert_heads", *words]
        return subprocess.run(command, capture_output=True, text=True)

    done = run(f"--out={tmp_path / 'heads.json'}", str(checkout))
    assert done.returncode == 0, done.stderr
    heads, extra = read_heads(tmp_path / "heads.json")
    assert heads == released.released_heads(checkout)
    assert extra == {"judges": released.released_judges(checkout)}
    assert json.loads((tmp_path / "heads.json").read_text())["format"] == 1
    model, params = tiny
    save_reward_model(tmp_path, model.config, params, nano_heads(), tokenizer, (32, 32), "float32")
    loaded = load_reward_model(tmp_path, heads=tmp_path / "heads.json")
    scores = loaded.score(frames[:2, 0], "put the red cube on the blue plate")
    assert all(valid[1] for valid in scores.valid.values())
    assert np.isfinite(scores.tri[1])
