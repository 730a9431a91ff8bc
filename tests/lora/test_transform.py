"""The transform over the parameter tree: fresh, merged, taken out again, stacked."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrm_jax import lora, qwen3_vl
from lrm_jax.lora.transform import factors_of
from lrm_jax.run.errors import UserError

from .conftest import ADAPTERS, BATCH, REAL, relative, wrapped

LOGITS = 1e-5  # as in test_peft.py


def fresh(base, leaves, **settings):
    config = lora.LoraConfig(**settings)
    return lora.init(jax.random.key(0), base.ours.params, config, leaves), config


@pytest.mark.parametrize("name", ["patterns", "convolution_and_head", "tower"])
def test_a_fresh_adapter_is_pefts(base, leaves, trained, name):
    """The same modules and shapes, the same distribution of A, B zero, full copies."""
    config = lora.read_config(trained.folders[name])
    adapter = lora.init(jax.random.key(0), base.ours.params, config, leaves)
    model = wrapped(base, **ADAPTERS[name])
    assert lora.num_trainable(config, leaves) == model.get_nb_trainable_parameters()[0]
    for _, pair in factors_of(adapter["lora"]):
        a, bound = np.asarray(pair["a"]), pair["a"].shape[-2] ** -0.5
        used = a[a != 0]
        assert np.abs(used).max() <= bound
        # Uniform in +-bound has the variance bound^2 / 3; of n numbers the estimate's relative
        # standard deviation is sqrt(0.8 / n). Five of them.
        assert abs(used.var() / (bound**2 / 3) - 1) < 5 * (0.8 / used.size) ** 0.5
        assert not np.any(pair["b"])
    theirs = {k: v for k, v in model.named_parameters() if "lora_A" in k}
    drawn = sum(int(np.count_nonzero(pair["a"])) for _, pair in factors_of(adapter["lora"]))
    assert drawn == sum(v.numel() for v in theirs.values())
    chex.assert_type(jax.tree.leaves(adapter), jnp.float32)
    if "params" in adapter:
        jax.tree.map(
            np.testing.assert_array_equal, adapter["params"]["visual"], base.ours.params["visual"]
        )
    shapes = jax.eval_shape(
        lambda key, params: lora.init(key, params, config, leaves),
        jax.random.key(0), base.ours.params,
    )  # fmt: skip
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, adapter)


def test_initial_values_depend_on_the_key(base, leaves):
    config = lora.LoraConfig(rank=2, alpha=2, targets=("q_proj",))
    one, same, other = (
        lora.init(jax.random.key(k), base.ours.params, config, leaves)["lora"] for k in (0, 0, 1)
    )
    chex.assert_trees_all_equal(one, same)
    a = [next(factors_of(tree))[1]["a"] for tree in (one, other)]
    assert not np.any(a[0] == a[1])


def test_what_is_trained(base, leaves):
    adapter, config = fresh(
        base, leaves, rank=2, alpha=2, targets=("q_proj",), modules_to_save=("merger",), dropout=0.1
    )
    mask = lora.trainable(adapter)
    chex.assert_trees_all_equal_structs(mask, adapter)
    for _, pair in factors_of(mask["lora"]):
        assert pair == {"a": True, "b": True, "scale": False, "dropout": False}
    assert all(jax.tree.leaves(mask["params"]))
    sizes = jax.tree.map(lambda x, train: x.size * train, adapter, mask)
    assert sum(jax.tree.leaves(sizes)) == lora.num_trainable(config, leaves)


@pytest.mark.parametrize("name", ["rslora_all_linear", "patterns", "convolution_and_head", "tower"])
def test_merged_weights_equal_the_side_path_and_come_out_again(base, trained, read, name):
    adapter, params = read(trained.folders[name]), base.ours.params
    merged = lora.merge(params, adapter)
    whole = qwen3_vl.Backbone(base.ours.config, merged, base.ours.model)
    assert relative(whole.logits(**BATCH)[REAL], trained.logits[name][REAL]) < LOGITS
    back = lora.unmerge(merged, adapter, base=params)
    # W + d - d in float32: two roundings, each half a unit in the last place of at most |W| + |d|.
    for got, want, most in zip(*map(jax.tree.leaves, (back, params, merged)), strict=True):
        scale = max(np.abs(want).max(), np.abs(most).max())
        np.testing.assert_allclose(got, want, rtol=0, atol=2 * 2**-24 * 2 * scale)
    if "params" in adapter:
        with pytest.raises(ValueError, match="pass base"):
            lora.unmerge(merged, adapter)


def test_merging_keeps_the_dtype_and_leaves_the_base_alone(base, trained, read):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base.ours.params)
    before = jax.tree.map(np.array, half)
    merged = lora.merge(half, read(trained.folders["tower"]))
    chex.assert_type(jax.tree.leaves(merged), jnp.bfloat16)
    chex.assert_trees_all_equal(half, before)
    with pytest.raises(ValueError, match="no kernel at nowhere"):
        lora.merge(half, {"lora": {"nowhere": {"a": jnp.ones((2, 1)), "b": jnp.ones((1, 2))}}})


@st.composite
def some_adapters(draw):
    """Adapters of other ranks and targets for one place alone and one stack of two layers."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    made = []
    for _ in range(draw(st.integers(1, 4))):
        tree = {}
        for name, lead in (("alone", ()), ("stack", (2,))):
            if rank := draw(st.integers(0, 3)):
                a, b = rng.normal(size=(*lead, 4, rank)), rng.normal(size=(*lead, rank, 5))
                scale = rng.normal(size=lead)
                tree[name] = {k: jnp.float32(v) for k, v in dict(a=a, b=b, scale=scale).items()}
        made.append({"lora": tree})
    return made


