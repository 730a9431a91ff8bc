"""The loop of every training here: steps, numbers, evaluation, checkpoints; stopped and resumed.

Killed at any moment it loses the steps since its last checkpoint; SIGTERM lets it finish its step
and save. What it ends with is bit for bit what an uninterrupted run ends with on the same devices:
a step depends on the state, its own number and its batch, and a batch on its number or on an
iterator whose state lies in the checkpoint.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.reward_training.log import LOG_EVERY, StepLog
from lrm_jax.run import atomic
from lrm_jax.run.checkpoints import Checkpoints
from lrm_jax.run.errors import UserError, did_you_mean
from lrm_jax.run.preemption import Terminated, finish_first
from lrm_jax.run.progress import bar, note

# Metrics of which less is better, by the last part of their names.
LOWER = ("loss", "mae", "rmse", "nll")


class DataIterator(Protocol):
    """Where batches come from that are not drawn by number; grain's iterators are such."""

    def get_state(self) -> Any:
        """bytes or a JSON value: what follows the batches handed out so far."""

    def set_state(self, state: Any) -> None:
        """Goes on from there."""


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """What is repeated.

    name: of its metrics and its bar. total: steps. facts: all that the result depends on.
    draw: step number (from 0) -> batch of numpy arrays. step: (state, number, batch) -> (state,
      {"loss", "finite", ...}); the state's field `step` counts steps, and may be donated.
    ends: numbers of steps done after which numbers are not averaged across: ends of phases.
    told: step number -> words written beside its numbers.
    """

    name: str
    total: int
    facts: Any
    draw: Callable[[int], Any]
    step: Callable[[Any, int, Any], tuple[Any, dict[str, jax.Array]]]
    ends: frozenset[int] = frozenset()
    told: Callable[[int], dict[str, str]] = lambda number: {}


@dataclasses.dataclass(frozen=True)
class Pace:
    """What happens beside the steps, and how often.

    checkpoint_every, evaluate_every: steps. best: an evaluation's number whose best parameters are
      kept, such as "progress/mae"; empty keeps none. Where the parameters are {key: tree}, {key:
      number} keeps of each key its own best. final: "last" or "best", which parameters the loop
      returns.
    """

    checkpoint_every: int
    evaluate_every: int = 0
    best: str | Mapping[str, str] = ""
    final: str = "last"

    def __post_init__(self):
        if self.final not in ("last", "best"):
            raise UserError(f"final is {self.final!r}: choose last or best")
        if self.final == "best" and not self.best:
            raise UserError('final is "best": name the number that decides, as best=progress/mae')


