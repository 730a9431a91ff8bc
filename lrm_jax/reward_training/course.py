"""A course: which adapters are taught which lessons in one run, and in which order.

One head has one adapter and one step. Several heads in one run take their steps in turn, each with
a program of its own over the same base, so that every adapter is bit for bit what it would be
alone. With all weights trained (`method="full"`) there is one tree, and a step sees every head.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from lrm_jax import lora
from lrm_jax.labels import Clip, FrameStore, sentences_of
from lrm_jax.parallel import rules
from lrm_jax.parallel.mesh import batch_sharding, replicated
from lrm_jax.parallel.placement import gathered, put
from lrm_jax.qwen3_vl import names, read_adapter, sharding
from lrm_jax.reward_training import dpo, lessons
from lrm_jax.reward_training.adapter_validation import (
    Validate,
    fixed_examples,
    make_validate,
    together,
)
from lrm_jax.reward_training.config import AdapterTraining
from lrm_jax.reward_training.example_stream import StreamBatches, Streamed
from lrm_jax.reward_training.lessons import (
    Batches,
    Examples,
    Lesson,
    Stored,
    Sums,
    examples_of,
)
from lrm_jax.reward_training.step import TrainState, schedule
from lrm_jax.reward_training.written import Writer
from lrm_jax.rewards.heads import Head
from lrm_jax.rewards.model import RewardModel
from lrm_jax.run.errors import UserError


@dataclasses.dataclass(eq=False)
class Course:
    """What the loop runs.

    name: of its metrics. state: at the beginning. draw: step number -> batch. step: (state, base,
    batch) -> (state, numbers). total: steps. facts: all that the result depends on. validate:
    (state's parameters, base) -> numbers; None without clips for it.
    """

    name: str
    state: TrainState
    draw: Callable[[int], Any]
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    total: int
    facts: dict[str, Any]
    validate: Validate | None = None


def make_optimiser(settings: AdapterTraining, steps: int) -> optax.GradientTransformation:
    """AdamW with warm-up, cosine decay and clipping for an adapter tree; biases and the scales of
    norms (of replaced leaves) do not decay, as with transformers' trainer."""
    s = settings.optimiser

    def decays(tree):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: path[-1].key not in ("bias", "scale"), tree
        )

    return lora.only_trainable(
        optax.chain(
            optax.clip_by_global_norm(s.clip_norm),
            optax.adamw(
                schedule(s, steps), s.beta1, s.beta2, weight_decay=s.weight_decay, mask=decays
            ),
        )
    )


