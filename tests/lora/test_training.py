"""Training an adapter: gradients and an optimiser's step against torch and PEFT; dropout."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from qwen3_vl.conftest import QUICK

from lrm_jax import lora
from lrm_jax.lora.sites import sites
from lrm_jax.lora.transform import factors_of
from lrm_jax.qwen3_vl import Qwen3VL
from lrm_jax.qwen3_vl.batching import pack

from .conftest import BATCH, loaded, loss_of, relative

# Gradients are sums over 30 tokens and as many layers again as the logits; 1e-5 of the largest
# number of a leaf is what float32 gives, a wrong scale or a missing transpose gives 1.
GRADIENTS = 1e-5
# Adam's first step is rate g / (|g| + eps), whose slope is at most rate / eps: an eps well above
# the rounding of g makes the step a well-posed function of it.
RATE, EPS = 1e-2, 1e-4


def loss(model, params, adapter, batch, rngs=None):
    """The mean next-token cross entropy, as `conftest.loss_of`."""
    tree = lora.variables(params, adapter)

    def apply(*arguments, method):
        return model.apply(tree, *arguments, method=method, rngs=rngs)

    features = apply(batch.vision, method="encode")
    hidden = apply(
        batch.tokens, batch.positions, batch.valid, batch.visual_index, features, method="hidden"
    )
    scores = jax.nn.log_softmax(apply(hidden, method="logits")[:, :-1])
    picked = jnp.take_along_axis(scores, batch.tokens[:, 1:, None], -1)[..., 0]
    real = batch.valid[:, 1:] & batch.valid[:, :-1]
    return -jnp.sum(jnp.where(real, picked, 0)) / real.sum()


def named(model) -> dict[str, torch.nn.Parameter]:
    """PEFT's trainable parameters by the names of its files."""
    parts = {k: v for k, v in model.named_parameters() if v.requires_grad}
    return {
        k.replace(".default.", ".").replace(".modules_to_save.", "."): v for k, v in parts.items()
    }


def in_our_tree(tensors, adapter, config, leaves):
    """Tensors by PEFT's names in the layout of an adapter tree (scale and the like as they are)."""
    out = jax.tree.map(np.array, adapter)
    flat = dict(factors_of(out["lora"]))
    for path, pair in flat.items():
        for name in ("a", "b"):
            pair[name] = np.zeros_like(pair[name])
        leaf = next(leaf for leaf in leaves if leaf.path == (*path, "kernel"))
        for i, tensor in enumerate(leaf.names):
            module = "base_model.model." + tensor.removesuffix(".weight")
            at = i if leaf.stacked else ...
            if f"{module}.lora_A.weight" in tensors:
                a, b = tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"]
                pair["a"][at][..., : a.shape[0]] = a.T
                pair["b"][at][: a.shape[0]] = b.T
    for leaf in leaves:
        node = out.get("params", {})
        for key in leaf.path:
            node = node.get(key) if isinstance(node, dict) else None
        if node is not None:
            parts = [leaf.from_file(tensors["base_model.model." + n]) for n in leaf.names]
            node[...] = np.stack(parts) if leaf.stacked else parts[0]
    return out


@pytest.fixture(scope="module", params=["patterns", "tower"])
def case(request, base, trained, leaves, read):
    """(PEFT's network with the trained adapter, our tree of the same, its config, leaves)."""
    name = request.param
    folder = trained.folders[name]
    model = loaded(base, folder, is_trainable=True)
    return model, jax.tree.map(np.array, read(folder)), lora.read_config(folder), leaves


def test_gradients_and_one_step_of_adamw(base, case):
    model, adapter, config, leaves = case
    batch = pack(base.ours.config, BATCH)
    network = Qwen3VL(base.ours.config)
    value_and_grad = jax.jit(jax.value_and_grad(loss, 2), static_argnums=0, compiler_options=QUICK)
    value, grads = value_and_grad(network, base.ours.params, adapter, batch)

    optimizer = torch.optim.AdamW(named(model).values(), lr=RATE, weight_decay=0.1, eps=EPS)
    optimizer.zero_grad()
    theirs = loss_of(model, BATCH)
    theirs.backward()
    assert abs(float(value) - theirs.item()) < 1e-5 * theirs.item()
    want = in_our_tree(
        {k: v.grad.numpy() for k, v in named(model).items()}, adapter, config, leaves
    )
    mask = lora.trainable(adapter)
    for train, got, expected in zip(*map(jax.tree.leaves, (mask, grads, want)), strict=True):
        if train:
            assert np.abs(expected).max() > 0 and relative(got, expected) < GRADIENTS
    # Where layers of a stack have different ranks, the padding of the smaller ones stays zero.
    assert_padding_is_zero(grads, config, leaves)

    optimizer.step()
    after = in_our_tree(
        {k: v.detach().numpy() for k, v in named(model).items()}, adapter, config, leaves
    )
    tx = lora.only_trainable(optax.adamw(RATE, weight_decay=0.1, eps=EPS))
    updates, _ = tx.update(grads, tx.init(adapter), adapter)
    stepped = optax.apply_updates(adapter, updates)
    for train, got, expected, before, g, theirs in zip(
        *map(jax.tree.leaves, (mask, stepped, after, adapter, grads, want)), strict=True
    ):
        if not train:
            np.testing.assert_array_equal(got, before)
            continue
        assert np.abs(expected - before).max() > 0.5 * RATE
        # By that slope, and a few roundings of the step and of the sum.
        allowed = RATE * (np.abs(g - theirs).max() / EPS + 1e-6) + 2**-23 * np.abs(before).max()
        assert allowed < 0.02 * RATE
        np.testing.assert_allclose(got, expected, rtol=0, atol=allowed)