def run(
    steps: Steps,
    state: Any,
    folder: str | os.PathLike[str],
    pace: Pace,
    *,
    evaluate: Callable[[Any, int], dict[str, float]] | None = None,
    data: DataIterator | None = None,
    metrics: str | os.PathLike[str] | None = None,
) -> tuple[Any, dict[str, float]]:
    """(state, last evaluation) after all steps, from the last checkpoint in `folder` on.

    With `pace.final` "best" both are those of the best evaluation (the optimiser's state and the
    count of steps stay the last); where keys have their own best, the evaluation has the numbers
    "KEY/..." of each.

    Args:
      state: at the beginning, with fields `params` and `step`; its arrays where they should live.
      folder: for `checkpoints/`, `best/` and, if the loss is lost, `bad_batch.npz`.
      evaluate: (parameters, steps done) -> numbers, after every `pace.evaluate_every` steps and at
        the ends; None never.
      data: the iterator behind `steps.draw`, saved and restored with the state.
      metrics: a folder for `metrics.jsonl` and TensorBoard events.
    Raises:
      UserError: a loss that stays infinite or NaN; `pace.best` is no number of the evaluation; the
        best parameters were asked for and cannot be read.
      Terminated: SIGTERM came; the step was finished and saved.
    """
    folder, first = Path(folder), jax.process_index() == 0
    if pace.best and evaluate is None:
        raise UserError(f"best is {pace.best!r}, but there are no episodes to evaluate on")
    recent: collections.deque = collections.deque(maxlen=LOG_EVERY)

    def keep_batch(number: int) -> str:
        kept = dict(recent)
        batch = kept[number] if number in kept else steps.draw(number)
        name = "bad_batch.npz" if first else f"bad_batch_{jax.process_index()}.npz"
        with atomic.writing(folder / name):
            np.savez(folder / name, **by_place(batch))
        return f"its last batch is in {folder / name}"

    with (
        finish_first() as notice,
        Checkpoints(folder / "checkpoints", steps.facts) as checkpoints,
        _Best(folder / "best", steps.facts, pace.best) as best,
    ):
        last = checkpoints.latest_valid(state)
        found: dict[str, float] = {}
        if last is not None:
            state = _on_devices(last.state)
            found = last.metadata.get("validation", {})
            best.values = last.metadata.get("bests", {})
            if data is not None:
                data.set_state(last.data)
        begun = int(state.step)
        resumed = None if last is None else begun
        log = StepLog(metrics if first else None, steps.name, resumed, keep_batch)
        title = steps.name.replace("_", " ")
        with log, bar(total=steps.total, desc=title, unit="step", initial=begun) as progress:
            for number in range(begun, steps.total):
                batch = steps.draw(number)
                if data is not None:
                    recent.append((number, batch))
                state, numbers = steps.step(state, number, batch)
                log.add(number, numbers)
                done = number + 1
                end = done in steps.ends or done == steps.total
                stop = notice.reached(done)
                if done % LOG_EVERY == 0 or end or stop:
                    told = steps.told(number)
                    progress.set_postfix(**told, loss=log.flush(**told)["loss"])
                every = pace.evaluate_every
                if evaluate is not None and (end or (every and done % every == 0)):
                    found = evaluate(state.params, done)
                    log.write(done, {f"validation/{k}": v for k, v in found.items()})
                    best.offer(done, state.params, found)
                if done % pace.checkpoint_every == 0 or end or stop:
                    kept = {"validation": found, "bests": dict(best.values)}
                    given = None if data is None else data.get_state()
                    checkpoints.save(done, state, kept, data=given)
                progress.update(1)
                if stop and done < steps.total:
                    checkpoints.wait()
                    note(f"{title}: asked to stop; saved after step {done} of {steps.total}")
                    raise Terminated
        if pace.final == "best":
            params, found = best.read(state.params)
            state = dataclasses.replace(state, params=params)
    return state, found


class _Best:
    """The parameters of the best evaluation so far, in a folder of their own; of some keys of the
    parameters, each in its own. values: the best number by key, "" being all parameters."""

    def __init__(self, folder: Path, facts: Any, metric: str | Mapping[str, str]):
        self._metrics = {"": metric} if isinstance(metric, str) else dict(metric)
        self._metrics = {key: name for key, name in self._metrics.items() if name}
        self.values: dict[str, float] = {}
        self._checkpoints = {k: Checkpoints(folder / k, facts, keep=1) for k in self._metrics}

    def __enter__(self) -> _Best:
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.ExitStack() as stack:
            for one in self._checkpoints.values():
                stack.callback(one.close)

    def offer(self, step: int, params: Any, found: dict[str, float]) -> None:
        """Keeps `params` if their evaluation is better than all before; a tie keeps the earlier,
        and a number that is not finite is never the best."""
        for key, name in self._metrics.items():
            if name not in found:
                raise UserError(f"best is {name!r}: {did_you_mean(name, found)}")
            sign, best = -1 if name.rsplit("/")[-1] in LOWER else 1, self.values.get(key)
            if not math.isfinite(found[name]) or (
                best is not None and sign * found[name] <= sign * best
            ):
                continue
            self.values[key] = found[name]
            own = params[key] if key else params
            self._checkpoints[key].save(step, own, {"validation": found})

    def read(self, like: Any) -> tuple[Any, dict[str, float]]:
        """The best parameters and their evaluation."""
        params, found = dict(like) if isinstance(like, Mapping) else like, {}
        for key, checkpoints in self._checkpoints.items():
            kept = checkpoints.latest_valid(like[key] if key else like)
            if kept is None:
                raise UserError(
                    f"the best parameters in {checkpoints.folder} cannot be read: choose "
                    "final=last, or delete the checkpoints and train again"
                )
            own, numbers = _on_devices(kept.state), kept.metadata["validation"]
            if not key:
                return own, numbers
            params[key] = own
            found |= {k: v for k, v in numbers.items() if k.startswith(f"{key}/")}
        return params, found


def _on_devices(tree: Any) -> Any:
    """Leaves as jax.Arrays; those that are, which other processes may hold in part, as they are."""
    return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x), tree)


def by_place(batch: Any) -> dict[str, np.ndarray]:
    """The arrays of a batch by their places in it ("tokens", "progress.tokens", ...)."""
    flat = jax.tree_util.tree_leaves_with_path(batch)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(x) for path, x in flat
    }
