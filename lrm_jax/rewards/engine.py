"""The reward engine: camera frames of many environments in, scores out, all of it on the device.

Each frame goes through the vision tower once. It then serves as the current image of progress and
completion, as the current and as the previous image of contrastive, and the first frame of an
episode serves all of its rows. Rows are built from index arithmetic on the device and a token table
made on the host once for all sentences, so new frames and new tasks among those sentences never
recompile. Work is cut into micro-batches that keep within a memory budget.

Cost for each judged frame, in tokens of the decoder (`RewardEngine.cost` counts it for a model):
with M tokens an image, a sentence of s and questions of q tokens, prompts that begin with the
judged image take 4 M + 4 s + q for all three heads, contrastive in both orders (`rewards/plan.py`
says which tokens are shared). Where prompts begin with what is the same for a whole episode (the
sentence, the questions, the initial image), F frames share a row.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lrm_jax.parallel import rows as over_rows
from lrm_jax.parallel.mesh import AXES, ROW_AXES
from lrm_jax.qwen3_vl import Qwen3VL, VisionFeatures, VisionInputs, fixed_grid, grid_of, patchify
from lrm_jax.rewards import adapters as adapters_file
from lrm_jax.rewards import cost, scoring
from lrm_jax.rewards.calibration import HeadCalibration
from lrm_jax.rewards.calibration import check as check_calibration
from lrm_jax.rewards.heads import Head, by_name
from lrm_jax.rewards.layout import Layout
from lrm_jax.rewards.plan import (
    Plan,
    RowTimes,
    asked_heads,
    checked_goal,
    make_plan,
    shares_prefix,
)
from lrm_jax.rewards.scores import Scores, tri_of
from lrm_jax.rewards.tokenizer import Tokenizer
from lrm_jax.run.errors import UserError, did_you_mean

HEADS = ("progress", "completion", "contrastive")
# Large enough for good matrix products, small enough that a micro-batch of the nano model stays in
# cache.
MEMORY_BYTES = 64 << 20
PLANS_KEPT = 64


class RewardEngine:
    """Scores rollouts with a reward model.

    model: the network. heads: any of progress, completion and contrastive. image_size: (height,
    width) of frames, pixels. sentences: the tasks that `task_ids` number. frames_per_row: how many
    frames of an episode share one prefix in a row, where they have one. memory_bytes: budget for a
    micro-batch's activations and, apart from it, for the features of one group of environments;
    where a mesh is set, of each of its shards.
    share: False gives every question tokens of its own (to measure what sharing is worth).
    adapters: for heads that have one, which of variables["adapters"] (from 0) they speak with.
    calibration: corrections of heads' answers, by head.
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
        share: bool = True,
        adapters: Mapping[str, int] | None = None,
        calibration: Mapping[str, HeadCalibration] | None = None,
    ):
        self.model, self.tokenizer, self.sentences = model, tokenizer, tuple(sentences)
        self.heads, self.adapters = by_name(heads), dict(adapters or {})
        for name in self.heads:
            if name not in HEADS:
                raise UserError(
                    f"the reward engine has no use for head {name!r}: {did_you_mean(name, HEADS)}"
                )
        self.calibration = dict(calibration or {})
        for name, correction in self.calibration.items():
            if name in self.heads:
                check_calibration(correction, self.heads[name])
        self.image_size = tuple(image_size)
        try:
            _, rows, columns = grid_of(model.config, *self.image_size)
        except ValueError as error:
            raise UserError(f"camera size: {error}") from error
        self.patches = rows * columns
        self.grid = fixed_grid(model.config, *self.image_size)
        self.frames_per_row, self.memory_bytes = frames_per_row, memory_bytes
        self.share = share
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
        goal: jax.Array | None = None,
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
          goal: uint8 [N, H, W, 3], each environment's task finished; for heads that show it.
        Returns:
          Scores of float32 [T, N] on the device.
        Raises:
          UserError: frames of another size or type, an unknown head, an interval below 1, a head
            that shows a goal without one.
        """
        names = asked_heads(heads, self.heads, interval)
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
        goal = checked_goal(
            goal, [self.heads[n] for n in names], (frames.shape[1], *self.image_size, 3)
        )
        if not (isinstance(variables, dict) and "params" in variables):
            variables = {"params": variables}
        parts = over_rows.shards(ROW_AXES)
        if frames.shape[1] % parts:
            raise UserError(
                f"{frames.shape[1]} environments do not divide into the {parts} parts that the "
                "mesh cuts rows into"
            )
        if interval >= len(frames):  # nothing has an earlier frame to be compared with
            names = tuple(n for n in names if "previous" not in self.heads[n].images)
        plans = {}
        for number, group in adapters_file.groups(names, self.adapters).items():
            per_row = self.frames_per_row
            if first is not None and any("initial" in self.heads[n].images for n in group):
                per_row = 1  # frames of a row share their episode's first frame
            plans[number] = self.plan(group, per_row, sentences)
        if not plans:
            return self._assemble({}, frames.shape[:2])
        return self._score(
            variables,
            [plan.tables for plan in plans.values()],
            frames,
            task_ids,
            first,
            goal,
            parts=tuple((k, plan.names, plan.frames_per_row) for k, plan in plans.items()),
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
            asked = [self.heads[n] for n in names]
            plan = make_plan(
                asked, frames_per_row if shares_prefix(asked) else 1, sentences, self.tokenizer,
                self.model.config, self.image_size, self.share,
            )  # fmt: skip
            self._plans[key] = plan
            self._shapes.setdefault((names, plan.frames_per_row), plan)
        return self._plans[key]

    def cost(self, frames: int, heads: Sequence[str] | None = None) -> dict[str, float]:
        """Tokens and FLOPs for each of `frames` frames of an episode, all heads together, with
        comparisons of neighbours."""
        config = self.model.config
        tokens, flops = 0.0, float(cost.image_flops(config, self.patches))
        for names in adapters_file.groups(tuple(heads or self.heads), self.adapters).values():
            plan = self.plan(names, self.frames_per_row)
            layout, rows = plan.layout, RowTimes(frames, 1, plan.frames_per_row).rows / frames
            tokens += rows * layout.length
            flops += rows * cost.row_flops(config, layout.length, len(layout.tables.reads))
        return {"tokens": tokens, "flops": flops}

    # -- device --------------------------------------------------------------------------------

    def _score_program(self, variables, tables, frames, task_ids, first, goal, *, parts, interval):
        """Scores each shard's environments apart, where a mesh is set: no frame and no feature then
        leaves its device."""
        plans = {number: self._shapes[names, per_row] for number, names, per_row in parts}

        def score(frames, task_ids, given):
            return self._score_shard(
                variables, tables, plans, interval, frames, task_ids[0], given.get("first"),
                given["goal"][0] if "goal" in given else None,
            )  # fmt: skip

        given = {} if first is None else {"first": first}
        if goal is not None:
            given["goal"] = jnp.asarray(goal)[None]
        return over_rows.side_by_side(score, ROW_AXES, axis=1)(
            jnp.asarray(frames), jnp.asarray(task_ids, jnp.int32)[None], given
        )

    def _score_shard(
        self, variables, tables, plans, interval, frames, task_ids, first, goal
    ) -> Scores:
        """Cuts the environments into groups whose features fit the budget, and scores group by
        group."""
        run = functools.partial(self._score_group, variables, tables, plans, interval)
        time, count = frames.shape[:2]
        size = cost.feature_bytes(self.model.config, self.patches, self._itemsize)
        size *= time + (goal is not None)
        size *= len({adapters_file.eyes(variables, number) for number in plans})
        groups = cost.micro_batches(count, self.memory_bytes // size)
        if groups.shape[0] == 1:
            return run(frames, task_ids, first, goal)

        def one(index):
            return run(
                frames[:, index],
                task_ids[index],
                None if first is None else first[:, index],
                None if goal is None else jnp.asarray(goal)[index],
            )

        def join(x):  # [groups, T, size, ...] to [T, N, ...]
            x = jnp.moveaxis(x, 0, 1)
            return x.reshape(time, -1, *x.shape[3:])[:, :count]

        return jax.tree.map(join, jax.lax.map(one, groups))

    def _score_group(
        self, variables, tables, plans, interval, frames, task_ids, first, goal
    ) -> Scores:
        time, count = frames.shape[:2]
        shown = frames.reshape(time * count, *frames.shape[2:])
        if goal is not None:  # behind the frames: environment n's at time * count + n
            shown = jnp.concatenate([shown, goal])
        answered: dict[str, scoring.Distribution] = {}
        seen: dict[int, VisionFeatures] = {}  # each frame once for each vision tower
        for (number, plan), own_tables in zip(plans.items(), tables, strict=True):
            own = adapters_file.variables_for(variables, number)
            eyes = adapters_file.eyes(variables, number)
            if eyes not in seen:
                seen[eyes] = self._encode(own, shown)
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
        # Rows without a comparison hold neighbours, whatever the interval: fewer rows are cut off.
        rows = RowTimes(time, interval if plan.compares else 1, plan.frames_per_row)
        shown = rows.frames()  # [rows, 1 + F]
        environments = jnp.arange(count)[:, None]
        slots = {
            f"frame{j}": shown[None, :, j] * count + environments for j in range(shown.shape[1])
        }
        slots["initial"] = start[shown[:, 1]].T * count + environments
        slots["goal"] = time * count + environments
        sentence = jnp.broadcast_to(task_ids[:, None], (count, rows.rows))
        read = self._ask(variables, tables, plan.layout, features, sentence, slots)
        answered: dict[str, scoring.Distribution] = {}
        for name, values in read.items():
            values = values.reshape(count, rows.rows, plan.frames_per_row, -1, values.shape[-1])
            values = rows.by_time(values)  # [T, N, 1 or both orders, A]
            judged = scoring.normalise(values[:, :, 0])
            if "previous" in self.heads[name].images:
                judged = scoring.swap_average(judged, scoring.normalise(values[:, :, 1]))
                earlier = at - interval >= start
                judged = scoring.Distribution(
                    jnp.where(earlier[..., None], judged.probability, jnp.nan),
                    judged.valid & earlier,
                )
            answered[name] = judged
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
        # Within a shard of rows, images are cut over what the mesh has left.
        chunks = cost.micro_batches(len(frames), self.memory_bytes // size, over_rows.shards(AXES))
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
                correction = self.calibration.get(name, HeadCalibration())
                answered[name] = correction.distribution(answered[name])
                valid[name] = answered[name].valid
                value = correction.value(answered[name].expectation(self.heads[name].values))
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
