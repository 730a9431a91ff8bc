"""Attention kernels against plain XLA; splash runs step by step in Pallas' interpreter."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrm_jax.benchmarks.parity_cases import hf_config
from lrm_jax.parallel.mesh import ROW_AXES
from lrm_jax.qwen3_vl import Config, Qwen3VL, init_params, kernels
from lrm_jax.qwen3_vl.attention import Mask, dot_product_attention
from lrm_jax.run.errors import UserError

splash = functools.partial(kernels.splash, rows=ROW_AXES, interpret=True)

# Online softmax takes the same sums in blocks: some 10 roundings of 6e-8 of numbers of order 1, a
# few more where exp amplifies an error of a score of order 10.
BOUND = 5e-6


def arrays(length, heads, groups, dim, rows=2):
    rng = np.random.default_rng(length + dim)

    def one(count):
        return jnp.asarray(rng.normal(size=(rows, length, count, dim)), jnp.float32)

    return one(heads), one(groups), one(groups)


def tree(length):
    """A token tree: all see the first third, two branches behind it do not see each other."""
    third = length // 3
    pattern = np.tril(np.ones((length, length), bool))
    pattern[2 * third :, third : 2 * third] = False
    return pattern


VALID = np.ones((2, 40), bool)
VALID[0, :7] = VALID[1, 31:] = False  # padding on either side
CASES = {
    "decoder, padded": (40, 4, 2, 16, Mask(valid=VALID, causal=True)),
    "decoder, several blocks": (640, 2, 1, 128, Mask(causal=True)),
    "token tree, known": (40, 4, 2, 16, Mask(valid=VALID, pattern=tree(40))),
    "token tree, at run time": (40, 4, 2, 16, Mask(valid=VALID, pattern=jnp.asarray(tree(40)))),
    "images": (36, 2, 2, 72, None),
    "images, padded": (40, 2, 2, 72, Mask(valid=VALID)),
}


@pytest.mark.parametrize("name", CASES)
def test_splash_is_plain_attention(name):
    length, heads, groups, dim, mask = CASES[name]
    given = arrays(length, heads, groups, dim)
    valid = np.ones((2, length), bool) if mask is None or mask.valid is None else mask.valid
    weight = np.asarray(valid, np.float32)[:, :, None, None]

    def loss(attend, given, pattern):
        out = attend(*given, mask if pattern is None else mask.replace(pattern=pattern))
        return jnp.sum(out * out * weight), out * weight

    # Only what is an argument of the program is not known when it is compiled.
    later = mask.pattern if name == "token tree, at run time" else None
    with jax.default_matmul_precision("highest"):
        found, expected = (
            jax.jit(jax.value_and_grad(functools.partial(loss, f), has_aux=True))(given, later)
            for f in (splash, dot_product_attention)
        )
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.isfinite(ours).all()
        scale = float(np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=BOUND * scale)


@pytest.mark.parametrize("name", ["decoder, padded", "images", "token tree, known"])
def test_the_fused_call_means_the_same(name):
    """cuDNN needs its GPU; JAX's own arithmetic behind the same call does not."""
    length, heads, groups, dim, mask = CASES[name]
    given = arrays(length, heads, groups, dim)
    dense = None if mask is None else mask.dense(length)
    with jax.default_matmul_precision("highest"):
        found = kernels.fused(*given, dense, "xla")
        expected = dot_product_attention(*given, mask)
    seen = np.ones((2, length), bool) if mask is None else VALID
    np.testing.assert_allclose(found[seen], expected[seen], rtol=0, atol=BOUND)


def test_the_model_attends_through_its_setting(monkeypatch):
    """The decoder goes through splash with its padding, and gives the same hidden states."""
    calls = []

    def counted(query, key, value, mask, *, rows):
        calls.append(query.shape)
        return kernels_splash(query, key, value, mask, rows=rows, interpret=True)

    kernels_splash = kernels.splash
    monkeypatch.setattr(kernels, "splash", counted)
    monkeypatch.setattr("lrm_jax.qwen3_vl.attention._platform", lambda: "tpu")
    model = Qwen3VL(Config.from_hf(hf_config(text={"num_hidden_layers": 4}).to_dict()))
    params = init_params(model, jax.random.key(0))
    valid = np.ones((2, 12), bool)
    valid[0, :3] = False
    tokens = np.random.default_rng(0).integers(0, 50, (2, 12)).astype(np.int32)
    positions = np.broadcast_to(np.arange(12, dtype=np.int32), (3, 2, 12))
    given = tokens, positions, valid, np.full((2, 12), -1, np.int32), None
    plain = model.apply({"params": params}, *given, method="hidden")
    assert not calls
    found = model.clone(attention="splash").apply({"params": params}, *given, method="hidden")
    assert calls
    # A few layers, each within the bound.
    np.testing.assert_allclose(found[valid], plain[valid], rtol=0, atol=20 * BOUND)


@pytest.mark.parametrize(
    ("name", "says"), [("splash", "TPU"), ("cudnn", "GPU"), ("flash", "unknown")]
)
def test_what_cannot_run_is_refused(name, says):
    given = arrays(8, 2, 1, 8)
    with pytest.raises(UserError, match=says):
        dot_product_attention(*given, None, implementation=name)
