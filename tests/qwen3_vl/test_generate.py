"""Greedy generation and the key/value cache."""

import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lrm_jax.benchmarks.parity_cases import batch_of, relative, tensors
from lrm_jax.qwen3_vl import empty_cache, generate
from lrm_jax.qwen3_vl.batching import pack

from .conftest import QUICK

ROWS = [[2, ("image", 6, 4), 3], [4, ("image", 4, 4), 2, ("video", 1, 4, 8), 9]]


def hf_generate(pair, batch, count, **settings):
    with torch.no_grad():
        out = pair.hf.generate(
            **tensors(batch), max_new_tokens=count, do_sample=False, **settings
        ).numpy()
    return out[:, batch["input_ids"].shape[1] :]


def test_tokens_and_stops(untied):
    batch = batch_of(ROWS, "left")
    free = untied.ours.generate(**batch, max_new_tokens=7)
    assert free.dtype == np.int32
    np.testing.assert_array_equal(free, hf_generate(untied, batch, 7))
    # Tokens that occur, so that the rows stop at different places, and before the limit.
    stops = (int(free[0, 1]), int(free[1, 3]))
    assert free[0, 1] not in free[1, :3], "choose another seed"
    ours = dataclasses.replace(
        untied.ours, config=dataclasses.replace(untied.ours.config, eos_token_id=stops)
    )
    got = ours.generate(**batch, max_new_tokens=7)
    expected = hf_generate(untied, batch, 7, eos_token_id=list(stops), pad_token_id=stops[0])
    assert got.shape[1] < 7
    np.testing.assert_array_equal(got, expected)


def test_right_padding_continues_like_left_padding(untied):
    left, right = batch_of(ROWS, "left"), batch_of(ROWS, "right")
    np.testing.assert_array_equal(
        untied.ours.generate(**right, max_new_tokens=7),
        untied.ours.generate(**left, max_new_tokens=7),
    )


def test_text_only(tied):
    batch = batch_of([[5], [9]], "left")
    np.testing.assert_array_equal(
        tied.ours.generate(**batch, max_new_tokens=5), hf_generate(tied, batch, 5)
    )


def test_no_recompilation_for_another_limit(untied):
    batch = batch_of(ROWS, "left")
    untied.ours.generate(**batch, max_new_tokens=7)
    gc.collect()  # entries of models that are gone leave the caches now, not below
    before = generate.greedy._cache_size()
    untied.ours.generate(**batch, max_new_tokens=3)
    assert generate.greedy._cache_size() == before


def test_limit_must_be_positive(untied):
    with pytest.raises(ValueError, match="max_new_tokens"):
        untied.ours.generate(**batch_of([[4]]), max_new_tokens=0)


def test_cache_in_two_parts_equals_one_run(untied):
    """A prefix with one image, then a suffix with another, as prefix caching uses it."""
    ours = untied.ours
    batch = pack(ours.config, batch_of([[2, ("image", 4, 4), 8, ("image", 4, 6), 5]] * 2))
    variables, model, cut = {"params": ours.params}, ours.model, 11

    def whole(variables):
        features = model.apply(variables, batch.vision, method="encode")
        return features, model.apply(
            variables, batch.tokens, batch.positions, batch.valid, batch.visual_index, features,
            method="hidden",
        )  # fmt: skip

    def parts(variables, features):
        cache = empty_cache(ours.config, 2, batch.tokens.shape[1] + 3)
        out = []
        for place in (slice(0, cut), slice(cut, None)):
            hidden, cache = model.apply(
                variables, batch.tokens[:, place], batch.positions[:, :, place],
                batch.valid[:, place], batch.visual_index[:, place], features, cache,
                method="extend",
            )  # fmt: skip
            out.append(hidden)
        return jnp.concatenate(out, 1), cache

    features, expected = jax.jit(whole, compiler_options=QUICK)(variables)
    got, cache = jax.jit(parts, compiler_options=QUICK)(variables, features)
    assert relative(got[batch.valid], expected[batch.valid]) < 1e-5
    assert int(cache.length) == batch.tokens.shape[1]
    np.testing.assert_array_equal(cache.valid[:, :-3], batch.valid)
    assert not cache.valid[:, -3:].any()
