"""The reward engine: camera frames of many environments in, scores out, all of it on the device.

Each frame goes through the vision tower once. It then serves as the current image of progress and
completion, as the current and as the previous image of contrastive, and the first frame of an
episode serves all of its rows. Rows are built from index arithmetic on the device and a token table
made on the host once for all sentences, so new frames and new tasks among those sentences never
recompile. Work is cut into micro-batches that keep within a memory budget.

Cost for each judged frame, in tokens of the decoder (`RewardEngine.cost` counts it for a model):
with M tokens an image, a sentence of s and questions of q tokens, progress + completion take
M + s + q; contrastive in both orders takes about 4 M + 2 (s + q). Heads whose prompts begin with
what is the same for a whole episode (the sentence, the initial image) share a row among F frames.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lrm_jax.qwen3_vl import Qwen3VL, VisionFeatures, VisionInputs, fixed_grid, grid_of, patchify
from lrm_jax.rewards import adapters as adapters_file
from lrm_jax.rewards import cost, scoring
from lrm_jax.rewards.heads import Head, by_name
from lrm_jax.rewards.layout import Layout, Query, build_layout
from lrm_jax.rewards.scores import Scores, tri_of
from lrm_jax.rewards.tokenizer import Tokenizer
from lrm_jax.run.errors import UserError, did_you_mean

HEADS = ("progress", "completion", "contrastive")
# Large enough for good matrix products, small enough that a micro-batch of the nano model stays in
# cache.
MEMORY_BYTES = 64 << 20
PLANS_KEPT = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The rows of one `score`: `still` asks heads about single frames, `pair` about frames and
    earlier ones."""

    still: Layout | None
    pair: Layout | None
    frames_per_row: int

    @property
    def tables(self) -> dict[str, Any]:
        """The arrays that the compiled program takes."""
        layouts = {"still": self.still, "pair": self.pair}
        return {k: v.tables for k, v in layouts.items() if v is not None}


