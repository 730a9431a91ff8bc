"""Sharding rules, on abstract meshes: no devices are needed to place shapes."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from lrm_jax.parallel import rules
from lrm_jax.parallel.aot import programs
from lrm_jax.parallel.mesh import AXES
from lrm_jax.qwen3_vl import sharding, sizes
from lrm_jax.run.errors import UserError

RULES = (
    (r"a/kernel", ("fsdp", "tensor")),
    (r".*/kernel", (("fsdp", "tensor"), None)),
    (r".*/scale", ()),
)


def mesh(data=1, fsdp=4, tensor=2):
    return AbstractMesh((data, fsdp, tensor), AXES)


def tree(**shapes):
    return {k: {"kernel": np.empty(v, np.float32)} for k, v in shapes.items()}


def test_the_first_match_decides_and_axes_align_to_the_right():
    found = rules.plan(tree(a=(8, 6), b=(5, 16, 3)), RULES, mesh())
    assert found.shardings["a"]["kernel"].spec == PartitionSpec("fsdp", "tensor")
    assert found.shardings["b"]["kernel"].spec == PartitionSpec(None, ("fsdp", "tensor"), None)
    assert found.fallbacks == ()
    leaves = tree(a=(8, 6), b=(5, 16, 3))
    assert rules.shard_bytes(leaves, found.shardings) == (8 * 6 + 5 * 16 * 3) * 4 // 8


@pytest.mark.parametrize(
    ("leaves", "own", "message"),
    [
        (tree(a=(6, 6)), RULES, "a/kernel: dimension 0 of 6 is not a multiple of 4"),
        (tree(a=(8, 5)), RULES, "a/kernel: dimension 1 of 5"),
        ({"a": {"bias": np.empty(3)}}, RULES, "no rule matches a/bias"),
        (tree(a=(8,)), RULES, "cuts 2 dimensions"),
        (tree(a=(8, 8)), ((".*", ("model", None)),), "names axis 'model'"),
        (tree(a=(8, 8)), ((".*", ("fsdp", "fsdp")),), "twice"),
    ],
)
def test_what_cannot_be_placed_is_an_error(leaves, own, message):
    with pytest.raises(UserError, match=message):
        rules.plan(leaves, own, mesh())


def test_replication_of_what_does_not_divide_is_reported():
    found = rules.plan(tree(a=(6, 4), b=(16, 3)), RULES, mesh(), indivisible="replicate")
    assert found.shardings["a"]["kernel"].spec == PartitionSpec(None, "tensor")
    assert [str(f) for f in found.fallbacks] == [
        "a/kernel: dimension 0 of 6 is not a multiple of 4 (fsdp); kept whole"
    ]


def test_the_optimisers_state_follows():
    params = tree(a=(8, 6), b=(16, 3))
    placed = rules.plan(params, RULES, mesh()).shardings
    state = jax.eval_shape(optax.chain(optax.clip(1.0), optax.adamw(1e-3)).init, params)
    found = rules.follow(state, params, placed, mesh())
    adam = found[1][0]
    assert adam.mu == placed and adam.nu == placed
    assert adam.count.spec == PartitionSpec()
    with pytest.raises(UserError, match="belongs to no parameter"):
        rules.follow({"odd": np.empty(7)}, params, placed, mesh())


def test_sizes_are_those_published():
    """Parameters in billions: 2.13, 4.44, 8.77 and 33.36, which the hub's files add up to."""
    for name, billions in (("2b", 2.13), ("4b", 4.44), ("8b", 8.77), ("32b", 33.36)):
        shapes = programs.base_shapes(sizes.by_name(f"qwen3-vl-{name}"))
        assert sum(x.size for x in jax.tree.leaves(shapes)) / 1e9 == pytest.approx(
            billions, abs=5e-3
        )
    with pytest.raises(UserError, match="did you mean 'qwen3-vl-8b'"):
        sizes.by_name("qwen3-vl-9b")


@pytest.mark.parametrize("name", sizes.SIZES)
@pytest.mark.parametrize(("fsdp", "tensor"), [(16, 1), (8, 2), (64, 1)])
def test_the_rules_cover_every_released_model(name, fsdp, tensor):
    """Nothing is left over, and what stays whole is small: under 40 MB of 4 to 67 GB."""
    config, here = sizes.by_name(name), mesh(2, fsdp, tensor)
    base, factors = programs.base_shapes(config), programs.adapter_shapes(config, 64)
    placed = rules.plan(base, sharding.PARAMS, here)
    assert placed.fallbacks == ()
    share = rules.shard_bytes(base, placed.shardings)
    assert share < 40e6 + sum(x.size * 2 for x in jax.tree.leaves(base)) / (fsdp * tensor)
    placed = rules.plan(factors, sharding.LORA, here)
    assert placed.fallbacks == ()
    for path, spec in jax.tree_util.tree_leaves_with_path(placed.shardings):
        assert path[-1].key == "scale" or "fsdp" in str(spec.spec), path