def assert_padding_is_zero(grads, config, leaves):
    padded, pairs = 0, dict(factors_of(grads["lora"]))
    for site in sites(config, leaves):
        for i, rank in enumerate(site.ranks):
            at = i if site.leaf.stacked else ...
            a, b = pairs[site.path]["a"][at][..., rank:], pairs[site.path]["b"][at][rank:]
            padded += a.size
            assert not np.any(a) and not np.any(b)
    assert (padded > 0) == bool(config.rank_pattern)


# --- dropout ---


def test_dropout_keeps_the_mean_and_the_share():
    from lrm_jax.qwen3_vl.layers import dropped

    x = jnp.full((40_000,), 2.0)
    got = np.asarray(dropped(x, jnp.float32(0.3), jax.random.key(0)))
    assert set(np.unique(got)) == {np.float32(0), np.float32(2) / np.float32(0.7)}
    # The share of zeros has the standard deviation sqrt(.3 x .7 / 40000) = 0.0023: five of them.
    assert abs((got == 0).mean() - 0.3) < 0.0115
    np.testing.assert_array_equal(dropped(x, jnp.float32(0), jax.random.key(0)), x)


def test_dropout_is_only_in_the_side_path_and_only_with_a_key(base, leaves):
    """Another key, other inputs dropped; the same key, or none, the same result."""
    config = lora.LoraConfig(rank=2, alpha=2, targets=("q_proj", "down_proj"), dropout=0.5)
    adapter = lora.init(jax.random.key(0), base.ours.params, config, leaves)
    tokens = jnp.arange(1, 5)[None]

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(adapter, key):
        return base.ours.model.apply(
            lora.variables(base.ours.params, adapter),
            tokens, tokens[None].repeat(3, 0), tokens > 0, 0 * tokens - 1, None,
            method="hidden", rngs=None if key is None else {"lora": key},
        )  # fmt: skip

    first, second = jax.random.key(1), jax.random.key(2)
    # B is zero: whatever is dropped, nothing changes.
    np.testing.assert_allclose(run(adapter, first), run(adapter, None), rtol=1e-5, atol=1e-5)
    rng = np.random.default_rng(0)
    for _, pair in factors_of(adapter["lora"]):
        pair["b"] = jnp.float32(rng.normal(size=pair["b"].shape))
    for key in (first, None):
        np.testing.assert_array_equal(run(adapter, key), run(adapter, key))
    one, other, none = (run(adapter, key) for key in (first, second, None))
    assert min(relative(one, other), relative(one, none), relative(other, none)) > 0.01


def test_dropout_comes_with_the_file_and_not_into_a_stack(base, leaves, read, tmp_path):
    config = lora.LoraConfig(rank=1, alpha=1, targets=("up_proj",), dropout=0.25)
    adapter = lora.init(jax.random.key(0), base.ours.params, config, leaves)
    lora.save_peft(tmp_path, adapter, config, leaves)
    again = read(tmp_path, allow_identity_adapter=True)
    chex.assert_trees_all_equal(again, adapter)
    for _, pair in factors_of(again["lora"]):
        assert np.all(pair["dropout"] == 0.25) and pair["dropout"].shape == pair["scale"].shape
    for _, pair in factors_of(lora.stack([again, again])):
        assert set(pair) == {"a", "b", "scale"}


def test_every_layer_drops_inputs_of_its_own(base, leaves):
    """Scanned layers too. Rows of dA are zero where the input was dropped for every token."""
    ours = base.ours
    config = lora.LoraConfig(rank=1, alpha=1, targets=("v_proj", "linear_fc2"), dropout=0.8)
    adapter = lora.init(jax.random.key(0), ours.params, config, leaves)
    for _, pair in factors_of(adapter["lora"]):
        pair["b"] = jnp.ones(pair["b"].shape)
    batch, one = pack(ours.config, BATCH), jnp.zeros((1, 1), jnp.int32)

    def total(adapter):
        tree, rngs = lora.variables(ours.params, adapter), {"lora": jax.random.key(2)}
        images = jax.tree.map(lambda x: x[:1, :4], batch.vision)  # one token of four patches
        seen = ours.model.apply(tree, images, method="encode", rngs=rngs)
        said = ours.model.apply(
            tree, one, one[None].repeat(3, 0), one == 0, one - 1, None, method="hidden", rngs=rngs
        )
        return sum(jnp.sum(jnp.sin(x)) for x in (seen.embeds, said))

    grads = jax.jit(jax.grad(total), compiler_options=QUICK)(adapter)["lora"]
    text, blocks = grads["language_model"], grads["visual"]["blocks_1"]["mlp"]["linear_fc2"]["a"]
    layers = [text[f"layers_{i}"]["self_attn"]["v_proj"]["a"] for i in range(2)]
    layers += list(text["layers"]["self_attn"]["v_proj"]["a"])
    for own in (layers, list(blocks)):
        dropped = {np.asarray(a[:, 0] == 0).tobytes() for a in own}
        # 64 or 40 inputs, kept with probability 0.2, or 0.59 with four patches: never all alike.
        assert len(dropped) == len(own) > 1
        assert all(0 < np.mean(a[:, 0] == 0) < 1 for a in own)
