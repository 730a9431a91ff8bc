"""Rows of tokens for closed questions, as token trees that share what their questions have in
common.

A query is one head asked about named frames. Written out, it is a path of tokens: sentence, images,
scaffold, and behind the scaffold the tokens of each candidate answer. `build_layout` merges the
paths of several queries into one row: two paths share a token as long as everything before it is
equal. The attention mask of the row lets each token see its own ancestors and nothing else, and
rotary positions count along the path, so that each query gets exactly the result that it would get
in a row of its own. Two savings follow: the sentence and the initial image are computed once for
all frames and heads, and a multi-token answer set is read in one forward.

Everything here is numpy on the host. Shapes depend on the queries and on the longest sentence (in
buckets), never on the data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import numpy as np

from lrm_jax.qwen3_vl import inputs
from lrm_jax.qwen3_vl.config import Config
from lrm_jax.rewards.heads import Head
from lrm_jax.rewards.tokenizer import IM_END, IMAGE_PAD, VISION_END, VISION_START, Tokenizer
from lrm_jax.run.errors import UserError

# A text that holds a sentence is padded to a multiple of this many tokens, so that rows of other
# sentences of about the same length have the same shape.
SENTENCE_BUCKET = 2


@dataclasses.dataclass(frozen=True)
class Query:
    """A head and the slots of the row that its images come from, in the order of `head.images`.

    Slot names are the caller's: the same head may be asked about "frame0", "frame1", ... in one
    row.
    """

    head: Head
    slots: tuple[str, ...]

    def __post_init__(self):
        if len(self.slots) != len(self.head.images):
            raise ValueError(
                f"head {self.head.name!r} shows {self.head.images}, got slots {self.slots}"
            )


@flax.struct.dataclass
class Tables:
    """What the network needs to run a layout: S sentences, N tokens a row, R places to read.

    tokens: int32 [S, N]. valid: bool [S, N], False for padding. positions: int32 [3, S, N].
    attention: bool [N, N], True where the row's token may see the column's. slot: int32 [N], which
    image the token is part of, -1 for text. offset: int32 [N], which of the image's tokens. reads:
    int32 [R].
    """

    tokens: Any
    valid: Any
    positions: Any
    attention: Any
    slot: Any
    offset: Any
    reads: Any


@dataclasses.dataclass(frozen=True, eq=False)
class AnswerTable:
    """Where each of A answers is read: the log-probability of an answer is the sum over its tokens.

    read: int32 [A, L], which of the row's reads predicts the l-th token. token: int32 [A, L], its
      id.
    used: bool [A, L], False behind shorter answers.
    """

    read: np.ndarray
    token: np.ndarray
    used: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """A row's shape: its queries, the slot names in the order of `Tables.slot`, tables, an answer
    table a query."""

    queries: tuple[Query, ...]
    slots: tuple[str, ...]
    tables: Tables
    answers: tuple[AnswerTable, ...]

    @property
    def length(self) -> int:
        """Tokens in a row."""
        return self.tables.tokens.shape[1]


@dataclasses.dataclass(frozen=True, eq=False)
class _Column:
    """One token of a path, for every sentence: ids [S] and whether it is real, or a part of an
    image."""

    ids: np.ndarray
    real: np.ndarray
    slot: str | None = None
    offset: int = 0

    @property
    def key(self):
        return (self.slot, self.offset, self.ids.tobytes(), self.real.tobytes())


def build_layout(
    queries: Sequence[Query],
    sentences: Sequence[str],
    tokenizer: Tokenizer,
    config: Config,
    image_size: tuple[int, int],
    share: bool = True,
) -> Layout:
    """Merges `queries` into one row and lays it out for every sentence.

    Args:
      queries: what to ask in a row.
      sentences: the tasks that rows may be about; a row picks one by index.
      tokenizer, config: of the model.
      image_size: (height, width) of every image, pixels.
      share: False gives every query its own tokens within the row (for tests of the sharing).
    Raises:
      UserError: an empty sentence, one with special tokens in it, answers that cannot be told
        apart.
    """
    for sentence in sentences:
        check_sentence(sentence)
    grid = inputs.grid_of(config, *image_size)
    nodes: list[_Column] = []
    parents: list[int] = []
    positions: list[np.ndarray] = []
    children: dict[tuple, int] = {}
    slots = tuple(dict.fromkeys(s for q in queries for s in q.slots))
    answers = []
    reads: dict[int, int] = {}
    for number, query in enumerate(queries):
        columns, candidates = _path(query, sentences, tokenizer, config, grid)
        # All candidates behind the scaffold: the inner tokens of each (its last one is only
        # predicted).
        table_read, table_token = [], []
        for candidate in candidates:
            full = columns + [_same_for_all(t, len(sentences)) for t in candidate[:-1]]
            where = _positions(full, config, grid)
            at, walked = -1, []
            for column, place in zip(full, where, strict=True):
                key = (None if share else number, at, column.key)
                if key not in children:
                    children[key] = len(nodes)
                    nodes.append(column)
                    parents.append(at)
                    positions.append(place)
                at = children[key]
                walked.append(at)
            places = walked[len(columns) - 1 :]
            table_read.append([reads.setdefault(p, len(reads)) for p in places])
            table_token.append(candidate)
        answers.append(_answer_table(table_read, table_token))
    count = len(nodes)
    attention = np.zeros((count, count), bool)
    for i, parent in enumerate(parents):
        if parent >= 0:
            attention[i] = attention[parent]
        attention[i, i] = True
    tables = Tables(
        tokens=np.stack([n.ids for n in nodes], 1),
        valid=np.stack([n.real for n in nodes], 1),
        positions=np.stack(positions, 2),
        attention=attention,
        slot=np.array([-1 if n.slot is None else slots.index(n.slot) for n in nodes], np.int32),
        offset=np.array([n.offset for n in nodes], np.int32),
        reads=np.array(list(reads), np.int32),
    )
    return Layout(tuple(queries), slots, tables, tuple(answers))


def check_sentence(sentence: str) -> None:
    """UserError unless `sentence` is some text without special tokens."""
    if not isinstance(sentence, str) or not sentence.strip():
        raise UserError("the task is empty: say in a sentence what the robot is to do")
    if "<|" in sentence:
        raise UserError(f"the task holds a special token: {sentence!r}")


def _same_for_all(token: int, sentences: int) -> _Column:
    return _Column(np.full(sentences, token, np.int32), np.ones(sentences, bool))


def _path(query, sentences, tokenizer, config, grid) -> tuple[list[_Column], list[list[int]]]:
    """The columns up to and including the scaffold, and the tokens of each answer behind it."""
    head = query.head
    merge = config.vision_config.spatial_merge_size
    count = grid[1] * grid[2] // merge**2
    start, end, pad = (tokenizer.token_id(t) for t in (VISION_START, VISION_END, IMAGE_PAD))
    columns: list[_Column] = []
    run: list[str | None] = []  # text, with None where the sentence goes
    slots = iter(query.slots)
    pieces = head.pieces
    for i, (kind, text) in enumerate(pieces):
        if kind == "text" and None in run and IM_END in text:
            # No merge crosses a special token, so the sentence's turn can end here: what follows it
            # is the same for all sentences, and heads that differ behind it share the sentence.
            before, mark, after = text.partition(IM_END)
            columns += _text_columns([*run, before, mark], sentences, tokenizer)
            run = [after]
        elif kind == "text":
            run.append(text)
        elif kind == "task":
            run.append(None)
        elif kind == "image":
            columns += _text_columns(run, sentences, tokenizer)
            run = []
            slot = next(slots)
            columns.append(_same_for_all(start, len(sentences)))
            ids, real = np.full(len(sentences), pad, np.int32), np.ones(len(sentences), bool)
            columns += [_Column(ids, real, slot, m) for m in range(count)]
            columns.append(_same_for_all(end, len(sentences)))
        else:
            if any(k != "text" for k, _ in pieces[i + 1 :]):
                raise UserError(f"head {head.name!r}: only text may follow its <answer>")
            closing = "".join(t for _, t in pieces[i + 1 :])
            forced, candidates = _answers(head, run, closing, sentences, tokenizer)
            return columns + _pad(forced, None in run), candidates
    raise AssertionError("a head has an <answer>")


def _fill(run: Sequence[str | None], sentence: str) -> str:
    return "".join(sentence if part is None else part for part in run)


def _text_columns(run, sentences, tokenizer) -> list[_Column]:
    if not run:
        return []
    if None not in run:
        rows = [tokenizer.encode(_fill(run, ""))[0]] * len(sentences)
    else:
        rows = [tokenizer.encode(_fill(run, s))[0] for s in sentences]
    return _pad(rows, None in run)


def _pad(rows: Sequence[Sequence[int]], bucket: bool) -> list[_Column]:
    """Columns of rows of different length. Padding stands in front, so that what follows is in one
    place."""
    width = max(map(len, rows))
    if bucket:
        width = -(-width // SENTENCE_BUCKET) * SENTENCE_BUCKET
    ids, real = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        if row:
            ids[i, width - len(row) :] = row
            real[i, width - len(row) :] = True
    return [_Column(ids[:, j].copy(), real[:, j].copy()) for j in range(width)]


def _answers(head, run, closing, sentences, tokenizer) -> tuple[list[list[int]], list[list[int]]]:
    """Forced tokens for each sentence, and for each answer its tokens behind them."""
    forced_rows, found = [], None
    for sentence in sentences if None in run else sentences[:1]:
        try:
            forced, tails = answer_tokens(tokenizer, _fill(run, sentence), head.answers, closing)
        except UserError as error:
            raise UserError(f"head {head.name!r}: {error}") from error
        if found is not None and tails != found:
            raise UserError(
                f"head {head.name!r}: its answers must not depend on the sentence before them"
            )
        found = tails
        forced_rows.append(forced)
    if None not in run:
        forced_rows *= len(sentences)
    return forced_rows, found


def answer_tokens(
    tokenizer: Tokenizer, before: str, answers: Sequence[str], closing: str
) -> tuple[list[int], list[list[int]]]:
    """Tokens of `before` with what all answers begin with, and for each answer its tokens then.

    Answers are tokenised where they stand, between scaffold and closing text, because a merge
    across the border would give other tokens than the model would see. UserError if the tokens do
    not tell the answers apart.
    """
    rows = [_tokens_up_to(tokenizer, before + a, closing, 0) for a in answers]
    if _one_begins_another(rows):  # then what follows the answer tells where it ends
        rows = [_tokens_up_to(tokenizer, before + a, closing, 1) for a in answers]
    shared = 0
    while all(len(r) > shared for r in rows) and len({r[shared] for r in rows}) == 1:
        shared += 1
    tails = [r[shared:] for r in rows]
    if shared == 0 or not all(tails) or _one_begins_another(tails):
        raise UserError("this tokenizer cannot tell its answers apart")
    return rows[0][:shared], tails


def _tokens_up_to(tokenizer: Tokenizer, text: str, closing: str, more: int) -> list[int]:
    """Tokens of `text` where `closing` follows it, and `more` tokens of what follows."""
    ids, starts = tokenizer.encode(text + closing)
    return ids[: sum(s < len(text) for s in starts) + more]


def _one_begins_another(rows: Sequence[Sequence[int]]) -> bool:
    return any(i != j and b[: len(a)] == a for i, a in enumerate(rows) for j, b in enumerate(rows))


def _positions(columns: Sequence[_Column], config: Config, grid) -> list[np.ndarray]:
    """Rotary positions int32 [3, S] of each column, counted along the path without its padding."""
    ids = np.stack([c.ids for c in columns], 1)
    real = np.stack([c.real for c in columns], 1)
    images = sum(c.slot is not None and c.offset == 0 for c in columns)
    out = np.zeros((3, *ids.shape), np.int32)
    seen: dict[bytes, np.ndarray] = {}  # positions depend on where padding stands, not on the words
    for s in range(len(ids)):
        key = real[s].tobytes()
        if key not in seen:
            seen[key] = inputs.rope_positions(ids[s][real[s]], [grid] * images, config)[0]
        out[:, s, real[s]] = seen[key]
    return [out[:, :, j] for j in range(out.shape[2])]


def _answer_table(reads: list[list[int]], tokens: list[list[int]]) -> AnswerTable:
    width = max(map(len, tokens))
    shape = (len(tokens), width)
    table = AnswerTable(np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, bool))
    for i, (r, t) in enumerate(zip(reads, tokens, strict=True)):
        table.read[i, : len(r)] = r
        table.token[i, : len(t)] = t
        table.used[i, : len(t)] = True
    return table
