"""The training step sees what the engine scores, the episode's first frame included."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rewards.conftest import SENTENCES, TINY, episode_heads

from lrm_jax.qwen3_vl import Qwen3VL, init_params
from lrm_jax.reward_training.batches import Batch
from lrm_jax.reward_training.nano import nano_config
from lrm_jax.reward_training.step import TrainState, make_rows, make_step, predict
from lrm_jax.rewards import scoring
from lrm_jax.rewards.engine import RewardEngine
from lrm_jax.rewards.model import NANO_FOLDER
from lrm_jax.rewards.tokenizer import Tokenizer


@pytest.mark.slow
def test_training_asks_what_the_engine_asks():
    tokenizer = Tokenizer.from_folder(NANO_FOLDER)
    model = Qwen3VL(nano_config(TINY, tokenizer))
    params = init_params(model, jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 200))
    params = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(next(keys), x.shape), params)
    heads = episode_heads()
    rng = np.random.default_rng(0)
    store = rng.integers(0, 256, (20, 32, 32, 3), np.uint8)
    shown = np.array([[3, 7, 1], [0, 12, 19]], np.int32)  # initial frame, then two judged ones
    batch = Batch(
        frames=shown,
        sentence=np.array([1, 2], np.int32),
        labels=np.full((2, 2, 2), np.nan, np.float32),
        pairs=np.array([[[1, 2], [0, 1]]] * 2, np.int32),
        closer=np.full((2, 2), np.nan, np.float32),
    )
    rows = make_rows(heads, 2, SENTENCES, tokenizer, model.config, (32, 32))
    assert rows.shows_initial
    with jax.default_matmul_precision("highest"):
        answers, compared = jax.jit(
            lambda p, tables, frames, batch: predict(model, rows, p, tables, frames, batch)
        )(params, rows.tables, jnp.asarray(store), batch)
        engine = RewardEngine(model, heads, tokenizer, (32, 32), SENTENCES, frames_per_row=1)
        scores = engine.score(params, store[shown].swapaxes(0, 1), batch.sentence)
    named = dict(zip([h.name for h in rows.heads], answers, strict=True))
    progress = scoring.normalise(named["progress"]).probability
    np.testing.assert_allclose(progress.swapaxes(0, 1), scores.distribution[1:], atol=1e-5)
    done = scoring.normalise(named["completion"]).probability[..., 1]
    np.testing.assert_allclose(done.T, scores.completion[1:], atol=1e-5)
    # The engine averages both orders; here the second one is asked for by hand.
    swapped = batch.replace(pairs=batch.pairs[..., ::-1])
    with jax.default_matmul_precision("highest"):
        _, other = predict(model, rows, params, rows.tables, jnp.asarray(store), swapped)
    both = scoring.swap_average(scoring.normalise(compared), scoring.normalise(other))
    got = both.probability[..., 1] - both.probability[..., 0]
    np.testing.assert_allclose(got[:, 0], scores.contrastive[2], atol=2e-5)
    np.testing.assert_allclose(got[:, 1], scores.contrastive[1], atol=2e-5)
    assert float(jnp.abs(got).max()) > 1e-3


@pytest.mark.slow  # two programs with gradients
def test_parts_of_a_batch_have_the_losses_and_gradients_of_the_whole():
    """Also where the parts have different numbers of labels, or none; with plain descent the
    parameters move by the gradients."""
    tokenizer = Tokenizer.from_folder(NANO_FOLDER)
    model = Qwen3VL(nano_config(TINY, tokenizer))
    rng = np.random.default_rng(0)
    store = jnp.asarray(rng.integers(0, 256, (20, 32, 32, 3), np.uint8))
    rows = make_rows(episode_heads(), 1, SENTENCES, tokenizer, model.config, (32, 32))
    labels = rng.uniform(0, 1, (4, 2, len(rows.heads))).astype(np.float32)
    labels[0], labels[1, 0], labels[2, :, 1] = np.nan, np.nan, np.nan
    batch = Batch(
        frames=rng.integers(0, 20, (4, 3)).astype(np.int32),
        sentence=np.array([0, 1, 2, 1], np.int32),
        labels=labels,
        pairs=np.array([[[1, 2]]] * 4, np.int32),
        closer=np.array([[1], [np.nan], [-1], [1]], np.float32),
    )
    weights = {h.name: 1.0 + i for i, h in enumerate([*rows.heads, rows.contrastive])}
    descent, found = optax.sgd(1.0), []
    for parts in (1, 2):
        params = init_params(model, jax.random.key(0))
        state = TrainState(params, descent.init(params), jnp.zeros((), jnp.int32))
        step = make_step(model, rows, weights, descent, 0.05, 0.0, 0, parts)
        with jax.default_matmul_precision("highest"):
            found.append(step(state, rows.tables, store, batch))
    (whole, numbers), (cut, others) = found
    start = init_params(model, jax.random.key(0))
    # A sum in another order: about 50 products follow one another, forward and backward.
    for name in numbers:
        np.testing.assert_allclose(others[name], numbers[name], rtol=8e-5)
    for a, b, c in zip(*map(jax.tree.leaves, (cut.params, whole.params, start)), strict=True):
        largest = float(jnp.abs(b - c).max())
        # One unit in the last place of the parameter that the gradient was added to.
        slack = 2 * np.finfo(np.float32).eps * float(jnp.abs(c).max())
        np.testing.assert_allclose(a, b, atol=8e-5 * largest + slack)
