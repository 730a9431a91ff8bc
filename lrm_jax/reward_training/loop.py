"""The training loop: phases of steps over one network, resumable after a kill at any time."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lrm_jax.labels import Clip, FrameStore, HeldOut, sentences_of, with_blanks
from lrm_jax.parallel import rules
from lrm_jax.parallel.mesh import ROW_AXES, batch_sharding, replicated, under
from lrm_jax.parallel.placement import put, whole
from lrm_jax.qwen3_vl import Config, Qwen3VL, init_params, sharding
from lrm_jax.reward_training import resumable, validation
from lrm_jax.reward_training.batches import Sampler
from lrm_jax.reward_training.config import Phase, RewardTraining
from lrm_jax.reward_training.nano import nano_config
from lrm_jax.reward_training.scene_heads import named_heads, scene_heads, thing_heads
from lrm_jax.reward_training.step import Rows, TrainState, make_optimiser, make_rows, make_step
from lrm_jax.rewards.heads import Head, by_name, nano_heads
from lrm_jax.rewards.model import (
    NANO_FOLDER,
    RewardModel,
    load_reward_model,
)
from lrm_jax.rewards.saving import save_reward_model
from lrm_jax.rewards.tokenizer import Tokenizer
from lrm_jax.run.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """The outcome: a network, what it is asked with, and the last validation (by name)."""

    config: Config
    params: Any
    heads: tuple[Head, ...]
    tokenizer: Tokenizer
    image_size: tuple[int, int]
    validation: dict[str, float]

    def save(self, folder: str | os.PathLike[str], dtype: str = "bfloat16") -> None:
        """Writes the model folder that `load_reward_model` reads. The scene heads stay behind."""
        args = self.config, self.params, self.heads, self.tokenizer, self.image_size
        save_reward_model(folder, *args, dtype)


def train(
    settings: RewardTraining,
    store: FrameStore,
    clips: Sequence[Clip],
    folder: str | os.PathLike[str],
    *,
    validation_clips: Sequence[Clip] = (),
    held_out: HeldOut | None = None,
    tokenizer: Tokenizer | None = None,
    metrics: str | os.PathLike[str] | None = None,
    series: str = "reward",
    mesh: Mesh | None = None,
) -> Trained:
    """Trains a nano reward model from scratch.

    The same call goes on from the last checkpoint in `folder` and ends with bit for bit the same
    parameters as one that was never interrupted (on the same device).

    Args:
      settings: sizes, phases, optimiser, seed.
      store: all frames, of the training and of the validation clips.
      clips, validation_clips: into `store`. Validation clips should come from other episodes.
      folder: for checkpoints; kept between tries, deleted by the caller.
      held_out: sentences that must not be trained on; checked once more here.
      tokenizer: that of lrm-nano by default.
      metrics: a folder for `metrics.jsonl` and TensorBoard events, under the name `series`, which
        takes the place of an earlier one of that name.
      mesh: to train over: rows cut over data and fsdp, parameters as `qwen3_vl.sharding` says,
        frames copied. With several processes each calls this with the same arguments; `folder` is
        one that all see.
    Raises:
      UserError: clips without labels for a phase's heads, a held-out sentence, frames of another
        size than `settings.size.image_size`, a start of another size, a loss that stays infinite or
        NaN (the batch is then in `folder`/bad_batch.npz), a `best` that validation does not give.
    """
    tokenizer = tokenizer or Tokenizer.from_folder(NANO_FOLDER)
    size = (settings.size.image_size,) * 2
    if store.frames.shape[1:3] != size:
        raise UserError(
            f"frames are {store.frames.shape[1:3]} pixels, config.size.image_size says {size}"
        )
    (held_out or HeldOut(())).check(c.task for c in clips)
    sentences = sentences_of([*clips, *validation_clips])
    if settings.blanks:
        store, clips = with_blanks(store, clips, settings.blanks, settings.seed)
    config = nano_config(settings.size, tokenizer)
    model = Qwen3VL(config, remat=settings.remat)
    total = sum(p.steps for p in settings.phases)
    if total < 1:
        raise UserError("config.phases: there are no steps to train")
    optimiser = make_optimiser(settings.optimiser, total)
    begin = load_reward_model(settings.start) if settings.start else None
    # A copy, for the first step takes over the start's own memory.
    kept = jax.tree.map(np.array, begin.params) if settings.start_share else None
    state, homes = _start(model, optimiser, settings.seed, begin), None
    if mesh is not None:
        cut = sharding.homes(config, mesh)
        moments = rules.follow(state.optimiser, state.params, cut, mesh)
        homes = TrainState(cut, moments, replicated(mesh))
        state = put(state, homes)
    phases = [
        _Running(p, settings, clips, validation_clips, sentences, tokenizer, model, homes, mesh)
        for p in settings.phases
    ]
    ends = np.cumsum([p.steps for p in settings.phases])
    facts = {
        "settings": settings,
        "clips": len(clips),
        "frames": len(store.frames),
        "sentences": sentences,
        "start": None if begin is None else begin.facts["model_sha256"],
    }
    frames = jax.device_put(store.frames) if mesh is None else put(store.frames, replicated(mesh))

    def phase_of(number: int) -> _Running:
        return phases[int(np.searchsorted(ends, number, side="right"))]

    def step(state, number, batch):
        running = phase_of(number)
        return running.step(optimiser)(state, running.tables, frames, running.place(batch))

    def evaluate(params, done):
        return phase_of(done - 1).validate(params, frames)

    with under(mesh):
        state, found = resumable.run(
            resumable.Steps(
                series, total, facts, lambda number: phase_of(number).draw(number), step,
                frozenset(map(int, ends)), lambda number: {"phase": phase_of(number).phase.name},
            ),
            state,
            folder,
            resumable.Pace(
                settings.checkpoint_every, settings.evaluate_every, settings.best, settings.final
            ),
            evaluate=evaluate if validation_clips else None,
            metrics=metrics,
        )  # fmt: skip
    params = state.params if mesh is None else whole(state.params, mesh)
    if kept is not None:
        share = settings.start_share
        params = jax.tree.map(
            lambda old, new: share * jnp.asarray(old, new.dtype) + (1.0 - share) * new, kept, params
        )
    return Trained(config, params, nano_heads(), tokenizer, size, found)


def _start(model: Qwen3VL, optimiser: Any, seed: int, begin: RewardModel | None) -> TrainState:
    params = init_params(model, jax.random.key(seed))
    if begin is not None:
        if begin.config != model.config:
            raise UserError(
                f"config.training.start: {begin.name} is a network of another size or tokenizer "
                "than config.training.size says"
            )
        params = jax.tree.map(lambda p, like: jnp.asarray(p, like.dtype), begin.params, params)
    return TrainState(params, optimiser.init(params), jnp.zeros((), jnp.int32))


class _Running:
    """A phase with its rows, sampler and compiled step; each is made when it is first used."""

    def __init__(
        self, phase: Phase, settings, clips, validation_clips, sentences, tokenizer, model,
        homes: TrainState | None, mesh: Mesh | None,
    ):  # fmt: skip
        known = by_name((*nano_heads(), *scene_heads(), *thing_heads(), *named_heads()))
        for name in phase.heads:
            if name not in known:
                raise UserError(f"config.phases ({phase.name}).heads: {did_you_mean(name, known)}")
        if not phase.heads:
            raise UserError(
                f"config.phases ({phase.name}).heads: name at least one head and its weight"
            )
        parts = settings.accumulate
        if mesh is not None:
            parts *= math.prod(mesh.shape[axis] for axis in ROW_AXES)
        if phase.rows % parts:
            raise UserError(
                f"config.phases ({phase.name}).rows is {phase.rows}: it must be a multiple of "
                f"{parts} (shards of the mesh times accumulate)"
            )
        self.phase, self._settings, self._model = phase, settings, model
        self._homes, self._mesh = homes, mesh
        heads = [known[n] for n in phase.heads]
        size = (settings.size.image_size,) * 2
        self.rows: Rows = make_rows(
            heads,
            phase.pairs_per_row,
            sentences,
            tokenizer,
            model.config,
            size,
        )
        self.tables = self.rows.tables
        if mesh is not None:
            self.tables = put(self.tables, replicated(mesh))
        names = [h.name for h in self.rows.heads]
        self._sampler = Sampler(clips, sentences, names, phase, settings.examples, settings.seed)
        self.draw = self._sampler.batch
        self._step = self._validate = None
        self._held = None
        if validation_clips:
            self._held = Sampler(
                validation_clips,
                sentences,
                names,
                phase,
                settings.examples,
                settings.seed + 1_000_003,
            )

    def step(self, optimiser):
        if self._step is None:
            s = self._settings
            self._step = make_step(
                self._model, self.rows, self.phase.heads, optimiser, s.smoothing, s.light, s.seed,
                s.accumulate, self._homes,
            )  # fmt: skip
        return self._step

    def place(self, batch):
        """A batch where the step takes it."""
        return batch if self._mesh is None else put(batch, batch_sharding(self._mesh))

    def validate(self, params, frames) -> dict[str, float]:
        if self._validate is None:
            home = None if self._mesh is None else replicated(self._mesh)
            self._validate = validation.make_validate(self._model, self.rows, home)
        # The same batches every time, so that the numbers can be compared.
        batches = [self._held.batch(i) for i in range(validation.BATCHES)]
        return validation.validate(
            self._validate, self.rows, params, self.tables, frames, batches, self.place
        )
