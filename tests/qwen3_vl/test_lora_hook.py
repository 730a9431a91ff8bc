"""The "lora" collection: single and stacked adapters equal weights that have them merged in."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrm_jax.benchmarks.parity_cases import batch_of, relative
from lrm_jax.qwen3_vl import generate, names
from lrm_jax.qwen3_vl.batching import pack
from lrm_jax.qwen3_vl.layers import Linear
from lrm_jax.run.errors import UserError

from .conftest import QUICK

BATCH = batch_of([[2, ("image", 6, 4), 3], [4, ("image", 4, 4), 2, ("image", 4, 8), 9]], "left")
RANK = 3


def put(tree, path, value):
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def get(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def random_adapter(config, seed):
    """Factors for every linear map, in both towers, inside and outside the scans."""
    rng = np.random.default_rng(seed)
    tree = {}
    for leaf in names.leaves(config):
        if leaf.is_kernel:
            *lead, fan_in, fan_out = leaf.tree_shape
            a = rng.normal(0, fan_in**-0.5, (*lead, fan_in, RANK))
            b = rng.normal(0, 0.3, (*lead, RANK, fan_out))
            put(tree, (*leaf.path[:-1], "a"), np.float32(a))
            put(tree, (*leaf.path[:-1], "b"), np.float32(b))
    return tree


def merged(config, params, adapter, scale=1.0):
    out = jax.tree.map(lambda x: x, params)
    for leaf in names.leaves(config):
        if leaf.is_kernel:
            pair = get(adapter, leaf.path[:-1])
            put(out, leaf.path, get(params, leaf.path) + scale * (pair["a"] @ pair["b"]))
    return out


def stack(config, adapters, scale=None):
    tree = {}
    for leaf in names.leaves(config):
        if leaf.is_kernel:
            # Behind the layer axis where there is one: a layer sees [n, in, r].
            axis = int(leaf.stacked)
            for factor in ("a", "b"):
                path = (*leaf.path[:-1], factor)
                put(tree, path, np.stack([get(t, path) for t in adapters], axis))
            if scale is not None:
                shape = (len(leaf.names), len(scale)) if leaf.stacked else (len(scale),)
                value = np.broadcast_to(np.asarray(scale, np.float32), shape)
                put(tree, (*leaf.path[:-1], "scale"), value)
    return tree


@pytest.fixture(scope="module")
def case(untied):
    config = untied.ours.config
    first, second = random_adapter(config, 1), random_adapter(config, 2)
    base = untied.ours.logits(**BATCH)

    def logits_of(params):
        return dataclasses.replace(untied.ours, params=params).logits(**BATCH)

    expected = {
        "first": logits_of(merged(config, untied.ours.params, first)),
        "second": logits_of(merged(config, untied.ours.params, second, 0.5)),
    }
    # The adapters matter, otherwise the comparisons below could not fail.
    assert relative(expected["first"], base) > 0.05
    return first, second, {**expected, None: base}


def test_single_adapter(untied, case):
    first, _, expected = case
    batch = pack(untied.ours.config, BATCH)
    got = generate.logits(untied.ours.model, untied.ours.params, first, batch, None)
    rows, length = BATCH["input_ids"].shape
    real = BATCH["attention_mask"] == 1
    assert relative(got[:rows, :length][real], expected["first"][real]) < 1e-5


def test_stacked_adapters_by_row(untied, case):
    first, second, expected = case
    tree = stack(untied.ours.config, [first, second], scale=[1.0, 0.5])
    ours = dataclasses.replace(untied.ours, adapters=("first", "second"), lora=tree)
    for chosen in (["second", "first"], [None, "second"], ["first", None], None):
        got = ours.logits(**BATCH, adapter=chosen)
        for row, name in enumerate(chosen or [None, None]):
            real = BATCH["attention_mask"][row] == 1
            assert relative(got[row][real], expected[name][row][real]) < 1e-5
    np.testing.assert_array_equal(
        ours.logits(**BATCH, adapter="first"), ours.logits(**BATCH, adapter=["first"] * 2)
    )
    with pytest.raises(UserError, match="did you mean 'second'"):
        ours.logits(**BATCH, adapter="secnd")
    with pytest.raises(ValueError, match="3 rows"):
        ours.logits(**BATCH, adapter=[None] * 3)


def test_generation_sees_the_adapter(untied, case):
    first, second, _ = case
    tree = stack(untied.ours.config, [first, second])
    ours = dataclasses.replace(untied.ours, adapters=("first", "second"), lora=tree)
    got = ours.generate(**BATCH, max_new_tokens=4, adapter=["second", None])
    second_params = merged(untied.ours.config, untied.ours.params, second)
    for row, params in enumerate((second_params, untied.ours.params)):
        alone = dataclasses.replace(untied.ours, params=params)
        np.testing.assert_array_equal(got[row], alone.generate(**BATCH, max_new_tokens=4)[row])


@pytest.mark.slow
def test_gradients_reach_the_factors(untied, case):
    """d/dA and d/dB through the side path, by the chain rule from the merged kernel's gradient."""
    first, _, _ = case
    config, batch = untied.ours.config, pack(untied.ours.config, BATCH)
    weight = np.random.default_rng(0).normal(size=(1, 1, config.text_config.vocab_size))
    logits = generate.logits.__wrapped__

    def loss(params, lora):
        out = logits(untied.ours.model, params, lora, batch, None)
        return jnp.sum(out * weight * batch.valid[..., None]) / batch.valid.sum()

    got = jax.jit(jax.grad(loss, 1), compiler_options=QUICK)(untied.ours.params, first)
    whole = merged(config, untied.ours.params, first)
    kernels = jax.jit(jax.grad(loss), static_argnums=1, compiler_options=QUICK)(whole, None)
    for leaf in names.leaves(config):
        if leaf.is_kernel:
            kernel, pair = get(kernels, leaf.path), get(first, leaf.path[:-1])
            mine = get(got, leaf.path[:-1])
            assert relative(mine["a"], kernel @ np.swapaxes(pair["b"], -1, -2)) < 2e-5
            assert relative(mine["b"], np.swapaxes(pair["a"], -1, -2) @ kernel) < 2e-5


def test_float32_adapter_over_bfloat16_base():
    """The side path is not rounded to the base's type before it is added."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 8)), jnp.bfloat16)
    a, b = np.float32(rng.normal(size=(8, 2))), np.float32(rng.normal(size=(2, 5)))
    layer = Linear(5, use_bias=False, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(8, 5)), jnp.bfloat16)
    variables = {"params": {"kernel": kernel}, "lora": {"a": a, "b": b, "scale": np.float32(2)}}
    got = layer.apply(variables, x)
    wide = np.asarray(x, np.float32)
    base = np.asarray(jnp.dot(x, kernel), np.float32)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, jnp.asarray(base + 2 * (wide @ a @ b), jnp.bfloat16))


def test_stacked_adapters_need_ids():
    variables = {"params": {"kernel": np.ones((4, 4))}, "lora": {"a": np.ones((2, 4, 1))}}
    variables["lora"]["b"] = np.ones((2, 1, 4))
    with pytest.raises(ValueError, match="adapter_ids"):
        Linear(4, use_bias=False).apply(variables, np.ones((3, 4)))
