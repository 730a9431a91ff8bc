"""The adapter step on one device: what it computes, what it changes and what it leaves alone."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from lrm_jax import lora
from lrm_jax.reward_training.adapters import step_function
from lrm_jax.reward_training.step import TrainState

from . import tiny

QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture(scope="module")
def step():
    optimiser = lora.only_trainable(optax.adam(0.02))
    made = step_function(tiny.model("none"), optimiser, loss=tiny.lesson)
    compiled = jax.jit(made, compiler_options=QUICK)

    def start():
        tree = {"lora": tiny.with_scale(tiny.adapters())}
        return TrainState(tree, optimiser.init(tree), np.int32(0))

    return compiled, start


def test_only_the_factors_are_learnt(step):
    run, state = step[0], step[1]()
    after, _ = run(state, tiny.base(), (tiny.tables(), tiny.rows()))
    same = jax.tree_util.tree_map_with_path(
        lambda path, old, new: (path[-1].key, bool(np.array_equal(old, new))),
        state.params, after.params,
    )  # fmt: skip
    found = set(jax.tree.leaves(same, is_leaf=lambda x: isinstance(x, tuple)))
    assert found == {("a", False), ("b", False), ("scale", True)}


def test_steps_learn_and_bad_numbers_change_nothing(step):
    run, state = step[0], step[1]()
    base, tables, rows = tiny.base(), tiny.tables(), tiny.rows()
    losses = []
    for _ in range(6):
        state, metrics = run(state, base, (tables, rows))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0], losses
    assert int(state.step) == 6
    bad = jax.tree.map(lambda x: x, base)
    bad["embed_tokens"] = np.full_like(base["embed_tokens"], np.nan)
    after, metrics = run(state, bad, (tables, rows))
    assert not np.isfinite(float(metrics["loss"]))
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, after.optimiser, state.optimiser)


def test_rows_without_a_label_do_not_count(step):
    run, start = step
    base, tables, rows = tiny.base(), tiny.tables(), tiny.rows()
    _, metrics = run(start(), base, (tables, rows))
    other = rows.frames.copy()
    other[np.isnan(rows.labels)] = 255 - other[np.isnan(rows.labels)]
    _, same = run(start(), base, (tables, rows.replace(frames=other)))
    assert float(same["loss"]) == float(metrics["loss"])
    _, differs = run(start(), base, (tables, rows.replace(frames=255 - rows.frames)))
    assert float(differs["loss"]) != float(metrics["loss"])
    _, nothing = run(start(), base, (tables, rows.replace(labels=np.full(8, np.nan, np.float32))))
    assert float(nothing["loss"]) == 0.0 and float(nothing["grad_norm"]) == 0.0