def make_course(
    settings: AdapterTraining,
    model: RewardModel,
    head: Head | Sequence[Head],
    store: FrameStore | None,
    clips: Sequence[Clip],
    folder: Path,
    make_step: Callable[..., Any],
    validation_clips: Sequence[Clip] = (),
    streamed: Streamed | None = None,
) -> Course:
    """The course of one head or of several; within the model's mesh, if it has one.

    folder: where reference log-probabilities are kept. make_step: `adapters.make_step`.
    validation_clips: of episodes that `clips` do not show. streamed: what is learnt in place of
    `clips`.
    Raises:
      UserError: as `adapters.train_adapter`.
    """
    heads = [head] if isinstance(head, Head) else list(head)
    sentences = sentences_of([*clips, *validation_clips])
    if streamed is not None:
        sentences = tuple(sorted({*sentences, *streamed.sentences}))
        if not settings.steps:
            raise UserError("steps is 0: a stream has no epochs, say how many steps to train")
    full = settings.method == "full"
    trees = {h.name: None if full else beginning(settings, model, h) for h in heads}
    whole = all_weights(model) if full else None
    if model.mesh is not None:
        trees = {n: t and sharding.place_adapter(t, model.mesh) for n, t in trees.items()}
        whole = whole and sharding.place_adapter(whole, model.mesh)
    begin = {h.name: whole if full else trees[h.name] for h in heads}
    size = tuple(store.frames.shape[1:3]) if streamed is None else tuple(streamed.size)
    writers = {h.name: Writer(h, model.tokenizer, model.config, size, sentences) for h in heads}

    def lesson(head: Head, found: Examples | None) -> Lesson:
        stored = None if found is None else (store, found)
        return make_lesson(settings, model, writers[head.name], stored, begin[head.name], folder)

    def own(head: Head) -> Examples | None:
        if streamed is not None:
            return None
        return examples_of(head, clips, sentences, settings.examples, settings.seed)

    taught = {h.name: lesson(h, own(h)) for h in heads}
    facts = {
        "settings": settings, "head": [h.name for h in heads], "model": model.facts,
        "examples": {name: lesson.examples for name, lesson in taught.items()},
        "sentences": sentences,
    }  # fmt: skip
    if streamed is not None:
        facts["stream"] = streamed.facts
    if not full and settings.start:
        facts["start"] = {name: _digest(tree) for name, tree in trees.items()}
    checks: dict[str, Validate] = {}
    if validation_clips:
        part = settings.rows // settings.accumulate
        fixed = {}
        for h in heads:
            every = validation_examples(h, validation_clips, sentences, settings)
            fixed[h.name] = some = fixed_examples(h.name, every, settings.rows, part, settings.seed)
            checks[h.name] = make_validate(
                model, writers[h.name], lesson(h, some), store, some, part, settings.seed
            )
        facts["validation"] = {name: len(some) for name, some in fixed.items()}
    network = model.model.clone(remat=settings.remat)
    seed = settings.seed if settings.dropout and not full else None

    def course(
        loss: Any, draw: Any, total: int, tree: Any, name: str, asked: Sequence[str]
    ) -> Course:
        optimiser, step, cut = make_optimiser(settings, total), jnp.zeros((), jnp.int32), {}
        if model.mesh is None:
            state = TrainState(tree, jax.jit(optimiser.init)(tree), step)
        else:
            homes = homes_of(tree, optimiser, model.mesh)
            moments = jax.jit(optimiser.init, out_shardings=homes.optimiser)(tree)
            state, cut = TrainState(tree, moments, put(step, homes.step)), {"homes": homes}
        step = make_step(network, optimiser, settings.accumulate, seed, loss, **cut)
        some = {n: checks[n] for n in asked if n in checks}
        validate = together(some, lambda params, _: params) if some else None
        return Course(name, state, draw, step, total, facts, validate)

    if streamed is None:
        draws = {n: Batches(v, settings.rows, settings.seed) for n, v in taught.items()}
        totals = {n: settings.steps or settings.epochs * d.per_epoch for n, d in draws.items()}
    else:
        draws = {
            n: StreamBatches(v, streamed.streams[n], settings.seed) for n, v in taught.items()
        }
        totals = dict.fromkeys(draws, settings.steps)
    if full:
        return course(
            mixed_loss(taught), lambda k: {n: d(k) for n, d in draws.items()},
            max(totals.values()), whole, "model", list(taught),
        )  # fmt: skip
    single = {
        n: course(v.loss, draws[n], totals[n], trees[n], f"adapter_{n}", [n])
        for n, v in taught.items()
    }
    if isinstance(head, Head):
        return single[head.name]
    validate = together(checks, lambda params, name: params[name]) if checks else None
    return dataclasses.replace(in_turn(single), validate=validate)


