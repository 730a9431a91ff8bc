"""Training by each objective through `train_adapter`: heads in turn, DPO from an adapter, all
weights; and the losses on closed answers against torch and scipy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import torch

from lrm_jax import lora
from lrm_jax.reward_training import AdapterTraining, Optimiser, dpo, objective, resumable
from lrm_jax.reward_training import adapters as training
from lrm_jax.reward_training.course import beginning, make_optimiser
from lrm_jax.rewards.heads import by_name
from lrm_jax.rewards.model import load_reward_model
from lrm_jax.run import config, metrics
from lrm_jax.run.errors import UserError

from . import toy

TENTHS = tuple(k / 10 for k in range(11))


def drawn(values, labels, seed=0):
    rng = np.random.default_rng(seed)
    scores = np.float32(rng.normal(size=(len(labels), len(values))) * 2)
    return np.float32(scores - 1 - np.log(np.exp(scores).sum(-1, keepdims=True)))


@pytest.mark.parametrize("values", [TENTHS, (0.0, 1.0), (-1.0, 0.5, 4.0)])
def test_crps_is_its_integral(values):
    rng = np.random.default_rng(1)
    labels = rng.uniform(min(values) - 0.2, max(values) + 0.2, 6)
    log_p = drawn(values, labels)
    ours = np.asarray(objective.crps(log_p, values, labels))
    for row, label, got in zip(log_p, labels, ours, strict=True):
        chance = np.exp(row) / np.exp(row).sum()
        low, high = min(*values, label), max(*values, label)
        want, _ = scipy.integrate.quad(
            lambda x, c=chance, y=label: (c[np.asarray(values) <= x].sum() - (y <= x)) ** 2,
            low, high, points=sorted({*values, label}), limit=200,
        )  # fmt: skip
        assert abs(got - want) < 1e-5 * max(high - low, 1)
    certain = jnp.log(jnp.eye(len(values)) + 1e-30)
    np.testing.assert_allclose(
        objective.crps(certain, values, jnp.full(len(values), 0.25)),
        np.abs(np.asarray(values) - 0.25), atol=1e-6,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["mse", "outside", "cross_entropy"])
def test_closed_losses_and_their_gradients_are_torchs(kind):
    labels = np.array([0.0, 0.34, 0.7, 1.0])
    log_p = drawn(TENTHS, labels)

    def ours(x):
        if kind == "mse":
            return objective.squared_error(x, TENTHS, labels).sum()
        if kind == "outside":
            return objective.outside(x).sum()
        return objective.cross_entropy(x, objective.target(TENTHS, labels)).sum()

    x = torch.tensor(log_p, requires_grad=True)
    if kind == "mse":
        mean = (torch.softmax(x, -1) * torch.tensor(TENTHS)).sum(-1)
        theirs = torch.nn.functional.mse_loss(mean, torch.tensor(labels).float(), reduction="sum")
    elif kind == "outside":
        theirs = -torch.log(torch.exp(x).sum(-1)).sum()
    else:
        shares = torch.zeros(4, 11)
        shares[0, 0] = shares[2, 7] = shares[3, 10] = 1.0
        shares[1, 3], shares[1, 4] = 0.6, 0.4
        theirs = torch.nn.functional.kl_div(x, shares, reduction="sum")
    theirs.backward()
    value, grad = jax.value_and_grad(ours)(jnp.asarray(log_p))
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
    np.testing.assert_allclose(grad, x.grad.numpy(), atol=2e-6)


def test_unknown_labels_cost_nothing():
    log_p = jnp.asarray(drawn(TENTHS, [0.0, 0.0]))
    labels = jnp.array([jnp.nan, 0.5])
    for loss in (objective.crps, objective.squared_error):
        value, grad = jax.value_and_grad(lambda x, f=loss: f(x, TENTHS, labels).sum())(log_p)
        assert np.isfinite(value) and (grad[0] == 0).all() and (grad[1] != 0).any()


# --- through train_adapter ---

pytestmark = pytest.mark.usefixtures("one_program_a_loss")
SETTINGS = AdapterTraining(
    rank=4, alpha=8.0, targets=("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"),
    rows=8, steps=4, remat="none", checkpoint_every=2,
    optimiser=Optimiser(learning_rate=1e-2, warmup_steps=1),
)  # fmt: skip


@pytest.fixture(scope="module")
def model(peer):
    return load_reward_model(peer[0])


@pytest.fixture(scope="module")
def world():
    store, clips = toy.toy_clips(count=8, length=6)
    frames = np.repeat(np.repeat(store.frames, 2, axis=1), 2, axis=2)
    return dataclasses.replace(store, frames=frames), clips


@pytest.fixture(scope="module")
def alone(model, world, tmp_path_factory):
    """Adapters by supervised fine-tuning, one head after the other."""
    heads = by_name(model.heads)
    return {
        name: training.train_adapter(
            SETTINGS, model, heads[name], *world, tmp_path_factory.mktemp(name)
        )
        for name in ("completion", "contrastive")
    }


def test_heads_in_turn_learn_what_each_learns_alone(model, world, alone, tmp_path):
    """Bit for bit; one of them from twice as many examples, so that their steps do not pair up."""
    heads = [by_name(model.heads)[name] for name in alone]
    both = training.train_adapter(
        SETTINGS, model, heads, *world, tmp_path, metrics=tmp_path
    )
    jax.tree.map(np.testing.assert_array_equal, both, alone)
    (row,) = metrics.read(tmp_path, "adapters")
    assert row["loss_completion"] > 0 and row["loss_contrastive"] > 0

    epochs = dataclasses.replace(
        SETTINGS, steps=0, examples=dataclasses.replace(SETTINGS.examples, pairs_per_clip=2)
    )
    course = training.make_course(epochs, model, heads, *world, tmp_path, training.make_step)
    counts = {n: sum(n in course.draw(k) for k in range(course.total)) for n in alone}
    examples = course.facts["examples"]
    assert counts == {n: examples[n] // SETTINGS.rows for n in alone}
    assert counts["completion"] != counts["contrastive"]


def test_dpo_goes_on_from_an_adapter(model, world, alone, tmp_path, monkeypatch):
    """It begins at log 2, learns its preferences, and a killed run ends with the same adapter
    without asking the reference again."""
    head = by_name(model.heads)["completion"]  # one answer is right five times in six
    training.save_adapter(tmp_path / "sft", alone["completion"], SETTINGS, model)
    settings = dataclasses.replace(
        SETTINGS, objective="dpo", beta=1.0, steps=12, start=str(tmp_path / "{head}"),
        optimiser=Optimiser(learning_rate=5e-3, warmup_steps=1),
    )  # fmt: skip
    (tmp_path / "completion").symlink_to(tmp_path / "sft")
    monkeypatch.setattr(resumable, "LOG_EVERY", 1)
    whole = training.train_adapter(
        settings, model, head, *world, tmp_path / "whole", metrics=tmp_path / "whole"
    )
    rows = metrics.read(tmp_path / "whole", "adapter_completion")
    # The first update has a learning rate of 0: policy and reference are the same twice.
    assert abs(rows[0]["loss"] - np.log(2)) < 1e-4 and abs(rows[0]["preference_margin"]) < 1e-3
    late = {k: np.mean([r[k] for r in rows[6:]]) for k in rows[0] if "preference" in k}
    assert late["preference_accuracy"] > 0.7 and late["preference_margin"] > 0.1
    for name in ("a", "b"):
        moved = [
            np.abs(new[name] - old[name]).max()
            for (_, new), (_, old) in zip(
                *(lora.transform.factors_of(t["lora"]) for t in (whole, alone["completion"])),
                strict=True,
            )
        ]
        assert max(moved) > 0

    draw, calls = training.make_course, []

    def killed(*arguments):
        course = draw(*arguments)
        inner = course.draw

        def one(step):
            calls.append(step)
            if len(calls) == 6:
                raise KeyboardInterrupt
            return inner(step)

        course.draw = one
        return course

    monkeypatch.setattr(training, "make_course", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train_adapter(settings, model, head, *world, tmp_path / "killed")
    (cache,) = (tmp_path / "killed").glob("reference_*.npz")
    made = cache.stat().st_mtime_ns
    again = training.train_adapter(settings, model, head, *world, tmp_path / "killed")
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    assert calls == [*range(6), *range(4, 12)] and cache.stat().st_mtime_ns == made


def test_an_expectation_is_learnt(model, world, tmp_path):
    head = by_name(model.heads)["completion"]  # done in one frame of six
    settings = dataclasses.replace(
        SETTINGS, objective="expectation", steps=30, checkpoint_every=100,
        optimiser=Optimiser(learning_rate=2e-2, warmup_steps=1),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resumable, "LOG_EVERY", 1)
        training.train_adapter(settings, model, head, *world, tmp_path, metrics=tmp_path)
    rows = metrics.read(tmp_path, "adapter_completion")
    early, late = (
        {k: np.mean([r[k] for r in part]) for k in ("loss", "mae")}
        for part in (rows[:1], rows[-10:])
    )
    # From about a coin's 0.5 to what the frequencies alone give, 2 x 1/6 x 5/6 = 0.28.
    assert early["mae"] > 0.42 and late["mae"] < 0.36 and late["loss"] < early["loss"]


def test_all_weights_of_a_small_model(model, world, tmp_path):
    heads = [by_name(model.heads)[name] for name in ("completion", "contrastive")]
    settings = dataclasses.replace(SETTINGS, method="full", steps=2)
    tree = training.train_adapter(settings, model, heads, *world, tmp_path / "run")
    assert not tree["lora"]
    still = [
        jax.tree_util.keystr(path)
        for (path, new), old in zip(
            jax.tree_util.tree_leaves_with_path(tree["params"]), jax.tree.leaves(model.params),
            strict=True,
        )
        if np.array_equal(new, old)
    ]  # fmt: skip
    assert not still
    training.save_adapter(tmp_path / "model", tree, settings, model)
    loaded = load_reward_model(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, tree["params"])
    assert loaded.heads == model.heads


def test_norms_and_biases_do_not_decay():
    """With gradients of zero AdamW moves what decays and nothing else."""
    one = jnp.ones(3)
    tree = {
        "lora": {"q_proj": {"a": one, "b": one, "scale": one, "dropout": one}},
        "params": {
            "visual": {"norm1": {"scale": one, "bias": one}, "qkv": {"kernel": one, "bias": one}},
        },
    }
    settings = Optimiser(learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
    optimiser = make_optimiser(dataclasses.replace(SETTINGS, optimiser=settings), 10)
    zeros = jax.tree.map(jnp.zeros_like, tree)
    updates, _ = optimiser.update(zeros, optimiser.init(tree), tree)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        want = -0.05 if path[-1].key in ("a", "b", "kernel") else 0.0
        np.testing.assert_allclose(update, want, rtol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(rank=2), "other ranks or modules"),
        (dict(alpha=5.0), "another alpha"),
        (dict(targets=("q_proj",)), "other ranks or modules"),
        (dict(start="/no/such/folder"), "/no/such/folder"),
    ],
)
def test_a_start_that_does_not_fit(model, alone, tmp_path, change, message):
    training.save_adapter(tmp_path / "sft", alone["completion"], SETTINGS, model)
    settings = dataclasses.replace(SETTINGS, **(dict(start=str(tmp_path / "sft")) | change))
    with pytest.raises(UserError, match=message):
        beginning(settings, model, by_name(model.heads)["completion"])


def test_a_start_is_what_training_begins_with(model, alone, tmp_path):
    """With the settings' own dropout, which the folder's does not decide."""
    training.save_adapter(tmp_path, alone["completion"], SETTINGS, model)
    settings = dataclasses.replace(SETTINGS, start=str(tmp_path), dropout=0.25)
    tree = beginning(settings, model, by_name(model.heads)["completion"])
    for (_, new), (_, old) in zip(
        *(lora.transform.factors_of(t["lora"]) for t in (tree, alone["completion"])), strict=True
    ):
        assert (new["dropout"] == 0.25).all()
        for name in ("a", "b", "scale"):
            np.testing.assert_array_equal(new[name], old[name])


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(objective="ppo"), "objective"),
        (dict(objectives={"progress": "dpp"}), "dpo"),
        (dict(distribution="kl"), "distribution"),
        (dict(label_smoothing=0.5), "label_smoothing"),
        (dict(method="full", start="x"), "start"),
    ],
)
def test_wrong_objectives(settings, message):
    with pytest.raises(UserError, match=message):
        config.build(AdapterTraining, settings, key="config.training")


def test_a_broken_reference_is_an_error(model, world, tmp_path):
    broken = dataclasses.replace(
        model, params=jax.tree.map(lambda x: x * jnp.nan, model.params), _engines={}
    )
    settings = dataclasses.replace(SETTINGS, objective="dpo")
    with pytest.raises(UserError, match="not finite"):
        training.train_adapter(
            settings, broken, by_name(model.heads)["contrastive"], *world, tmp_path
        )
    assert not list(tmp_path.glob("reference_*")) and dpo.SAVE_EVERY > 0