@settings(max_examples=25)
@given(some_adapters())
def test_a_stack_holds_every_adapter(adapters):
    stacked = dict(factors_of(lora.stack(adapters)))
    assert stacked.keys() == {p for a in adapters for p, _ in factors_of(a["lora"])}
    for path, pair in stacked.items():
        delta = np.asarray(pair["scale"][..., None, None] * (pair["a"] @ pair["b"]))
        assert pair["a"].shape[-1] == max(
            own["a"].shape[-1] for a in adapters for p, own in factors_of(a["lora"]) if p == path
        )
        for i, adapter in enumerate(adapters):
            own = dict(factors_of(adapter["lora"])).get(path)
            got = np.take(delta, i, axis=-3)
            if own is None:
                assert not np.any(got)
            else:
                want = own["scale"][..., None, None] * (own["a"] @ own["b"])
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_nothing_to_stack():
    with pytest.raises(ValueError, match="no adapters"):
        lora.stack([])


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(targets=("q_porj",)), "targets.*q_porj.*did you mean 'q_proj'"),
        (dict(targets="model.nothing"), "targets"),
        (dict(modules_to_save=("visuals",)), "modules_to_save.*visual"),
        (dict(modules_to_save=("layers.3.mlp",)), "only some layers"),
    ],
)
def test_names_that_the_model_lacks(base, leaves, change, message):
    with pytest.raises(UserError, match=message):
        fresh(base, leaves, **{"rank": 2, "alpha": 2, "targets": ("q_proj",)} | change)


def test_save_rejects_a_tree_of_another_configuration(base, leaves, tmp_path):
    adapter, config = fresh(base, leaves, rank=2, alpha=2, targets=("q_proj",))
    for change, message in (
        (dict(targets=("q_proj", "k_proj")), "disagree about"),
        (dict(rank=3), "shape|is \\("),
        (dict(alpha=3), "scale"),
        (dict(modules_to_save=("merger",)), "lacks visual/merger"),
    ):
        wrong = lora.LoraConfig(**{"rank": 2, "alpha": 2, "targets": ("q_proj",)} | change)
        with pytest.raises(ValueError, match=message):
            lora.save_peft(tmp_path, adapter, wrong, leaves)
    assert config.rank_of("anything") == 2 and not list(tmp_path.iterdir())
