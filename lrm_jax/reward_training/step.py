"""One optimiser step on plain trees: encode the batch's frames, ask every head, compare, update."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from lrm_jax.qwen3_vl import Qwen3VL, VisionInputs, fixed_grid, patchify
from lrm_jax.reward_training import objective
from lrm_jax.reward_training.batches import Batch
from lrm_jax.reward_training.config import Optimiser
from lrm_jax.rewards import cost, scoring
from lrm_jax.rewards.heads import Head
from lrm_jax.rewards.layout import Layout, Query, build_layout
from lrm_jax.rewards.tokenizer import Tokenizer


@flax.struct.dataclass
class TrainState:
    """What a step changes: parameters, optimiser state, number of steps done (int32 [])."""

    params: Any
    optimiser: Any
    step: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a phase: `still` judges a frame by H heads, `pair` compares two; either may be
    missing."""

    heads: tuple[Head, ...]
    contrastive: Head | None
    still: Layout | None
    pair: Layout | None

    @property
    def shows_initial(self) -> bool:
        """Whether any head is shown an episode's first frame."""
        return any(v is not None and "initial" in v.slots for v in (self.still, self.pair))

    @property
    def tables(self) -> dict[str, Any]:
        """The arrays that the compiled step takes."""
        return {
            k: v.tables for k, v in (("still", self.still), ("pair", self.pair)) if v is not None
        }


def make_rows(
    heads: Sequence[Head],
    pairs_per_row: int,
    sentences: Sequence[str],
    tokenizer: Tokenizer,
    config: Any,
    image_size: tuple[int, int],
) -> Rows:
    """Lays out the rows of a phase for its heads; those that show the previous image compare
    pairs."""
    build = functools.partial(
        build_layout, sentences=sentences, tokenizer=tokenizer, config=config, image_size=image_size
    )
    single = tuple(h for h in heads if "previous" not in h.images)
    pairs = [h for h in heads if "previous" in h.images]
    if len(pairs) > 1:
        raise ValueError("only one head may compare pairs")
    still = [Query(h, h.images) for h in single]
    pair = [Query(h, h.images) for h in pairs] if pairs_per_row else []
    return Rows(
        heads=single,
        contrastive=pairs[0] if pair else None,
        still=build(still) if still else None,
        pair=build(pair) if pair else None,
    )