class RewardEngine:
    """Scores rollouts with a reward model.

    model: the network. heads: any of progress, completion and contrastive. image_size: (height,
    width) of frames, pixels. sentences: the tasks that `task_ids` number. frames_per_row: how many
    frames of an episode share one prefix in a row, where they have one. memory_bytes: budget for a
    micro-batch's activations and, apart from it, for the features of one group of environments.
    adapters: for heads that have one, which of variables["adapters"] (from 0) they speak with.
    """

    def __init__(
        self,
        model: Qwen3VL,
        heads: Sequence[Head],
        tokenizer: Tokenizer,
        image_size: tuple[int, int],
        sentences: Sequence[str],
        *,
        frames_per_row: int = 4,
        memory_bytes: int = MEMORY_BYTES,
        adapters: Mapping[str, int] | None = None,
    ):
        self.model, self.tokenizer, self.sentences = model, tokenizer, tuple(sentences)
        self.heads, self.adapters = by_name(heads), dict(adapters or {})
        for name in self.heads:
            if name not in HEADS:
                raise UserError(
                    f"the reward engine has no use for head {name!r}: {did_you_mean(name, HEADS)}"
                )
        self.image_size = tuple(image_size)
        try:
            _, rows, columns = grid_of(model.config, *self.image_size)
        except ValueError as error:
            raise UserError(f"camera size: {error}") from error
        self.patches = rows * columns
        self.grid = fixed_grid(model.config, *self.image_size)
        self.frames_per_row, self.memory_bytes = frames_per_row, memory_bytes
        self._plans: dict[Any, Plan] = {}
        # Any plan of these heads: all have the same queries and answers.
        self._shapes: dict[Any, Plan] = {}
        # A method of its own for each engine, so that the count of compilations is this engine's.
        self._score = jax.jit(
            functools.partial(self._score_program), static_argnames=("parts", "interval")
        )

    # -- public --------------------------------------------------------------------------------

    def score(
        self,
        variables: Any,
        frames: jax.Array,
        task_ids: jax.Array,
        *,
        heads: Sequence[str] | None = None,
        interval: int = 1,
        first: jax.Array | None = None,
        sentences: Sequence[str] | None = None,
    ) -> Scores:
        """Scores every frame. May be called inside a jitted function.

        Args:
          variables: the parameters, or {"params": ..., "lora": ...}; with adapters {"params": ...,
            "adapters": (adapter tree, ...)}.
          frames: uint8 [T, N, H, W, 3], N environments over time.
          task_ids: int32 [N], index into the sentences.
          heads: which to ask; all by default.
          interval: contrastive compares with the frame this many frames earlier.
          first: bool [T, N], frames that begin an episode, where episodes end within the rollout;
            frame 0 always begins one. Costs more: frames then no longer share their prefix.
          sentences: in place of the engine's own.
        Returns:
          Scores of float32 [T, N] on the device.
        Raises:
          UserError: frames of another size or type, an unknown head, an interval below 1.
        """
        names = tuple(self.heads) if heads is None else tuple(heads)
        for name in names:
            if name not in self.heads:
                raise UserError(
                    f"heads: {name!r} is not one of this model's: {did_you_mean(name, self.heads)}"
                )
        if not names:
            raise UserError("heads: name at least one")
        if interval < 1:
            raise UserError(f"interval is {interval}: it counts frames and must be at least 1")
        if (
            frames.ndim != 5
            or frames.shape[2:] != (*self.image_size, 3)
            or frames.dtype != jnp.uint8
        ):
            raise UserError(
                f"frames are {frames.dtype}{list(frames.shape)}: need uint8 [T, N, "
                f"{self.image_size[0]}, {self.image_size[1]}, 3]"
            )
        if 0 in frames.shape[:2]:
            raise UserError("there are no frames to score")
        if not (isinstance(variables, dict) and "params" in variables):
            variables = {"params": variables}
        groups = adapters_file.groups(names, self.adapters)
        per_row = 1 if first is not None else self.frames_per_row
        plans = [self.plan(group, per_row, sentences) for group in groups.values()]
        parts = zip(groups.items(), plans, strict=True)
        return self._score(
            variables,
            [plan.tables for plan in plans],
            frames,
            task_ids,
            first,
            parts=tuple((number, group, plan.frames_per_row) for (number, group), plan in parts),
            interval=interval,
        )

    @property
    def compilations(self) -> int:
        """How many programs `score` has compiled so far."""
        return self._score._cache_size()

    def plan(
        self, names: tuple[str, ...], frames_per_row: int, sentences: Sequence[str] | None = None
    ) -> Plan:
        """The rows for heads `names`, made once for each set of sentences."""
        sentences = self.sentences if sentences is None else tuple(sentences)
        key = (names, frames_per_row, sentences)
        if key not in self._plans:
            if len(self._plans) >= PLANS_KEPT:  # users' sentences come and go
                del self._plans[next(iter(self._plans))]
            plan = self._make_plan(names, self._rows_of(names, frames_per_row), sentences)
            self._plans[key] = plan
            self._shapes.setdefault((names, plan.frames_per_row), plan)
        return self._plans[key]

    def cost(self, frames: int, heads: Sequence[str] | None = None) -> dict[str, float]:
        """Tokens and FLOPs for each of `frames` frames of an episode, all heads together."""
        config = self.model.config
        tokens, flops = 0.0, float(cost.image_flops(config, self.patches))
        for names in adapters_file.groups(tuple(heads or self.heads), self.adapters).values():
            plan = self.plan(names, self.frames_per_row)
            for layout, rows in (
                (plan.still, -(-frames // plan.frames_per_row) / frames),
                (plan.pair, 1.0),
            ):
                if layout is not None:
                    tokens += rows * layout.length
                    flops += rows * cost.row_flops(config, layout.length, len(layout.tables.reads))
        return {"tokens": tokens, "flops": flops}

    # -- host ----------------------------------------------------------------------------------

    def _rows_of(self, names: tuple[str, ...], frames_per_row: int) -> int:
        """`frames_per_row`, or 1 where frames share no prefix: they would only attend to each
        other."""
        still = [self.heads[n] for n in names if "previous" not in self.heads[n].images]
        openings = {next(p for p in h.pieces if p[0] != "text") for h in still}
        return 1 if openings == {("image", "current")} else frames_per_row

    def _make_plan(self, names, frames_per_row, sentences) -> Plan:
        build = functools.partial(
            build_layout,
            sentences=sentences,
            tokenizer=self.tokenizer,
            config=self.model.config,
            image_size=self.image_size,
        )
        asked = [self.heads[n] for n in names]
        still = [h for h in asked if "previous" not in h.images]
        pair = [h for h in asked if "previous" in h.images]
        swapped = {"previous": "current", "current": "previous", "initial": "initial"}
        return Plan(
            still=build(
                [
                    Query(h, tuple(i if i == "initial" else f"{i}{j}" for i in h.images))
                    for j in range(frames_per_row)
                    for h in still
                ]
            )
            if still
            else None,
            pair=build(
                [Query(h, s) for h in pair for s in (h.images, tuple(swapped[i] for i in h.images))]
            )
            if pair
            else None,
            frames_per_row=frames_per_row,
        )

    # -- device --------------------------------------------------------------------------------

    def _score_program(self, variables, tables, frames, task_ids, first, *, parts, interval):
        """Cuts the environments into groups whose features fit the budget, and scores group by
        group."""
        plans = {number: self._shapes[names, per_row] for number, names, per_row in parts}
        run = functools.partial(self._score_group, variables, tables, plans, interval)
        frames, task_ids = jnp.asarray(frames), jnp.asarray(task_ids, jnp.int32)
        time, count = frames.shape[:2]
        size = cost.feature_bytes(self.model.config, self.patches, self._itemsize) * time
        size *= len({adapters_file.eyes(variables, number) for number in plans})
        groups = cost.micro_batches(count, self.memory_bytes // size)
        if groups.shape[0] == 1:
            return run(frames, task_ids, first)

        def one(index):
            return run(
                frames[:, index], task_ids[index], None if first is None else first[:, index]
            )

        def join(x):  # [groups, T, size, ...] to [T, N, ...]
            x = jnp.moveaxis(x, 0, 1)
            return x.reshape(time, -1, *x.shape[3:])[:, :count]

        return jax.tree.map(join, jax.lax.map(one, groups))

    def _score_group(self, variables, tables, plans, interval, frames, task_ids, first) -> Scores:
        time, count = frames.shape[:2]
        answered: dict[str, scoring.Distribution] = {}
        seen: dict[int, VisionFeatures] = {}  # each frame once for each vision tower
        for (number, plan), own_tables in zip(plans.items(), tables, strict=True):
            own = adapters_file.variables_for(variables, number)
            eyes = adapters_file.eyes(variables, number)
            if eyes not in seen:
                seen[eyes] = self._encode(own, frames.reshape(time * count, *frames.shape[2:]))
            answered |= self._answers(
                own, own_tables, plan, interval, seen[eyes], (time, count), task_ids, first
            )
        return self._assemble(answered, (time, count))

    def _answers(
        self, variables, tables, plan, interval, features, shape, task_ids, first
    ) -> dict[str, scoring.Distribution]:
        """What one adapter's heads answer about every frame, [T, N, A] each."""
        time, count = shape
        at = jnp.broadcast_to(jnp.arange(time)[:, None], (time, count))
        start = (
            jnp.zeros_like(at) if first is None else jax.lax.cummax(jnp.where(first, at, 0), axis=0)
        )
        answered = {}
        if plan.still is not None:
            # Row (n, c) of environment n holds frames c F ... c F + F - 1; the last row repeats the
            # last frame.
            per_row = plan.frames_per_row
            rows = -(-time // per_row)
            current = jnp.minimum(jnp.arange(rows * per_row), time - 1)
            slots = {
                f"current{j}": current.reshape(rows, per_row)[None, :, j] * count
                + jnp.arange(count)[:, None]
                for j in range(per_row)
            }
            begin = start[current.reshape(rows, per_row)[:, 0]].T  # [N, rows]
            slots["initial"] = begin * count + jnp.arange(count)[:, None]
            sentence = jnp.broadcast_to(task_ids[:, None], (count, rows))
            read = self._ask(variables, tables["still"], plan.still, features, sentence, slots)
            for name, values in read.items():  # [N, rows, F, A] to [T, N, A]
                values = values.reshape(count, rows * per_row, -1)[:, :time].swapaxes(0, 1)
                answered[name] = scoring.normalise(values)
        if plan.pair is not None and interval >= time:
            for head in {q.head.name: q.head for q in plan.pair.queries}.values():
                nothing = jnp.full((time, count, len(head.answers)), jnp.nan)
                answered[head.name] = scoring.Distribution(nothing, jnp.zeros((time, count), bool))
        elif plan.pair is not None:
            later = at[interval:]
            slots = {"current": later, "previous": later - interval, "initial": start[interval:]}
            slots = {k: v * count + jnp.arange(count) for k, v in slots.items()}
            sentence = jnp.broadcast_to(task_ids, later.shape)
            read = self._ask(variables, tables["pair"], plan.pair, features, sentence, slots)
            for name, values in read.items():  # [T - interval, N, 2, A]
                both = scoring.swap_average(
                    scoring.normalise(values[:, :, 0]), scoring.normalise(values[:, :, 1])
                )
                both = both.replace(valid=both.valid & (later - interval >= start[interval:]))
                answered[name] = scoring.lead_in(both, interval)
        return answered

    @property
    def _itemsize(self) -> int:
        return jnp.dtype(self.model.dtype).itemsize

    def _encode(self, variables, frames: jax.Array) -> VisionFeatures:
        """Features of frames uint8 [F, H, W, 3], a micro-batch at a time."""
        grid = jax.tree.map(jnp.asarray, self.grid)

        def one(index):
            patches = patchify(frames[index], self.model.config)
            return self.model.apply(variables, VisionInputs(patches, grid), method="encode")

        size = cost.image_bytes(self.model.config, self.patches, self._itemsize)
        chunks = cost.micro_batches(len(frames), self.memory_bytes // size)
        if chunks.shape[0] == 1:
            return one(chunks[0])
        done = jax.lax.map(one, chunks)
        embeds = done.embeds.reshape(-1, *done.embeds.shape[2:])
        deepstack = jnp.moveaxis(done.deepstack, 1, 0)
        return VisionFeatures(embeds, deepstack.reshape(len(deepstack), -1, *deepstack.shape[3:]))

    def _ask(
        self, variables, tables, layout: Layout, features, sentence, slots
    ) -> dict[str, jax.Array]:
        """Log-probabilities [*rows, queries of the head, A] for each head, rows shaped like
        `sentence`."""
        shape = sentence.shape
        frames = jnp.stack(
            [jnp.broadcast_to(slots[s], shape).reshape(-1) for s in layout.slots], -1
        )
        sentence = sentence.reshape(-1)

        def one(index):
            reads = scoring.read_log_probabilities(
                self.model, variables, tables, features, sentence[index], frames[index]
            )
            return [scoring.answer_log_probabilities(reads, table) for table in layout.answers]

        size = cost.row_bytes(
            self.model.config, len(tables.slot), len(tables.reads), self._itemsize
        )
        chunks = cost.micro_batches(len(sentence), self.memory_bytes // size)
        if chunks.shape[0] == 1:
            answers = one(chunks[0])
        else:
            answers = [a.reshape(-1, a.shape[-1]) for a in jax.lax.map(one, chunks)]
        found: dict[str, list[jax.Array]] = {}
        for query, answer in zip(layout.queries, answers, strict=True):
            found.setdefault(query.head.name, []).append(answer[: len(sentence)])
        return {k: jnp.stack(v, 1).reshape(*shape, len(v), -1) for k, v in found.items()}

    def _assemble(self, answered: dict[str, scoring.Distribution], shape) -> Scores:
        nothing = jnp.full(shape, jnp.nan)
        values, valid = {}, {}
        for name in HEADS:
            if name in answered:
                valid[name] = answered[name].valid
                value = answered[name].expectation(self.heads[name].values)
                values[name] = jnp.where(valid[name], value, jnp.nan)
            else:
                values[name], valid[name] = nothing, jnp.zeros(shape, bool)
        valid["tri"] = valid["progress"] & valid["completion"] & valid["contrastive"]
        if "progress" in answered:
            distribution, entropy = answered["progress"].probability, answered["progress"].entropy
        else:
            distribution, entropy = jnp.full((*shape, 11), jnp.nan), nothing
        tri = jnp.where(
            valid["tri"],
            tri_of(values["progress"], values["completion"], values["contrastive"]),
            jnp.nan,
        )
        return Scores(**values, tri=tri, valid=valid, distribution=distribution, entropy=entropy)
