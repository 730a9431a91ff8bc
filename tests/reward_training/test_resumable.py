"""The loop around a step that only adds: what is kept, saved, restored and returned."""

from __future__ import annotations

import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from lrm_jax.reward_training import resumable
from lrm_jax.reward_training.resumable import Pace, Steps
from lrm_jax.reward_training.step import TrainState
from lrm_jax.run import metrics
from lrm_jax.run.errors import UserError
from lrm_jax.run.preemption import Terminated

ERRORS = (0.5, 0.2, 0.3, 0.2, 0.4, 0.6)  # after each step


def beginning():
    return TrainState({"w": jnp.zeros(2)}, (), jnp.zeros((), jnp.int32))


def adding(draw=lambda number: {"x": np.float32(number)}, total=6, before=lambda number: None):
    """Each step adds its batch."""

    def step(state, number, batch):
        before(number)
        params = {"w": state.params["w"] + batch["x"]}
        loss = jnp.asarray(batch["x"])
        return TrainState(params, (), state.step + 1), {"loss": loss, "finite": jnp.isfinite(loss)}

    return Steps("adding", total, {"facts": 1}, draw, step)


def evaluate(params, done):
    return {"progress/mae": ERRORS[done - 1], "accuracy": 1 - ERRORS[done - 1]}


@pytest.mark.parametrize("metric", ["progress/mae", "accuracy"])
@pytest.mark.parametrize("killed", [None, 2, 3, 5])
def test_the_best_is_kept(tmp_path, metric, killed):
    """Less of an error, more of an accuracy; of equals the earlier; also through a kill."""

    def go(final="best", before=lambda number: None):
        pace = Pace(2, 1, best=metric, final=final)
        return resumable.run(
            adding(before=before), beginning(), tmp_path, pace, evaluate=evaluate, metrics=tmp_path
        )

    def die(number):
        if number == killed:
            raise KeyboardInterrupt

    if killed is not None:
        with pytest.raises(KeyboardInterrupt):
            go(before=die)
    for _ in range(2):  # the second time from the disk alone
        state, found = go()
        assert found["progress/mae"] == 0.2
        np.testing.assert_array_equal(state.params["w"], [1, 1])  # 0 + 1
        assert int(state.step) == 6
    state, found = go(final="last")
    np.testing.assert_array_equal(state.params["w"], [15, 15])
    assert found["progress/mae"] == 0.6
    rows = metrics.read(tmp_path, "adding")
    assert [r["step"] for r in rows if "validation/accuracy" in r] == [1, 2, 3, 4, 5, 6]


def test_a_best_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match="did you mean 'progress/mae'"):
        resumable.run(
            adding(), beginning(), tmp_path, Pace(2, 1, best="progress/mea"), evaluate=evaluate
        )
    with pytest.raises(UserError, match="no episodes to evaluate"):
        resumable.run(adding(), beginning(), tmp_path, Pace(2, 1, best="accuracy"))
    with pytest.raises(UserError, match="name the number"):
        Pace(2, final="best")
    with pytest.raises(UserError, match="choose last or best"):
        Pace(2, final="first")


class Drawn:
    """A data iterator whose batches depend on all that it gave before."""

    def __init__(self):
        self.state = 1

    def __call__(self, number):
        self.state = self.state * 7 % 101
        return {"x": np.float32(self.state)}

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


def test_sigterm_saves_state_and_iterator(tmp_path):
    """The step is finished and saved, between checkpoints; then the run goes on as if nothing had
    been."""
    whole, _ = resumable.run(adding(Drawn()), beginning(), tmp_path / "whole", Pace(100))
    begun = []

    def watched(number):
        begun.append(number)
        if number == 3 and begun.count(3) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    source = Drawn()
    with pytest.raises(Terminated):
        resumable.run(
            adding(source, before=watched), beginning(), tmp_path / "run", Pace(100), data=source
        )
    assert signal.getsignal(signal.SIGTERM) is before
    source = Drawn()
    state, _ = resumable.run(
        adding(source, before=watched), beginning(), tmp_path / "run", Pace(100), data=source
    )
    assert begun == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(state.params["w"], whole.params["w"])


def test_a_lost_batch_of_an_iterator_is_kept(tmp_path):
    class Broken(Drawn):
        def __call__(self, number):
            super().__call__(number)
            return {"x": np.float32(np.nan if number >= 2 else 1), "n": np.int32(self.state)}

    source, other = Broken(), Drawn()
    with pytest.raises(UserError, match=r"not a finite number for 5 steps up to 6.*bad_batch\.npz"):
        resumable.run(adding(source, total=12), beginning(), tmp_path, Pace(100), data=source)
    for number in range(7):
        other(number)
    assert np.load(tmp_path / "bad_batch.npz")["n"] == other.state
