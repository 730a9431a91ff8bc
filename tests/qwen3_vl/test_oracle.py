"""The network against transformers in float32: logits, vision features, gradients."""

import gc

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lrm_jax.benchmarks.parity_cases import (
    CASES,
    batch_of,
    hf_gradients,
    next_token_loss,
    relative,
    tensors,
)
from lrm_jax.qwen3_vl import Qwen3VL, generate
from lrm_jax.qwen3_vl.batching import pack

from .conftest import QUICK

# A float32 sum of some hundred terms errs by about 1e-6 of its scale, and eleven layers add a few
# of those; a wrong GELU, axis or epsilon shows at 1e-4 and above.
LOGITS, FEATURES, GRADIENTS = 1e-5, 1e-5, 2e-5


@pytest.mark.parametrize("case", CASES)
def test_logits(untied, case):
    assert untied.error(batch_of(CASES[case])) < LOGITS


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_padded(untied, side):
    rows = [[2, ("image", 6, 4), 3], [4, ("image", 4, 4), 2, ("image", 4, 8), 9]]
    assert untied.error(batch_of(rows, side)) < LOGITS


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_padded_text(untied, side):
    assert untied.error(batch_of([[4], [11]], side)) < LOGITS


def test_logits_tied(tied):
    assert tied.error(batch_of(CASES["two_sizes"])) < LOGITS


def test_padding_is_not_seen(untied):
    """A row's logits do not depend on the other rows, nor on which side is padded."""
    rows = [[2, ("image", 6, 4), 3], [4, ("image", 4, 4), 2, ("image", 4, 8), 9]]
    left, right = batch_of(rows, "left"), batch_of(rows, "right")
    alone = batch_of(rows[:1])
    short = alone["input_ids"].shape[1]
    alone["input_ids"] = right["input_ids"][:1, :short]
    alone["pixel_values"] = right["pixel_values"][:24]
    expected = untied.ours.logits(**alone)[0]
    # The same sums over other paddings: only their order of summation may differ.
    np.testing.assert_allclose(untied.ours.logits(**right)[0, :short], expected, atol=2e-5)
    np.testing.assert_allclose(untied.ours.logits(**left)[0, -short:], expected, atol=2e-5)


def test_vision_features(untied):
    batch = batch_of([[2, ("image", 6, 4), 1, ("image", 4, 8), 2, ("image", 10, 6)]])
    with torch.no_grad():
        given = tensors(batch)
        out = untied.hf.model.get_image_features(given["pixel_values"], given["image_grid_thw"])
    packed = pack(untied.ours.config, batch)
    model = untied.ours.model
    encode = jax.jit(
        lambda p, inputs: model.apply({"params": p}, inputs, method="encode"),
        compiler_options=QUICK,
    )
    got = encode(untied.ours.params, packed.vision)
    chex.assert_shape(got.deepstack, (3, *got.embeds.shape))
    for n, expected in enumerate(out.pooler_output):
        assert relative(got.embeds[n, : len(expected)], expected.numpy()) < FEATURES
    for k, level in enumerate(out.deepstack_features):
        for n, expected in enumerate(level):
            assert relative(got.deepstack[k, n, : len(expected)], expected.numpy()) < FEATURES


@pytest.mark.parametrize(
    "which,remat",
    [
        ("untied", "none"),
        ("tied", "full"),
        pytest.param("untied", "dots", marks=pytest.mark.slow),
    ],
)
def test_gradients(which, remat, request):
    pair = request.getfixturevalue(which)
    batch = batch_of([[3, ("image", 6, 4), 4], [2, ("image", 4, 4), 2, ("image", 4, 8), 6]], "left")
    config = pair.ours.config
    packed, model = pack(config, batch), Qwen3VL(config, remat=remat)

    def loss(params):
        return next_token_loss(model, params, packed)

    value, got = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(pair.ours.params)
    expected_value, expected = hf_gradients(pair, batch)
    assert abs(float(value) - expected_value) < 1e-5 * abs(expected_value)
    flat = {tuple(k.key for k in p): v for p, v in jax.tree_util.tree_leaves_with_path(got)}
    assert flat.keys() == expected.keys()
    errors = {path: relative(flat[path], expected[path]) for path in expected}
    worst = max(errors, key=errors.get)
    assert errors[worst] < GRADIENTS, (worst, errors[worst])


def test_no_recompilation_within_a_bucket(untied):
    untied.ours.logits(**batch_of([[3, ("image", 6, 4), 5]]))
    gc.collect()  # entries of models that are gone leave the caches now, not below
    before = generate.logits._cache_size()
    for rows in (
        [[8, ("image", 4, 4), 20]],
        [[1, ("image", 8, 8), 1]],
        [[30, ("image", 2, 10), 5]],
    ):
        untied.ours.logits(**batch_of(rows))
    assert generate.logits._cache_size() == before


def test_bfloat16_is_as_close_as_transformers(untied):
    """Rounding differs in detail, so bfloat16 is judged by its distance from float32."""
    from lrm_jax.qwen3_vl import from_pretrained

    batch = batch_of(CASES["two_sizes"])
    exact = untied.hf_logits(batch)
    ours = from_pretrained(untied.folder, dtype="bfloat16")
    chex.assert_type(jax.tree.leaves(ours.params), jnp.bfloat16)
    hf = type(untied.hf).from_pretrained(
        untied.folder, dtype=torch.bfloat16, attn_implementation="eager"
    )
    with torch.no_grad():
        theirs = hf(**tensors(batch)).logits.float().numpy()
    rms = lambda x: float(np.sqrt(np.mean((x - exact) ** 2)))  # noqa: E731
    assert rms(ours.logits(**batch)) < 1.3 * rms(theirs)
