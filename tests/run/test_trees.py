"""Files of arrays: exact round trips, and every kind of damage is named."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lrm_jax.run.errors import UserError
from lrm_jax.run.trees import load_metadata, load_tree, save_tree

DTYPES = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
DTYPES += ["float16", "float32", "float64", ml_dtypes.bfloat16]


def _same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.shape == y.shape
        assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 4)])
def test_every_type_and_shape(tmp_path, dtype, shape):
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    save_tree(tmp_path / "a", {"x": array, "t": array.T})
    loaded = load_tree(tmp_path / "a")
    _same(loaded, {"x": array, "t": array.T})
    assert loaded["x"].flags.writeable


leaves = st.one_of(
    npst.arrays(
        st.sampled_from([np.float32, np.int32, np.uint8]), npst.array_shapes(max_dims=3, max_side=3)
    ),
    st.integers(-(2**40), 2**40),
    st.floats(allow_nan=False),
    st.booleans(),
    st.none(),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3),
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
    ),
    max_leaves=6,
)


@given(trees)
def test_nested_trees(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "tree"
    save_tree(path, tree)
    loaded = load_tree(path)
    _same(loaded, tree)
    _same(load_tree(path, like=tree), tree)


def test_training_state_needs_like(tmp_path):
    params = {"w": jnp.ones((2, 3), jnp.bfloat16)}
    state = {
        "params": params,
        "opt": optax.adam(1e-3).init(params),
        "key": jax.random.key(5),
        "step": 3,
    }
    save_tree(tmp_path / "a", state, metadata={"task": "plate"})
    loaded = load_tree(tmp_path / "a", like=jax.eval_shape(lambda: state) | {"step": 0})
    assert loaded["step"] == 3 and type(loaded["step"]) is int
    assert jnp.array_equal(jax.random.key_data(loaded["key"]), jax.random.key_data(state["key"]))
    assert type(loaded["opt"][0]) is type(state["opt"][0])
    assert load_metadata(tmp_path / "a") == {"task": "plate"}
    with pytest.raises(ValueError, match="pass like="):
        load_tree(tmp_path / "a")


def test_readable_by_the_safetensors_library(tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import load_file

    tree = {"a": {"b": np.arange(6.0).reshape(2, 3).T}, "n": np.int32(4)}
    save_tree(tmp_path / "a", tree)
    loaded = load_file(tmp_path / "a")
    np.testing.assert_array_equal(loaded["a.b"], tree["a"]["b"])
    assert loaded["n"] == 4
    with safe_open(tmp_path / "a", "numpy") as f:
        assert f.metadata()["format"] == "lrm_jax tree 1"


def test_equal_trees_give_equal_files(tmp_path):
    a = save_tree(tmp_path / "a", {"x": np.ones(3), "y": np.zeros(2)})
    b = save_tree(tmp_path / "b", {"y": np.zeros(2), "x": np.ones(3)})
    assert a == b
    assert a != save_tree(tmp_path / "c", {"x": np.ones(3), "y": np.ones(2)})


def test_damage_at_every_length_and_byte(tmp_path):
    """A cut at any length and a flipped bit in any byte of the data or header is a UserError."""
    path = tmp_path / "a.safetensors"
    save_tree(path, {"x": np.arange(5, dtype=np.float32), "y": np.ones(2, np.uint8)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.safetensors"):
            load_tree(path)
    body = 8 + int.from_bytes(whole[:8], "little")
    for at in range(body, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UserError, match="checksum"):
            load_tree(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(UserError, match="damaged"):
        load_tree(path)
    path.write_bytes(whole)
    load_tree(path)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_tree(tmp_path / "none")
    with pytest.raises(UserError, match="cannot read"):
        load_tree(tmp_path)
    from safetensors.numpy import save_file

    save_file({"x": np.ones(2)}, tmp_path / "foreign")
    with pytest.raises(UserError, match="lacks the checksum"):
        load_tree(tmp_path / "foreign")


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"x": np.ones(4, np.float32)}, r"'x' is float32\[3\], expected float32\[4\]"),
        ({"x": np.ones(3, np.int32)}, r"expected int32\[3\]"),
        ({"x": np.ones(3, np.float32), "z": np.ones(1)}, "lacks 'z'"),
        ({"xx": np.ones(3, np.float32)}, "holds 'x'"),
        ({"x": 1}, "expected a number"),
    ],
)
def test_does_not_fit(tmp_path, like, message):
    save_tree(tmp_path / "a", {"x": np.ones(3, np.float32)})
    with pytest.raises(UserError, match=message):
        load_tree(tmp_path / "a", like=like)


def test_what_cannot_be_stored(tmp_path):
    for value in ("text", object(), np.array(["a"]), 1j):
        with pytest.raises(TypeError, match="cannot be stored"):
            save_tree(tmp_path / "a", {"x": value})
    with pytest.raises(ValueError, match="both called"):
        save_tree(tmp_path / "a", {"a.b": np.ones(1), "a": {"b": np.ones(1)}})
    assert not os.listdir(tmp_path)