def schedule(settings: Optimiser, steps: int) -> optax.Schedule:
    """The learning rate: linear warm-up, then cosine to `final_share`."""
    warmup = min(settings.warmup_steps, max(steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(
        0.0,
        settings.learning_rate,
        warmup,
        max(steps, warmup + 1),
        settings.learning_rate * settings.final_share,
    )


def make_optimiser(settings: Optimiser, steps: int) -> optax.GradientTransformation:
    """AdamW with `schedule` and global-norm clipping; kernels alone decay."""

    def kernels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(
            schedule(settings, steps),
            settings.beta1,
            settings.beta2,
            weight_decay=settings.weight_decay,
            mask=kernels,
        ),
    )


def predict(
    model: Qwen3VL,
    rows: Rows,
    params: Any,
    tables: dict[str, Any],
    frames: jax.Array,
    batch: Batch,
    light: float = 0.0,
    rng: jax.Array | None = None,
) -> tuple[list[jax.Array], jax.Array | None]:
    """Log-probabilities of whole answers for a batch.

    Args:
      model, rows, params: the network, the rows, its parameters. tables: `rows.tables`.
      frames: uint8 [F, H, W, 3], all of the training set's. batch: which of them.
      light, rng: each frame's brightness and contrast vary by up to this share, drawn from `rng`.
    Returns:
      For each head that judges single frames float32 [B, K, A]; for contrastive [B, P, 2], or None.
    """
    count, width = batch.frames.shape
    size = frames.shape[1:3]
    grid = jax.tree.map(jnp.asarray, fixed_grid(model.config, *size))
    unseen = 0 if rows.shows_initial else 1  # the initial frame, first in `batch.frames`
    patches = patchify(frames[batch.frames[:, unseen:].reshape(-1)], model.config)
    if light > 0:
        gain, bias = jax.random.uniform(rng, (2, len(patches), 1, 1), minval=-light, maxval=light)
        patches = patches * (1 + gain) + bias
    variables = {"params": params}
    features = model.apply(variables, VisionInputs(patches, grid), method="encode")
    at = jnp.arange(count * (width - unseen)).reshape(count, -1)
    at = jnp.pad(at, ((0, 0), (unseen, 0)))  # columns as in `batch.frames`
    answers: list[jax.Array] = []
    if rows.still is not None:
        judged = at[:, 1:]
        begun = jnp.broadcast_to(at[:, :1], judged.shape)
        slots = jnp.stack([begun if s == "initial" else judged for s in rows.still.slots], -1)
        reads = scoring.read_log_probabilities(
            model,
            variables,
            tables["still"],
            features,
            jnp.repeat(batch.sentence, width - 1),
            slots.reshape(count * (width - 1), -1),
        )
        for table in rows.still.answers:  # one for each of `rows.heads`
            answer = scoring.answer_log_probabilities(reads, table)
            answers.append(answer.reshape(count, width - 1, -1))
    if rows.pair is None:
        return answers, None
    shown = jnp.concatenate(
        [jnp.zeros_like(batch.pairs[..., :1]), batch.pairs], -1
    )  # initial, previous, current
    images = ("initial", "previous", "current")
    columns = jnp.array([images.index(s) for s in rows.pair.slots])
    slots = jnp.take_along_axis(at[:, None], shown, axis=2)[..., columns]
    pairs = batch.pairs.shape[1]
    reads = scoring.read_log_probabilities(
        model,
        variables,
        tables["pair"],
        features,
        jnp.repeat(batch.sentence, pairs),
        slots.reshape(count * pairs, -1),
    )
    compared = scoring.answer_log_probabilities(reads, rows.pair.answers[0])
    return answers, compared.reshape(count, pairs, -1)


def losses(
    rows: Rows, answers: list[jax.Array], compared: jax.Array | None, batch: Batch, smoothing: float
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """For each head: its mean loss over the labelled entries, and how many there were, float32
    []."""
    found = {}
    labelled = [
        (h, a, batch.labels[..., i])
        for i, (h, a) in enumerate(zip(rows.heads, answers, strict=True))
    ]
    if compared is not None:
        labelled.append((rows.contrastive, compared, batch.closer))
    for head, log_probabilities, labels in labelled:
        spread = smoothing if len(head.values) > 2 else 0.0
        shares = objective.target(head.values, labels, spread)
        count = jnp.sum(jnp.isfinite(labels))
        total = jnp.sum(objective.cross_entropy(log_probabilities, shares))
        found[head.name] = (total / jnp.maximum(count, 1), count.astype(jnp.float32))
    return found


def finite_update(
    optimiser: optax.GradientTransformation, loss: jax.Array, norm: jax.Array, grads: Any,
    params: Any, moments: Any,
) -> tuple[Any, Any, jax.Array]:  # fmt: skip
    """(params, moments, finite) after one update; both as they were where the loss or the norm of
    its gradients is not finite."""
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    updates, after = optimiser.update(grads, moments, params)
    keep = functools.partial(jax.tree.map, lambda new, old: jnp.where(finite, new, old))
    return keep(optax.apply_updates(params, updates), params), keep(after, moments), finite


def make_step(
    model: Qwen3VL,
    rows: Rows,
    weights: dict[str, float],
    optimiser: optax.GradientTransformation,
    smoothing: float,
    light: float,
    seed: int,
    accumulate: int = 1,
    homes: TrainState | None = None,
):
    """The jitted step: (state, tables, frames, batch) -> (state, metrics); the state is donated.

    accumulate: the batch goes through in so many parts, with the losses and gradients of the whole.
    homes: where the state's leaves lie on a mesh; metrics are then copied to all its devices.

    metrics: "loss" and "loss_HEAD", float32 []; "grad_norm"; "finite", bool [], False if the loss
    or a gradient is not, in which case the state is returned as it was.
    """

    def loss_of(params, tables, frames, batch, rng, labelled=None):
        answers, compared = predict(model, rows, params, tables, frames, batch, light, rng)
        found = losses(rows, answers, compared, batch, smoothing)
        values = {name: value for name, (value, _) in found.items()}
        if labelled is not None:  # a part's share of the mean over the whole batch
            values = {
                name: value * count / jnp.maximum(labelled[name], 1)
                for name, (value, count) in found.items()
            }
        total = sum(weights[name] * value for name, value in values.items())
        return total, {f"loss_{name}": value for name, value in values.items()}

    gradients = jax.value_and_grad(loss_of, has_aux=True)

    def in_parts(params, tables, frames, batch, rng):
        labelled = {h.name: jnp.sum(jnp.isfinite(batch.labels[..., i]))
                    for i, h in enumerate(rows.heads)}  # fmt: skip
        if rows.pair is not None:
            labelled[rows.contrastive.name] = jnp.sum(jnp.isfinite(batch.closer))
        # Every part takes each of its rows from another shard's, so that none moves.
        parts = jax.tree.map(
            lambda x: jnp.swapaxes(
                x.reshape(len(x) // accumulate, accumulate, *x.shape[1:]), 0, 1
            ),
            batch,
        )

        def part(number, own):
            key = jax.random.fold_in(rng, number)
            return gradients(params, tables, frames, own, key, labelled)

        shapes = jax.eval_shape(part, 0, jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(
            lambda carry, given: (jax.tree.map(jnp.add, carry, part(*given)), None),
            zeros, (jnp.arange(accumulate), parts),
        )[0]  # fmt: skip

    placed = {}
    if homes is not None:
        placed = {"out_shardings": (homes, homes.step)}

    @functools.partial(jax.jit, donate_argnums=0, **placed)
    def step(state: TrainState, tables, frames, batch: Batch):
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        taken = gradients if accumulate == 1 else in_parts
        (loss, metrics), grads = taken(state.params, tables, frames, batch, rng)
        norm = optax.global_norm(grads)
        params, moments, finite = finite_update(
            optimiser, loss, norm, grads, state.params, state.optimiser
        )
        state = TrainState(params, moments, state.step + 1)
        return state, {"loss": loss, "grad_norm": norm, "finite": finite, **metrics}

    return step


def step_flops(config: Any, rows: Rows, batch: Batch, patches: int) -> float:
    """Matrix-product FLOPs of one training step on a batch of this shape."""
    count, width = batch.frames.shape
    images = count * (width if rows.shows_initial else width - 1)
    flops = images * cost.image_flops(config, patches)
    numbers = count * (width - 1), count * batch.pairs.shape[1]
    for layout, number in zip((rows.still, rows.pair), numbers, strict=True):
        if layout is not None:
            flops += number * cost.row_flops(config, layout.length, len(layout.tables.reads))
    return float(flops * cost.TRAIN)
