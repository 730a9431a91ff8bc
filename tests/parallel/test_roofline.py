"""Slices, the roofline and the hand calculation, against figures worked out here."""

from __future__ import annotations

import jax
import pytest
from jax.sharding import AbstractMesh

from lrm_jax.parallel import roofline, rules
from lrm_jax.parallel.aot import estimate, programs
from lrm_jax.parallel.mesh import AXES
from lrm_jax.parallel.roofline import Slice
from lrm_jax.qwen3_vl import sharding, sizes
from lrm_jax.run.errors import UserError

SHAPE = programs.Shape(rows=128)


def test_slices():
    assert Slice.parse("v5e:4x4").accelerator_type == "v5litepod-16"
    assert Slice.parse("v6e:4x4").accelerator_type == "v6e-16"
    assert Slice.parse("v5p:4x4x4").accelerator_type == "v5p-128"  # two cores a chip
    # A corner of an open 4x4 has two of four ports; 16x16 and v5p's 4x4x4 close to rings.
    assert Slice.parse("v5e:4x4").worst_ici_rate == 100e9
    assert Slice.parse("v5e:16x16").worst_ici_rate == 200e9
    assert Slice.parse("v5p:4x4x4").worst_ici_rate == 600e9
    assert Slice.parse("v5e:1x1").worst_ici_rate == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [("v5:4x4", "unknown chip"), ("v5e:4x4x4", "takes 2"), ("v5p:4x4", "takes 3"),
     ("v5e", "takes 2"), ("v5e:0x4", "takes 2"), ("v5e:axb", "takes 2")],
)  # fmt: skip
def test_what_is_no_slice(name, message):
    with pytest.raises(UserError, match=message):
        Slice.parse(name)


def test_the_longest_resource_bounds():
    where = Slice.parse("v5e:4x4")
    work = roofline.Work(16 * 197e12, 2 * 16 * 197e12, 819e9, 100e9)
    assert roofline.bound(work, where) == {
        "compute_seconds": 2.0,
        "hbm_seconds": 1.0,
        "ici_seconds": 1.0,
        "step_seconds": 2.0,
        "limit": "compute",
        "mfu": 0.5,
    }
    slow = roofline.Work(16 * 197e12, 16 * 197e12, 0.0, 400e9)
    found = roofline.bound(slow, where)
    assert (found["limit"], found["mfu"]) == ("ici", 0.25)


def test_flops_of_the_8b_follow_the_parameters():
    """Two FLOPs for each parameter and token, and attention: the decoder's layers have 6.95e9
    parameters, a token sees 320."""
    config = sizes.by_name("qwen3-vl-8b")
    score, same = estimate.flops("score", config, SHAPE, 64, "full")
    layers = 36 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 12288)
    factors = 36 * 64 * ((4096 + 4096) * 2 + (4096 + 1024) * 2)
    tokens = 128 * 320
    text = 2 * tokens * (layers + factors) + 4 * tokens * 320 * 4096 * 36
    text += 2 * 128 * programs.READS * 4096 * 151936
    tower = score - text
    # 2 x 256 images of 256 patches through 27 blocks of 15.2e6 parameters, and mergers.
    assert score == same
    assert 2 * 256 * 256 * 27 * 15.2e6 < tower < 1.4 * (2 * 256 * 256 * 27 * 15.2e6)
    model, executed = estimate.flops("lora_train", config, SHAPE, 64, "full")
    assert model > tower + 2 * text and executed - model == pytest.approx(text, rel=0.02)
    assert estimate.flops("lora_train", config, SHAPE, 64, "none") == (model, model)


def program(name, mesh):
    config = sizes.by_name("qwen3-vl-8b")
    base, factors = programs.base_shapes(config), programs.adapter_shapes(config, 64)
    return config, programs.Program(
        function=None,
        arguments=(),
        donated=(),
        base=programs.placed(base, rules.plan(base, sharding.PARAMS, mesh).shardings),
        adapters=programs.placed(factors, rules.plan(factors, sharding.LORA, mesh).shardings),
        fallbacks=(),
    )


def test_bytes_between_chips_by_hand():
    mesh = AbstractMesh((1, 16, 1), AXES)
    config, made = program("lora_train", mesh)
    found = estimate.collective_bytes("lora_train", made, config, SHAPE, mesh)
    layers = 36 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 12288)
    assert found["decoder gathers"] == 2 * (2 * layers) * 15 / 16
    assert found["output layer gathers"] == 2 * 4096 * 151936 * 15 / 16
    factors = 36 * 64 * ((4096 + 4096) * 2 + (4096 + 1024) * 2)
    assert found["factor gradients"] == 4 * factors * 15 / 16
    assert found["tensor sums"] == 0
    assert found["image features"] == 0
    scoring = estimate.collective_bytes("score", made, config, SHAPE, mesh)
    assert scoring["decoder gathers"] == found["decoder gathers"] / 2
    assert scoring["factor gradients"] == 0


def test_copies_sum_gradients_and_tensor_sums_activations():
    mesh = AbstractMesh((2, 4, 2), AXES)
    config, made = program("lora_train", mesh)
    found = estimate.collective_bytes("lora_train", made, config, SHAPE, mesh)
    # Half the decoder's kernels come from three others, 128 / 8 rows of bfloat16 are summed.
    layers = 36 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 12288)
    assert found["decoder gathers"] == 2 * 2 * layers / 2 * 3 / 4
    # Two sums forward, one again, two backward; each scattered and gathered.
    assert found["tensor sums"] == 36 * 5 * 2 * (16 * 320 * 4096 * 2) / 2
    assert found["embedding sum"] == 2 * (16 * 320 * 4096 * 2) / 2
    own = rules.shard_bytes(made.adapters, jax.tree.map(lambda x: x.sharding, made.adapters))
    assert found["factor gradients"] > own
    assert found["image features"] == 128 / 8 * 2 * 64 * 4096 * 2 * 4 / 2


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (programs.Shape(rows=128, side=250), "--image"),
        (programs.Shape(rows=128, tokens=130), "--tokens=130"),
        (programs.Shape(rows=100), "multiple of data\\*fsdp = 16"),
    ],
)
def test_shapes_that_do_not_fit(shape, message):
    mesh = AbstractMesh((1, 16, 1), AXES)
    with pytest.raises(UserError, match=message):
        programs.build("score", sizes.by_name("qwen3-vl-2b"), mesh, shape)
