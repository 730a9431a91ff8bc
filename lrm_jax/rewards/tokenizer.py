"""Text to token ids at run time: the `tokenizers` library alone (transformers takes seconds to
import)."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

from lrm_jax.run.errors import UserError

VISION_START, VISION_END, IMAGE_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A `tokenizer.json` of the Qwen family: byte-level BPE whose special tokens mark turns and
    images."""

    inner: Any
    digest: str

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Tokenizer:
        """Reads `folder/tokenizer.json`; UserError if it is missing, damaged or lacks the image
        tokens."""
        import tokenizers

        path = Path(folder) / "tokenizer.json"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"cannot read {path}: {error.strerror}; a reward model needs its tokenizer"
            ) from error
        try:
            inner = tokenizers.Tokenizer.from_buffer(data)
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path} is damaged or no tokenizer file ({error})") from error
        inner.no_padding()
        inner.no_truncation()
        made = cls(inner, hashlib.sha256(data).hexdigest())
        for token in (VISION_START, VISION_END, IMAGE_PAD):
            made.token_id(token)
        return made

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of `text`, special tokens in it recognised, none added; and where in `text`
        each starts."""
        found = self.inner.encode(text, add_special_tokens=False)
        return list(found.ids), [start for start, _ in found.offsets]

    def token_id(self, token: str) -> int:
        """The id of a whole token; UserError if the vocabulary lacks it."""
        number = self.inner.token_to_id(token)
        if number is None:
            raise UserError(
                f"the tokenizer has no token {token!r}: it is not that of a Qwen3-VL model"
            )
        return number

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.inner.get_vocab(with_added_tokens=True).values()) + 1
