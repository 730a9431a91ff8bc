"""Sentences to word indices for the policy's language input.

The policy learns from a handful of sentence templates, so words are its tokens. A word that no
demonstration contained has no meaning for it, and is an error instead of a silent "unknown".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lrm_jax.run.errors import UserError

_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")


def words(sentence: str) -> list[str]:
    """Lower-case words and numbers of a sentence, in order."""
    return _WORD.findall(sentence.lower())


@dataclass(frozen=True)
class Vocabulary:
    """Known words (sorted; index 0 is the padding) and the padded length of a sentence."""

    words: tuple[str, ...]
    length: int

    @classmethod
    def of(cls, sentences: Iterable[str], length: int | None = None) -> Vocabulary:
        """All words of `sentences`; `length` defaults to that of the longest sentence."""
        split = [words(sentence) for sentence in sentences]
        if not split or not all(split):
            raise UserError("a vocabulary needs at least one sentence, and no empty ones")
        longest = max(len(s) for s in split)
        return cls(tuple(sorted({w for s in split for w in s})), length or longest)

    @property
    def size(self) -> int:
        """Rows of an embedding table: the words and the padding."""
        return len(self.words) + 1

    def encode(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns tokens int32 [K, length] (0 = padding) and mask bool [K, length].

        Raises UserError for an empty or too long sentence and for unknown words.
        """
        index = {word: i + 1 for i, word in enumerate(self.words)}
        tokens = np.zeros((len(sentences), self.length), np.int32)
        for row, sentence in zip(tokens, sentences, strict=True):
            split = words(sentence)
            unknown = [w for w in split if w not in index]
            if unknown:
                raise UserError(
                    f"the policy does not know the words {unknown} of {sentence!r}; "
                    f"it knows {list(self.words)}"
                )
            if not 0 < len(split) <= self.length:
                raise UserError(f"{sentence!r} has {len(split)} words, not 1 to {self.length}")
            row[: len(split)] = [index[w] for w in split]
        return tokens, tokens > 0
