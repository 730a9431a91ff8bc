"""Token paths with pictures in them, merged into rows that share what they have in common.

A path is one question about one window of a video. Windows of one video begin alike (the same text,
the same first pictures), so the paths of a row share all tokens up to where they part, as in
`rewards.layout`: the mask lets a token see its own ancestors only, and each path gets the result
of a row of its own. Here paths are merged anew for each call, because timestamps are part of the
text. Everything is numpy on the host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from lrm_jax.qwen3_vl.batching import bucket
from lrm_jax.qwen3_vl.config import Config
from lrm_jax.qwen3_vl.inputs import rope_positions
from lrm_jax.rewards.tokenizer import Tokenizer

# Tokens of a merged row: enough to share, few enough that the mask [N, N] stays cheap. Where paths
# are longer, a row has room for two: a video's windows then share about as much.
ROW_TOKENS = 1024


@dataclasses.dataclass(frozen=True)
class Picture:
    """One image block: which encoded picture, and the token that stands at its places."""

    number: int
    token: int


@dataclasses.dataclass(frozen=True)
class Path:
    """Tokens int32 [L]; picture int32 [L], the number of the encoded picture that a token is part
    of, or -1; offset int32 [L], which of its tokens; pictures, how many there are in it.

    reads: places whose states are wanted. wanted: for each candidate answer the (place, token)
    pairs whose log-probabilities make it up.
    """

    tokens: np.ndarray
    picture: np.ndarray
    offset: np.ndarray
    pictures: int
    reads: tuple[int, ...] = ()
    wanted: tuple[tuple[tuple[int, int], ...], ...] = ()


class Writer:
    """Turns texts and pictures into tokens; `grid` is that of every picture."""

    def __init__(self, tokenizer: Tokenizer, config: Config, grid: tuple[int, int, int]):
        self.tokenizer, self.config = tokenizer, config
        self.per_picture = grid[1] * grid[2] // config.vision_config.merge_unit
        self._texts: dict[str, list[int]] = {}

    def text(self, text: str) -> list[int]:
        """Token ids."""
        if text not in self._texts:
            self._texts[text] = self.tokenizer.encode(text)[0]
        return self._texts[text]

    def path(self, parts: Sequence[str | Picture], ending: Sequence[int] = ()) -> Path:
        """One path: neighbouring texts are joined before they are cut into tokens; `ending` are
        token ids behind them."""
        tokens: list[int] = []
        picture: list[int] = []
        offset: list[int] = []
        count, run = 0, ""

        def plain(ids):
            tokens.extend(ids)
            picture.extend([-1] * len(ids))
            offset.extend([0] * len(ids))

        for part in parts:
            if isinstance(part, str):
                run += part
                continue
            plain([*self.text(run), self.config.vision_start_token_id])
            run, count = "", count + 1
            tokens.extend([part.token] * self.per_picture)
            picture.extend([part.number] * self.per_picture)
            offset.extend(range(self.per_picture))
            plain([self.config.vision_end_token_id])
        plain([*self.text(run), *ending])
        return Path(*(np.array(x, np.int32) for x in (tokens, picture, offset)), count)


@dataclasses.dataclass
class Rows:
    """B rows of N tokens, R places to read, C candidates of at most W tokens; numpy arrays.

    tokens: int32 [B, N]. positions: int32 [3, B, N]. mask: bool [B, N, N], True where the row's
    token may see the column's. picture, offset: int32 [B, N]. reads: int32 [B, R]. read_of, token:
    int32 [B, C, W], which of the reads predicts the token; used: bool [B, C, W].
    places: for each path in order its row, and the range of its reads and of its candidates there.
    """

    tokens: np.ndarray
    positions: np.ndarray
    mask: np.ndarray
    picture: np.ndarray
    offset: np.ndarray
    reads: np.ndarray
    read_of: np.ndarray
    token: np.ndarray
    used: np.ndarray
    places: list[tuple[int, slice, slice]]


class _Tree:
    """The tokens of one row."""

    def __init__(self):
        self.children: dict[tuple, int] = {}
        self.parents: list[int] = []
        self.nodes: list[tuple[int, int, int]] = []
        self.positions: list[np.ndarray] = []
        self.reads: list[int] = []  # one for each wanted place of each path, shared where equal
        self.index: dict[int, int] = {}
        self.candidates: list[list[tuple[int, int]]] = []

    def shared(self, keys: Sequence[tuple]) -> int:
        """How many of the tokens are there already."""
        at = -1
        for count, key in enumerate(keys):
            found = self.children.get((at, key))
            if found is None:
                return count
            at = found
        return len(keys)

    def add(self, path: Path, keys: Sequence[tuple], positions: np.ndarray) -> tuple[slice, slice]:
        at, walked = -1, []
        for i, key in enumerate(keys):
            if (at, key) not in self.children:
                self.children[at, key] = len(self.nodes)
                self.parents.append(at)
                self.nodes.append(key)
                self.positions.append(positions[:, i])
            at = self.children[at, key]
            walked.append(at)
        first = len(self.reads), len(self.candidates)
        self.reads += [walked[place] for place in path.reads]
        for answer in path.wanted:
            pairs = []
            for place, token in answer:
                node = walked[place]
                if node not in self.index:
                    self.index[node] = len(self.reads)
                    self.reads.append(node)
                pairs.append((self.index[node], token))
            self.candidates.append(pairs)
        return slice(first[0], first[0] + len(path.reads)), slice(first[1], len(self.candidates))


def merge(
    paths: Sequence[Path],
    config: Config,
    grid: tuple[int, int, int],
    row_tokens: int | None = None,
) -> Rows:
    """Packs paths, in order, into rows of at most `row_tokens` tokens (a longer path has a row of
    its own). Shapes are rounded up, so that few programs serve all calls."""
    row_tokens = row_tokens or max(ROW_TOKENS, 2 * max(len(p.tokens) for p in paths))
    trees: list[_Tree] = []
    places: list[tuple[int, slice, slice]] = []
    for path in paths:
        keys = list(
            zip(path.tokens.tolist(), path.picture.tolist(), path.offset.tolist(), strict=True)
        )
        if not trees or len(trees[-1].nodes) + len(keys) - trees[-1].shared(keys) > row_tokens:
            trees.append(_Tree())
        positions = rope_positions(path.tokens, [grid] * path.pictures, config)[0]
        places.append((len(trees) - 1, *trees[-1].add(path, keys, positions)))
    return _padded(trees, places)


def _padded(trees: list[_Tree], places: list[tuple[int, slice, slice]]) -> Rows:
    count, length = len(trees), bucket(max(len(t.nodes) for t in trees), 64)
    reads = bucket(max(len(t.reads) for t in trees))
    wide = max((len(c) for t in trees for c in t.candidates), default=0)
    many = bucket(max(len(t.candidates) for t in trees)) if wide else 0
    shape = (count, length)
    rows = Rows(
        tokens=np.zeros(shape, np.int32),
        positions=np.zeros((3, *shape), np.int32),
        mask=np.zeros((count, length, length), bool),
        picture=np.full(shape, -1, np.int32),
        offset=np.zeros(shape, np.int32),
        reads=np.zeros((count, reads), np.int32),
        read_of=np.zeros((count, many, wide), np.int32),
        token=np.zeros((count, many, wide), np.int32),
        used=np.zeros((count, many, wide), bool),
        places=places,
    )
    for b, tree in enumerate(trees):
        size = len(tree.nodes)
        rows.tokens[b, :size], rows.picture[b, :size], rows.offset[b, :size] = np.array(
            tree.nodes, np.int32
        ).T
        rows.positions[:, b, :size] = np.stack(tree.positions, 1)
        rows.reads[b, : len(tree.reads)] = tree.reads
        for i, parent in enumerate(tree.parents):
            if parent >= 0:
                rows.mask[b, i] = rows.mask[b, parent]
            rows.mask[b, i, i] = True
        rows.mask[b, range(size, length), range(size, length)] = True  # padding sees itself
        for c, answer in enumerate(tree.candidates):
            for w, (read, token) in enumerate(answer):
                rows.read_of[b, c, w], rows.token[b, c, w] = read, token
                rows.used[b, c, w] = True
    return rows


def chunks(count: int, size: int) -> Iterator[np.ndarray]:
    """Indices 0 ... count - 1 in groups of one padded size, at most about `size`; the last index is
    repeated."""
    each = bucket(min(max(size, 1), count))
    for at in range(0, count, each):
        yield np.minimum(np.arange(at, at + each), count - 1)
