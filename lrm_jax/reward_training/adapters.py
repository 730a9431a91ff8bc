"""Teaching a Qwen3-VL reward model's heads: LoRA adapters over a frozen base, one a head, one head
after the other or all in turn; or all weights of a small model.

The paper's recipe (arXiv 2603.16065): one adapter a head, rank 64, alpha 128, on q, k, v and
o, trained for one epoch. What is taught is a `Lesson` (`lessons`, `dpo`). Batches are drawn from
(seed, epoch, step) alone, so that a run which was killed goes on to bit for bit the same adapter.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lrm_jax import lora
from lrm_jax.labels import Clip, FrameStore
from lrm_jax.parallel.mesh import ROW_AXES, batch_sharding, under
from lrm_jax.parallel.placement import gathered, put
from lrm_jax.parallel.rows import shards
from lrm_jax.qwen3_vl import Qwen3VL, names
from lrm_jax.reward_training import resumable
from lrm_jax.reward_training.config import AdapterTraining
from lrm_jax.reward_training.course import make_course
from lrm_jax.reward_training.example_stream import Streamed
from lrm_jax.reward_training.lessons import Sums, written_loss
from lrm_jax.reward_training.step import TrainState, finite_update
from lrm_jax.rewards.heads import Head
from lrm_jax.rewards.model import RewardModel
from lrm_jax.run.errors import UserError
from lrm_jax.run.platform import network_options


def make_step(
    model: Qwen3VL,
    optimiser: optax.GradientTransformation,
    accumulate: int = 1,
    dropout_seed: int | None = None,
    loss: Callable[..., Sums] = written_loss,
    homes: TrainState | None = None,
):
    """`step_function` of these arguments, jitted; the state is donated. homes: where its leaves lie
    on a mesh; the numbers are then copied to all its devices."""
    placed = {} if homes is None else {"out_shardings": (homes, homes.step)}
    step = step_function(model, optimiser, accumulate, dropout_seed, loss)
    return jax.jit(step, donate_argnums=0, compiler_options=network_options(), **placed)


def step_function(
    model: Qwen3VL,
    optimiser: optax.GradientTransformation,
    accumulate: int = 1,
    dropout_seed: int | None = None,
    loss: Callable[..., Sums] = written_loss,
):
    """The step: (state, base, batch) -> (state, {"loss", "grad_norm", "finite", ...}).

    state.params is an adapter tree (`lora.init`). The base is neither changed nor differentiated,
    so its gradient is never formed. loss: of a lesson; by default that of written answers, the mean
    over the batch's learnt tokens. accumulate: the batch goes through in so many parts, with the
    gradients of the whole. Where loss or gradients are not finite the adapter stays as it was.
    """

    def loss_of(adapter, base, batch, rng):
        return loss(model, lora.variables(base, adapter), batch, rng)

    def step(state: TrainState, base, batch):
        rng = None
        if dropout_seed is not None:
            rng = jax.random.fold_in(jax.random.key(dropout_seed), state.step)

        def sums(own, number):
            key = None if rng is None else jax.random.fold_in(rng, number)
            (total, (count, more)), grads = jax.value_and_grad(loss_of, has_aux=True)(
                state.params, base, own, key
            )
            return total, count, more, grads

        if accumulate == 1:
            total, count, more, grads = sums(batch, 0)
        else:
            # Every part takes each of its rows from another shard's, so that none moves.
            parts = jax.tree.map(
                lambda x: jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1), batch
            )
            shapes = jax.eval_shape(sums, jax.tree.map(lambda x: x[0], parts), 0)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            (total, count, more, grads), _ = jax.lax.scan(
                lambda carry, given: (jax.tree.map(jnp.add, carry, sums(*given)), None),
                zeros, (parts, jnp.arange(accumulate)),
            )  # fmt: skip
        value, grads = total / count, jax.tree.map(lambda g: g / count, grads)
        norm = optax.global_norm(
            [g for g, t in zip(*map(jax.tree.leaves, (grads, lora.trainable(grads))), strict=True)
             if t]
        )  # fmt: skip
        adapter, moments, finite = finite_update(
            optimiser, value, norm, grads, state.params, state.optimiser
        )
        state = TrainState(adapter, moments, state.step + 1)
        numbers = {"loss": value, "grad_norm": norm, "finite": finite}
        return state, numbers | {k: v / count for k, v in more.items()}

    return step


def train_adapter(
    settings: AdapterTraining,
    model: RewardModel,
    head: Head | Sequence[Head],
    store: FrameStore | None,
    clips: Sequence[Clip],
    folder: str | os.PathLike[str],
    *,
    validation_clips: Sequence[Clip] = (),
    streamed: Streamed | None = None,
    metrics: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """The adapter tree of one head; of several heads {head: tree}, trained in one run, or with
    `settings.method` "full" one tree with all weights. With `settings.final` "best" those of the
    best validation.

    Args:
      model: the frozen base; its mesh, if it has one, is trained over. With several processes each
        calls this with the same arguments; `folder` is one that all see.
      store, clips: labelled frames, of the camera's size.
      validation_clips: into the same store, of other episodes: asked about, never learnt.
      streamed: what is learnt as it comes, in place of `clips`, which are then (), as is `store`
        None without `validation_clips`. Its place is kept in the checkpoints.
      folder: for checkpoints and reference log-probabilities; kept between tries, deleted by the
        caller.
      metrics: a folder for `metrics.jsonl` and TensorBoard events, series "adapter_HEAD", or
        "adapters" of several.
    Raises:
      UserError: nothing to learn from, a batch that the mesh or `accumulate` does not divide, a
        `start` that does not fit, a loss that stays infinite or NaN (the batch is then in
        `folder`/bad_batch.npz), validation clips that do not fill a batch, a `best` that
        validation does not give, a stream without `steps` or of DPO.
    """
    with under(model.mesh):
        parts = shards(ROW_AXES) * settings.accumulate
        if settings.rows % parts:
            raise UserError(
                f"rows is {settings.rows}: it must be a multiple of {parts} (shards of the mesh "
                "times accumulate)"
            )
        course = make_course(
            settings, model, head, store, clips, Path(folder), make_step, validation_clips,
            streamed,
        )  # fmt: skip
        place = None if model.mesh is None else batch_sharding(model.mesh)

        def taught(state, number, batch):
            given = batch if place is None else put(batch, place)
            return course.step(state, model.params, given)

        def evaluate(params, done):
            del done
            return course.validate(params, model.params)

        names = [head.name] if isinstance(head, Head) else [h.name for h in head]
        state, _ = resumable.run(
            resumable.Steps(course.name, course.total, course.facts, course.draw, taught),
            course.state,
            folder,
            resumable.Pace(
                settings.checkpoint_every, settings.evaluate_every,
                settings.best_of(names, apart=isinstance(head, Head)), settings.final,
            ),
            evaluate=None if course.validate is None else evaluate,
            data=streamed,
            metrics=metrics,
        )  # fmt: skip
    return state.params


def save_adapter(
    folder: str | os.PathLike[str], adapter: Any, settings: AdapterTraining, model: RewardModel
) -> None:
    """The adapter as a folder that PEFT and `load_reward_model(adapters=)` read; with `method`
    "full" a whole reward model's folder, in the dtype of the base. Of several processes each writes
    its own folder, and all call it."""
    host = gathered(adapter)
    if settings.method == "full":
        whole = dataclasses.replace(model, params=host["params"], adapters={}, _engines={})
        whole.save(folder, str(jax.tree.leaves(model.params)[0].dtype))
        return
    lora.save_peft(
        folder, host, settings.lora_config(), names.leaves(model.config),
        base_model=str(model.name),
    )  # fmt: skip
