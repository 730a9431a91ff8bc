"""Configuration, attention and rotary details that need no checkpoint; random configurations."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_vl import modeling_qwen3_vl

from lrm_jax.benchmarks.parity_cases import TEXT, VISION, batch_of, hf_config, make_pair
from lrm_jax.qwen3_vl import (
    Config,
    Qwen3VL,
    TextConfig,
    VisionConfig,
    VisionInputs,
    grid_tables,
    init_params,
    rope,
)
from lrm_jax.qwen3_vl.attention import dot_product_attention
from lrm_jax.qwen3_vl.layers import LayerNorm, RMSNorm
from lrm_jax.qwen3_vl.text import num_unrolled
from lrm_jax.qwen3_vl.vision import segments
from lrm_jax.run.errors import UserError

from .conftest import QUICK

# As the hub has it (transformers 4.57): rope_theta beside rope_scaling.
HUB = {
    "model_type": "qwen3_vl",
    "tie_word_embeddings": True,
    "image_token_id": 90,
    "text_config": {
        "model_type": "qwen3_vl_text",
        **{k: v for k, v in TEXT.items() if k != "rope_parameters"},
        "rope_theta": 5000000,
        "rope_scaling": {
            "rope_type": "default",
            "mrope_interleaved": True,
            "mrope_section": [6, 3, 3],
        },
        "eos_token_id": 7,
    },
    "vision_config": {**VISION, "model_type": "qwen3_vl"},
}


def test_both_spellings_of_the_rotary_settings():
    old = Config.from_hf(HUB)
    new = Config.from_hf(transformers.Qwen3VLConfig(**HUB).to_dict())
    assert old == new
    assert old.text_config.rope_theta == 5e6 and old.text_config.mrope_section == (6, 3, 3)
    assert old.eos_token_id == (7,) and old.tie_word_embeddings


def test_to_hf_is_read_by_transformers_and_by_us():
    config = Config.from_hf(HUB)
    assert Config.from_hf(config.to_hf()) == config
    theirs = transformers.Qwen3VLConfig(**config.to_hf())
    assert Config.from_hf(theirs.to_dict()) == config
    assert theirs.text_config.rope_parameters["rope_theta"] == 5e6
    assert theirs.text_config.rope_parameters["mrope_section"] == [6, 3, 3]


@pytest.mark.parametrize(
    "part,change,match",
    [
        ("text_config", {"rope_theta": None, "rope_scaling": None}, "rope_theta"),
        ("text_config", {"rope_scaling": {"rope_type": "yarn"}}, "yarn"),
        ("text_config", {"hidden_act": "gelu"}, "hidden_act"),
        ("text_config", {"num_key_value_heads": 3}, "num_attention_heads"),
        ("text_config", {"hidden_size": 32}, "out_hidden_size"),
        ("vision_config", {"deepstack_visual_indexes": [1, 6]}, "deepstack"),
        ("vision_config", {"num_position_embeddings": 24}, "square"),
        ("vision_config", {"patch_size": [4, 8]}, "patch_size"),
        ("vision_config", {"num_heads": 8}, "divisible by 4"),
    ],
)
def test_unsupported_configurations(part, change, match):
    with pytest.raises(UserError, match=match):
        Config.from_hf({**HUB, part: {**HUB[part], **change}})


def test_interleaved_axes_of_the_released_models():
    axes = rope.mrope_axes(128, (24, 20, 20))
    np.testing.assert_array_equal(axes[:60], [0, 1, 2] * 20)
    np.testing.assert_array_equal(axes[60:], 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_normalisations_of_small_and_shifted_inputs(dtype):
    """Inputs as small as the epsilons, and a mean far above the spread (E[x^2]-E[x]^2 fails)."""
    rng = np.random.default_rng(0)
    scale, bias = np.float32(rng.normal(size=(2, 8)))
    for x in (1e-3 * rng.normal(size=(200, 8)), 300 + rng.normal(size=(200, 8))):
        x = torch.tensor(x, dtype=getattr(torch, dtype))
        ours = jnp.asarray(x.float().numpy(), dtype)
        kinds = dict(dtype=dtype, param_dtype=dtype)
        weight, shift = (torch.tensor(v).to(x.dtype) for v in (scale, bias))
        expected = torch.nn.functional.layer_norm(x, (8,), weight, shift, 1e-6)
        got = LayerNorm(**kinds).apply({"params": {"scale": scale, "bias": bias}}, ours)
        # In bfloat16 one rounding at the end; both sides may round a tie differently.
        tolerance = 1e-4 if dtype == "float32" else 2**-7
        np.testing.assert_allclose(
            np.float32(got), expected.float(), rtol=tolerance, atol=tolerance
        )
        norm = modeling_qwen3_vl.Qwen3VLTextRMSNorm(8, 1e-6).to(x.dtype)
        norm.weight.data = weight
        got = RMSNorm(1e-6, **kinds).apply({"params": {"scale": scale}}, ours)
        expected = norm(x).detach().float()
        if dtype == "float32":
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
        else:
            # The same two roundings in the same order give the same bits, but for the rare value
            # that float32 noise carries over a rounding boundary; one rounding alters a quarter.
            assert np.mean(np.float32(got) == expected.numpy()) > 0.99


def test_segments():
    config = VisionConfig(depth=24, deepstack_visual_indexes=(5, 11, 17))
    assert segments(config) == [(0, 6), (6, 6), (12, 6), (18, 6)]
    config = VisionConfig(depth=4, deepstack_visual_indexes=(3, 0))
    assert segments(config) == [(0, 1), (1, 3)]
    assert segments(VisionConfig(depth=4, deepstack_visual_indexes=())) == [(0, 4)]


def test_attention_where_nothing_may_be_seen():
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=(2, 3, n, 4))) for n in (4, 2, 2))
    mask = np.zeros((2, 3, 3), bool)
    mask[0] = np.tri(3)

    def total(query, key, value):
        return jnp.sum(dot_product_attention(query, key, value, mask) ** 2)

    chex.assert_tree_all_finite(jax.grad(total, (0, 1, 2))(query, key, value))
    out = dot_product_attention(query, key, value, mask)
    np.testing.assert_allclose(out[0, 0, :2], jnp.stack([value[0, 0, 0]] * 2), rtol=1e-6)


def test_initial_parameters_give_sane_activations():
    """Unit-sized hidden states from `init_params`, with either form of the mask."""
    vision = VisionConfig(
        depth=2, hidden_size=32, intermediate_size=48, num_heads=2, patch_size=4,
        out_hidden_size=48, num_position_embeddings=16, deepstack_visual_indexes=(0,),
    )  # fmt: skip
    text = TextConfig(
        vocab_size=32, hidden_size=48, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, mrope_section=(6, 5, 5),
    )  # fmt: skip
    config = Config(vision, text, image_token_id=30, video_token_id=31, tie_word_embeddings=True)
    model = Qwen3VL(config)
    params = init_params(model, jax.random.key(0))
    inputs = VisionInputs(np.zeros((1, 4, 96), np.float32), grid_tables(vision, 2, 2))
    one = np.zeros((1, 1), np.int32)
    theirs = jax.eval_shape(
        lambda rng: model.init(rng, inputs, one, one[None].repeat(3, 0), one == 0, one)["params"],
        jax.random.key(0),
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(params, theirs)
    traced = jax.eval_shape(lambda rng: init_params(model, rng), jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(params, traced)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def hidden(params, valid):
        return model.apply(
            {"params": params}, np.ones((1, 4), np.int32), np.zeros((3, 1, 4), np.int32),
            valid, np.full((1, 4), -1), None, method="hidden",
        )  # fmt: skip

    states = hidden(params, np.ones((1, 4), bool))
    np.testing.assert_allclose(jnp.mean(states**2, -1), 1, rtol=0.05)
    # The same under a whole mask instead of padding flags.
    whole = np.tri(4, dtype=bool)[None]
    np.testing.assert_array_equal(hidden(params, whole), states)


@settings(deadline=None, max_examples=3, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_configurations(data, tmp_path_factory):
    """Architectures unlike any released one: merge 3, few layers, unsorted or no taps, biases."""
    pick = lambda *options: data.draw(st.sampled_from(options))  # noqa: E731
    depth, heads = pick(1, 3, 4), pick(1, 2)
    taps = data.draw(st.permutations(range(depth)))[: pick(0, 1, 2)]
    group, kv, dim = pick(1, 3), pick(1, 2), pick(8, 14)
    row = pick(1, 2)
    side = pick(1, 4, 7)
    vision = dict(
        depth=depth, hidden_size=heads * pick(8, 20), intermediate_size=24, num_heads=heads,
        patch_size=pick(2, 4), temporal_patch_size=pick(1, 2), out_hidden_size=40,
        num_position_embeddings=side**2, deepstack_visual_indexes=list(taps),
    )  # fmt: skip
    rope_parameters = dict(
        rope_type="default", rope_theta=pick(1e4, 1e6), mrope_interleaved=True,
        mrope_section=[dim // 2 - 2 * row, row, row],
    )  # fmt: skip
    text = dict(
        hidden_size=40, num_hidden_layers=pick(1, 3), num_attention_heads=group * kv,
        num_key_value_heads=kv, head_dim=dim, attention_bias=pick(True, False),
        rms_norm_eps=pick(1e-6, 1e-2), rope_parameters=rope_parameters,
    )  # fmt: skip
    assume(vision["hidden_size"] % (4 * heads) == 0)
    config = hf_config(vision, text, tie_word_embeddings=pick(True, False))
    pair = make_pair(tmp_path_factory.mktemp("random"), config, seed=depth)
    ours = pair.ours.config
    assert num_unrolled(ours) == min(len(taps), ours.text_config.num_hidden_layers)
    features = ours.vision_config.patch_features
    rows = [[3, ("image", 4, 6), 2], [("image", 2, 2), 4, ("video", 1, 2, 4), 2]]
    assert pair.error(batch_of(rows, pick("left", "right"), patch_features=features)) < 1e-5
