"""Trains the tokenizer of `lrm-nano`: a small byte-level BPE with Qwen3-VL's special tokens.

    python -m lrm_jax.reward_training.tokenizer --out=FOLDER

The words are those that robot tasks are told with; any other text still works, in more tokens.
Scaffolds and answers of the nano heads and of the scene questions are whole tokens, so that one
read of one place scores every answer exactly, and that a question costs as few tokens as it can.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from lrm_jax.reward_training.scene_heads import scene_heads
from lrm_jax.rewards.heads import Head, nano_heads
from lrm_jax.rewards.tokenizer import (
    END_OF_TEXT,
    IM_END,
    IM_START,
    IMAGE_PAD,
    VISION_END,
    VISION_START,
)
from lrm_jax.run import atomic

VOCABULARY = 1024
SPECIAL = (END_OF_TEXT, IM_START, IM_END, VISION_START, VISION_END, IMAGE_PAD, "<|video_pad|>")

COLOURS = (
    "red green blue yellow purple orange black white grey gray pink brown cyan magenta turquoise "
    "violet gold silver beige dark light"
).split()
OBJECTS = (
    "cube block box ball sphere cylinder can cup mug bowl plate dish tray spoon fork knife bottle "
    "banana apple carrot lemon peg ring brick disk cone toy lid pot pan sponge towel drawer basket"
).split()
PLACES = "plate tray dish bowl box mat basket table shelf square circle".split()
TEMPLATES = (
    "put the {a} {x} on the {b} {y}",
    "put the {a} {x} in the {b} {y}",
    "put the {a} {x} onto the {b} {y}",
    "place the {a} {x} on the {b} {y}",
    "move the {a} {x} to the {b} {y}",
    "pick up the {a} {x} and place it on the {b} {y}",
    "set the {a} {x} down on the {b} {y}",
    "stack the {a} {x} on top of the {b} {x}",
    "take the {a} {x} from the {b} {y}",
    "push the {a} {x} next to the {b} {y}",
    "lift the {a} {x}",
    "open the {a} {x}",
    "close the {b} {y}",
    "slide the {a} {x} left of the {b} {y}",
    "pull the {a} {x} away to the right, behind or in front of the {b} {y}",
)


def sentences() -> Iterator[str]:
    """The text whose words become tokens: every template with every colour, objects and places in
    turn."""
    things = itertools.cycle(itertools.product(OBJECTS, PLACES))
    for template in TEMPLATES:
        for a, b in itertools.product(COLOURS, COLOURS):
            x, y = next(things)
            yield template.format(a=a, b=b, x=x, y=y)


def whole_tokens(heads: Sequence[Head]) -> list[str]:
    """Turn openings, scaffolds and answers of `heads`, each to be one token."""
    found = ["user\n", "assistant\n"]
    for head in heads:
        before, _, _ = head.prompt.partition("<answer>")
        found.append(before.rpartition("assistant\n")[2])
        found += head.answers
    return list(dict.fromkeys(found))


def train(
    folder: str | Path, heads: Sequence[Head] | None = None, vocabulary: int = VOCABULARY
) -> int:
    """Trains the tokenizer and writes `tokenizer.json` and `tokenizer_config.json`; returns the
    vocabulary's size.

    Deterministic: the same package version writes the same bytes.
    """
    import tokenizers
    from tokenizers import (
        AddedToken,
        Regex,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )

    heads = (*nano_heads(), *scene_heads()) if heads is None else heads
    whole = whole_tokens(heads)
    inner = tokenizers.Tokenizer(models.BPE())
    inner.normalizer = normalizers.NFC()
    # Words with the space before them; punctuation and digits one by one.
    split = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]|\s+"), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(whole) - len(SPECIAL),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(sentences(), trainer)
    # Answers count as whole words only: "no" must not cut "note" in two.
    inner.add_tokens(
        [
            AddedToken(t, single_word=t.replace(".", "").isalnum(), normalized=False, special=False)
            for t in whole
        ]
    )
    inner.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    folder = Path(folder)
    with atomic.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(folder / "tokenizer.json", inner.to_str(pretty=True).encode())
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "model_max_length": 4096,
        "split_special_tokens": False,
    }
    atomic.write_json(folder / "tokenizer_config.json", config)
    return inner.get_vocab_size(with_added_tokens=True)


def _main(argv: list[str]) -> None:
    del argv
    size = train(_OUT.value)
    print(json.dumps({"folder": _OUT.value, "tokens": size}))


if __name__ == "__main__":
    from lrm_jax.run import cli

    _OUT = flags.DEFINE_string("out", None, "Folder to write the tokenizer to.", required=True)
    cli.run_app(_main)
