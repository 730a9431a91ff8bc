"""Scene questions: heads that teach the network to see before it judges.

Qwen3-VL comes to reward training with eyes: it has answered questions about pictures for trillions
of tokens. A small model trained from scratch has not, and progress labels alone teach it colours
and places slowly. The heads here ask about the same images, behind the same sentence, where the
things named in it are and what the gripper does; the answers are words of the same network. They
are heads like any other, so a row asks them for a token or two more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lrm_jax.rewards.heads import Head, conversation

_TENTHS = tuple(f"{k / 10:.1f}" for k in range(11))
# Image coordinates run from 0 (left, top) to 1; heights and distances are scaled to [0, 1] by the
# caller.
MEASURES = (
    "object_x",
    "object_y",
    "plate_x",
    "plate_y",
    "gripper_x",
    "gripper_y",
    "gripper_height",
    "gripper_to_object",
    "object_to_plate",
)
FLAGS = ("object_held", "object_on_plate", "gripper_open")


def scene_heads() -> tuple[Head, ...]:
    """One head for each of MEASURES (answers 0.0 ... 1.0) and FLAGS (no, yes), asked behind the
    image and the sentence as the nano heads are."""
    images = "<image:current><task>"
    values = tuple(map(float, _TENTHS))
    measures = [Head(n, conversation(images, f'{{"{n}": '), _TENTHS, values) for n in MEASURES]
    flags = [
        Head(n, conversation(images, f'{{"{n}": "', '"}'), ("no", "yes"), (0.0, 1.0)) for n in FLAGS
    ]
    return (*measures, *flags)


# Questions that need no sentence: what lies left and right, and which colour it has.
SIDES, THINGS = ("left", "right"), ("cube", "plate")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")


def thing_heads(colours: Sequence[str] = COLOURS) -> tuple[Head, ...]:
    """For the left and the right cube and plate: SIDE_THING_x (tenths) and SIDE_THING_colour.

    They take finding and naming apart from the binding of words to things, which is slow to learn
    at once: with two plates, "where is the plate that is meant" has no gradient towards finding
    plates until colours are told apart. A colour is answered by the very token that the sentence
    has for it (" red"), so that with tied embeddings the image's features move towards the words.
    Scaffolds are words of the nano tokenizer, three or four tokens that the questions share.
    """
    images = "<image:current>"
    values = tuple(np.linspace(0.0, 1.0, len(colours)))
    words = tuple(f" {c}" for c in colours)
    heads = []
    for side in SIDES:
        for thing in THINGS:
            name, opening = f"{side}_{thing}", f" {side} {thing}"
            tenths = tuple(map(float, _TENTHS))
            heads.append(
                Head(f"{name}_x", conversation(images, f"{opening} to ", ""), _TENTHS, tenths)
            )
            heads.append(
                Head(f"{name}_colour", conversation(images, f"{opening} the", ""), words, values)
            )
    return tuple(heads)


def named_heads(colours: Sequence[str] = COLOURS) -> tuple[Head, ...]:
    """Where the cube and the plate of each colour are: COLOUR_THING_x, answers in tenths.

    The colour is the last word before the answer, so one look from that word at the image is the
    whole task: find what has my colour. Once words can look for things, the same word does it in
    the sentence. Without these questions, 400 steps that knew every thing's place and colour did
    not learn to find the plate that the sentence names.
    """
    images, values = "<image:current>", tuple(map(float, _TENTHS))
    return tuple(
        Head(f"{c}_{t}_x", conversation(images, f" {t} to the {c}", ""), _TENTHS, values)
        for t in THINGS
        for c in colours
    )


def thing_facts(
    thing: str, x: np.ndarray, colours: Sequence[int], count: int = len(COLOURS)
) -> dict[str, np.ndarray]:
    """Answers to the `thing_heads` and `named_heads` about one kind of thing, float32 [T] by name.

    Args:
      thing: one of THINGS. x: [T, 2], image coordinate x in [0, 1] of the two of them.
      colours: their indices into the colours of `thing_heads`.
      count: how many colours there are.
    Returns:
      NaN for the place of what is not in the scene; of two things of one colour, the first one's.
    """
    nowhere = np.full(len(x), np.nan, np.float32)
    facts = {f"{c}_{thing}_x": nowhere for c in COLOURS[:count]}
    for i in reversed(range(len(colours))):
        facts[f"{COLOURS[colours[i]]}_{thing}_x"] = x[:, i].astype(np.float32)
    order = np.argsort(x, axis=1)
    for i, side in enumerate(SIDES):
        which = order[:, i]
        facts[f"{side}_{thing}_x"] = np.take_along_axis(x, order, 1)[:, i].astype(np.float32)
        named = np.asarray(colours, np.float32)[which] / (count - 1)
        facts[f"{side}_{thing}_colour"] = named.astype(np.float32)
    return facts
