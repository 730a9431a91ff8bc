"""Which frames and questions share a row: the plan that the engine scores by.

A row judges F frames of one environment, one interval apart, and knows the frame before them:
frame0, then the judged frame1 ... frameF. Contrastive compares each judged frame with the one
before it in both orders, so every frame but the row's ends stands first in two comparisons, and
where the prompts allow (`rewards/layout.py` merges equal beginnings) it is the same tokens that
progress and completion look at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lrm_jax.qwen3_vl import Config
from lrm_jax.rewards.heads import Head
from lrm_jax.rewards.layout import Layout, Query, build_layout
from lrm_jax.rewards.tokenizer import Tokenizer
from lrm_jax.run.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The rows of one `RewardEngine.score`.

    names: the heads. layout: a row that asks all of them about `frames_per_row` frames. compares:
    whether one of them shows the previous frame.
    """

    names: tuple[str, ...]
    layout: Layout
    frames_per_row: int
    compares: bool

    @property
    def tables(self) -> Any:
        """The arrays that the compiled program takes."""
        return self.layout.tables


def make_plan(
    heads: Sequence[Head],
    frames_per_row: int,
    sentences: Sequence[str],
    tokenizer: Tokenizer,
    config: Config,
    image_size: tuple[int, int],
    share: bool = True,
) -> Plan:
    """Lays out a row of `heads`; `share=False` gives every question tokens of its own."""
    queries = []
    for j in range(1, frames_per_row + 1):
        shown = {"previous": f"frame{j - 1}", "current": f"frame{j}"}
        shown |= {"initial": "initial", "goal": "goal"}
        swapped = shown | {"previous": shown["current"], "current": shown["previous"]}
        for head in heads:
            queries.append(Query(head, tuple(shown[i] for i in head.images)))
            if "previous" in head.images:
                queries.append(Query(head, tuple(swapped[i] for i in head.images)))
    layout = build_layout(queries, sentences, tokenizer, config, image_size, share)
    compares = any("previous" in h.images for h in heads)
    return Plan(tuple(h.name for h in heads), layout, frames_per_row, compares)


def shares_prefix(heads: Sequence[Head]) -> bool:
    """Whether the judged frames of a row have tokens in common.

    Not where every prompt opens with the judged image itself: there the frames of a longer row
    would only pay for looking past each other.
    """
    openings = {next(p for p in h.pieces if p[0] != "text") for h in heads}
    return not openings <= {("image", "current"), ("image", "previous")}


def asked_heads(
    names: Sequence[str] | None, known: Mapping[str, Head], interval: int
) -> tuple[str, ...]:
    """The heads to ask, all that are `known` by default; UserError for an unknown one, for none,
    and for an interval below 1."""
    names = tuple(known) if names is None else tuple(names)
    for name in names:
        if name not in known:
            raise UserError(
                f"heads: {name!r} is not one of this model's: {did_you_mean(name, known)}"
            )
    if not names:
        raise UserError("heads: name at least one")
    if interval < 1:
        raise UserError(f"interval is {interval}: it counts frames and must be at least 1")
    return names


def checked_goal(goal: Any, heads: Sequence[Head], shape: tuple[int, ...]) -> Any:
    """`goal`, uint8 of `shape` [N, H, W, 3], or None where none of `heads` shows it; else
    UserError."""
    shows = [head.name for head in heads if "goal" in head.images]
    if not shows:
        return None
    if goal is None:
        raise UserError(
            f"head {shows[0]!r} shows <image:goal>: give goal, a frame of the finished task"
        )
    if goal.shape != shape or goal.dtype != jnp.uint8:
        raise UserError(
            f"goal is {goal.dtype}{list(goal.shape)}: need uint8 {list(shape)}, one for each "
            "environment"
        )
    return goal


@dataclasses.dataclass(frozen=True)
class RowTimes:
    """Index arithmetic between frames [T] and rows: static numbers, so nothing recompiles.

    time: T frames. interval: between the frames of a row. per_row: F judged frames in each.
    Row (c, i) judges the frames (c F + j) interval + i, j = 0 ... F - 1.
    """

    time: int
    interval: int
    per_row: int

    @property
    def chunks(self) -> int:
        """Rows for each place within an interval."""
        return -(-self.time // (self.interval * self.per_row))

    @property
    def rows(self) -> int:
        """Rows for one environment."""
        return self.chunks * self.interval

    def frames(self) -> jax.Array:
        """int32 [rows, 1 + F]: the times of frame0 ... frameF, kept within 0 ... T - 1."""
        c, i, j = jnp.meshgrid(
            jnp.arange(self.chunks), jnp.arange(self.interval), jnp.arange(1 + self.per_row),
            indexing="ij",
        )  # fmt: skip
        at = (c * self.per_row + j - 1) * self.interval + i
        return jnp.clip(at, 0, self.time - 1).reshape(self.rows, 1 + self.per_row)

    def by_time(self, values: jax.Array) -> jax.Array:
        """Values [N, rows, F, ...] of judged frames in the order of time: [T, N, ...]."""
        count, rest = values.shape[0], values.shape[3:]
        values = values.reshape(count, self.chunks, self.interval, self.per_row, *rest)
        values = jnp.swapaxes(values, 2, 3).reshape(count, -1, *rest)
        return jnp.swapaxes(values[:, : self.time], 0, 1)