def homes_of(tree: Any, optimiser: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Where the leaves of a state lie whose parameters are `tree`, on its devices: moments beside
    their factors, the count of steps everywhere."""
    cut = jax.tree.map(lambda x: x.sharding, tree)
    moments = rules.follow(jax.eval_shape(optimiser.init, tree), tree, cut, mesh)
    return TrainState(cut, moments, replicated(mesh))


def beginning(settings: AdapterTraining, model: RewardModel, head: Head) -> Any:
    """The adapter tree that training begins with: fresh, or read from `settings.start`.

    UserError: an adapter of another rank, scale or other modules than the settings have.
    """
    config, leaves = settings.lora_config(), names.leaves(model.config)
    fresh = lora.init(jax.random.key(settings.seed), model.params, config, leaves)
    if not settings.start:
        return fresh
    folder = settings.start.replace("{head}", head.name)
    read = read_adapter(folder, model.config, model.params)
    read = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), read)

    def plain(tree):
        return {
            jax.tree_util.keystr(path): x.shape
            for path, x in jax.tree_util.tree_leaves_with_path(tree)
            if path[-1].key != "dropout"
        }

    def taken(path, new):
        if path[0].key == "lora" and path[-1].key == "dropout":
            return new
        old = read
        for key in path:
            old = old[key.key]
        if path[0].key == "lora" and path[-1].key == "scale" and not np.array_equal(old, new):
            raise UserError(f"start: {folder} has another alpha than the settings")
        return old

    if plain(read) != plain(fresh):
        raise UserError(f"start: {folder} has other ranks or modules than the settings")
    return jax.tree_util.tree_map_with_path(taken, fresh)


def all_weights(model: RewardModel) -> Any:
    """An adapter tree that replaces every leaf of the base by a float32 copy."""
    return {"lora": {}, "params": jax.tree.map(lambda x: jnp.array(x, jnp.float32), model.params)}


def make_lesson(
    settings: AdapterTraining,
    model: RewardModel,
    writer: Writer,
    stored: Stored | None,
    tree: Any,
    folder: Path,
) -> Lesson:
    """The lesson of the writer's head by its objective; stored: None where examples are streamed.
    tree: what training begins with, DPO's reference.

    UserError: DPO of a stream, whose examples cannot be put to the reference beforehand.
    """
    objective = settings.objective_of(writer.head.name)
    if objective == "sft":
        return lessons.written(writer, stored)
    if objective == "expectation":
        return lessons.expected(
            writer, stored, settings.distribution, settings.smoothing, settings.closed_mass
        )
    if stored is None:
        raise UserError(
            f"head {writer.head.name!r}: dpo asks its reference about every example beforehand, "
            "which a stream does not allow: store the episodes (stream=False)"
        )
    store, found = stored
    identity = {
        "model": {k: v for k, v in model.facts.items() if k != "model"},
        "adapter": _digest(tree) if settings.method == "lora" else None,
        "dtype": str(jnp.dtype(model.model.dtype)),
    }
    reference = dpo.reference_log_probabilities(
        model.model, lora.variables(model.params, tree), writer, store, found, settings.seed,
        settings.rows, folder, identity,
        None if model.mesh is None else batch_sharding(model.mesh),
    )  # fmt: skip
    return dpo.preferences(
        writer, store, found, reference, settings.seed, settings.beta, settings.label_smoothing
    )


def validation_examples(
    head: Head, clips: Sequence[Clip], sentences: Sequence[str], settings: AdapterTraining
) -> Examples:
    """All that validation clips ask of a head; UserError, which says so, if that is nothing."""
    try:
        return examples_of(head, clips, sentences, settings.examples, settings.seed)
    except UserError as error:
        raise UserError(f"validation episodes: {error}") from error


def mixed_loss(taught: dict[str, Lesson]) -> Callable[..., Sums]:
    """The mean of several heads' mean losses, for batches {head: batch}, as one lesson's loss.

    Means are taken within each of `accumulate`'s parts.
    """

    def loss(model: Any, variables: Any, batch: Any, rng: jax.Array | None) -> Sums:
        each = {}
        for number, (name, lesson) in enumerate(taught.items()):
            key = None if rng is None else jax.random.fold_in(rng, number)
            total, (count, _) = lesson.loss(model, variables, batch[name], key)
            each[f"loss_{name}"] = total / count
        return sum(each.values()) / len(each), (jnp.int32(1), each)

    return loss


def in_turn(single: dict[str, Course]) -> Course:
    """Several heads' courses as one: a step is one of each, and the shorter ones are spread evenly
    over the longest. params and optimiser of its state are those of the heads, by name."""
    total = max(c.total for c in single.values())
    # Steps that a head has taken before each step of all.
    before = {
        name: np.array([n * c.total // total for n in range(total + 1)], np.int32)
        for name, c in single.items()
    }

    # Constants of programs, for the count of steps may lie on the devices of other processes too.
    taken = {
        name: jax.jit(lambda step, table=table: jnp.asarray(table)[step])
        for name, table in before.items()
    }

    def draw(number: int) -> dict[str, Any]:
        return {
            name: c.draw(int(before[name][number]))
            for name, c in single.items()
            if before[name][number + 1] > before[name][number]
        }

    def step(state: TrainState, base: Any, batches: dict[str, Any]):
        params, moments, numbers = dict(state.params), dict(state.optimiser), {}
        for name, batch in batches.items():
            own = TrainState(params[name], moments[name], taken[name](state.step))
            own, numbers[name] = single[name].step(own, base, batch)
            params[name], moments[name] = own.params, own.optimiser
        out = {f"{k}_{name}": v for name, own in numbers.items() for k, v in own.items()}
        out = {k: v for k, v in out.items() if not k.startswith("finite_")}
        every = numbers.values()
        out["loss"] = sum(own["loss"] for own in every) / len(numbers)
        out["finite"] = jnp.all(jnp.stack([own["finite"] for own in every]))
        return TrainState(params, moments, state.step + 1), out

    first = next(iter(single.values()))
    state = TrainState(
        {n: c.state.params for n, c in single.items()},
        {n: c.state.optimiser for n, c in single.items()},
        first.state.step,
    )
    return Course("adapters", state, draw, step, total, first.facts)


def _digest(tree: Any) -> str:
    """Of all arrays of a tree and their places; with several processes all call it."""
    total = hashlib.sha256()
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        total.update(jax.tree_util.keystr(path).encode())
        total.update(np.ascontiguousarray(gathered(x)))
    return total.hexdigest()
