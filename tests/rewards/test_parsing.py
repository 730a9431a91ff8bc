"""Reading generated answers: what counts as one, and what must not."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrm_jax.rewards.heads import Head, conversation, default_heads, joint_heads, nano_heads
from lrm_jax.rewards.parsing import reader, scaffold_of
from lrm_jax.run.errors import UserError

READERS = {head.name: reader(head) for head in default_heads()}


@pytest.mark.parametrize(
    "head, text, value",
    [
        ("progress", '{"completion_progress": 0.3}', 0.3),
        ("progress", '{ "completion_progress" : 1 }', 1.0),
        ("progress", '{"completion_progress": "0.25"}', 0.25),
        ("progress", 'The cube is near.\n```json\n{"completion_progress": 0.9}\n```\nDone.', 0.9),
        ("progress", '{"completion_progress": 0.1} no: {"completion_progress": 0.2}', 0.2),
        ("progress", 'so {maybe {"x": 1} } {"completion_progress": 0.4', None),
        ("progress", '{"answer": {"completion_progress": 0.5}}', 0.5),
        ("progress", '{"completion_progress": 0.3, "was": {"completion_progress": 0.9}}', 0.3),
        # The last answer counts, even if it says nothing.
        ("progress", '{"completion_progress": 0.1} {"completion_progress": 7}', None),
        ("progress", '{"completion_progress": 1.1}', None),
        ("progress", '{"completion_progress": -0.1}', None),
        ("progress", '{"completion_progress": NaN}', None),
        ("progress", '{"completion_progress": "NA"}', None),
        ("progress", '{"completion_progress": true}', None),
        ("progress", '{"completion_progress": null}', None),
        ("progress", '{"completion_progress": [0.3]}', None),
        ("progress", '{"completion_progress": 1e999}', None),
        ("progress", '{"completion_progress": 1' + "0" * 5000 + "}", None),
        ("progress", '{"x":' * 3000, None),
        ("progress", '{"progress": 0.3}', None),
        ("progress", "completion_progress: 0.3", None),
        ("progress", "0.3", None),
        ("progress", "", None),
        ("completion", '{"task_completed": "yes"}', 1.0),
        ("completion", '{"task_completed": "No"}', 0.0),
        ("completion", '{"task_completed": "not yet"}', None),
        ("completion", '{"task_completed": true}', None),
        ("completion", "yes", None),
        ("contrastive", 'ImageA lags. {"more_complete_image": "ImageB"}', 1.0),
        ("contrastive", '{"more_complete_image": "ImageA"}', -1.0),
        ("contrastive", '{"more_complete_image": "both"}', None),
        ("contrastive", '{"more_complete_image": "ImageB"', None),
    ],
)
def test_what_is_read(head, text, value):
    assert READERS[head].read(text) == value


WORDS = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), max_size=30)


@settings(deadline=None, max_examples=60)
@given(WORDS, WORDS, st.floats(0, 1), st.sampled_from([None, 0, 2]))
def test_any_number_of_the_range_comes_back(before, after, number, indent):
    text = json.dumps({"completion_progress": number}, indent=indent)
    assert READERS["progress"].read(before + text + after) == number


@settings(deadline=None, max_examples=60)
@given(WORDS, st.sampled_from([*default_heads(), *joint_heads(), *nano_heads()]), st.data())
def test_a_heads_own_answers_come_back(before, head, data):
    scaffold, closing = scaffold_of(head)
    number = data.draw(st.integers(0, len(head.answers) - 1))
    text = before + scaffold + head.answers[number] + closing
    assert reader(head).read(text) == head.values[number]


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=60))
def test_no_text_breaks_it(text):
    for head in READERS.values():
        assert head.read(text) is None


def test_a_users_head():
    stars = Head("progress", conversation("<image:current>", '{"stars": '), "12345", range(5))
    assert reader(stars).read('{"stars": 4}') == reader(stars).read('{"stars": "4"}') == 3
    assert reader(stars).read('{"stars": 4.5}') is None
    letters = conversation("<image:current>", '{"shown": "Image', '"}')
    assert reader(Head("x", letters, "AB", (0, 1))).read('{"shown": "ImageB"}') == 1
    case = dataclasses.replace(stars, answers=("a", "A", "b", "B", "c"))
    assert reader(case).read('{"stars": "A"}') == 1


@pytest.mark.parametrize(
    "prompt, message",
    [
        (conversation("<image:current>", "Answer: "), "key of a JSON object"),
        ("<image:current><answer>", "assistant's turn"),
        ('<image:current>{"x": <answer>', "assistant's turn"),
    ],
)
def test_heads_that_cannot_be_read(prompt, message):
    with pytest.raises(UserError, match=message):
        reader(Head("x", prompt, ("a", "b"), (0, 1)))
