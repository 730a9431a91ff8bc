"""Fine-tuning on written answers: the loss, its gradients and a step against transformers and PEFT,
and a resumed run against an uninterrupted one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch

from lrm_jax import lora
from lrm_jax.labels import sentences_of
from lrm_jax.lora.transform import factors_of
from lrm_jax.qwen3_vl import read_adapter
from lrm_jax.reward_training import AdapterTraining, Optimiser, lessons
from lrm_jax.reward_training import adapters as training
from lrm_jax.reward_training.step import TrainState
from lrm_jax.reward_training.written import answer_of, total_loss
from lrm_jax.rewards.heads import Head, by_name, default_heads, nano_heads
from lrm_jax.rewards.model import load_reward_model
from lrm_jax.run.errors import UserError

from . import toy
from .torch_peer import TARGETS, conversations, pairs, torch_inputs

RATE = 1e-2
# float32 sums in another order: a few ulp (6e-8) a layer over about ten layers and back.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def compared(peer):
    """Ours and PEFT's loss, gradients, and adapter after one AdamW step."""
    base, folder, theirs = peer
    model = load_reward_model(base)
    head = by_name(default_heads())["contrastive"]
    batch, answers = conversations(model, head)
    with jax.default_matmul_precision("highest"):
        adapter = read_adapter(folder, model.config, model.params)
        optimiser = lora.only_trainable(optax.adamw(RATE, weight_decay=0.01))
        state = TrainState(adapter, optimiser.init(adapter), jnp.zeros((), jnp.int32))
        grads = jax.grad(
            lambda a: (lambda total, n: total / n)(
                *total_loss(model.model, lora.variables(model.params, a), batch)
            )
        )(adapter)
        state, numbers = training.make_step(model.model, optimiser)(state, model.params, batch)
        parts = TrainState(
            read_adapter(folder, model.config, model.params),
            optimiser.init(adapter), jnp.zeros((), jnp.int32),
        )  # fmt: skip
        parts, in_parts = training.make_step(model.model, optimiser, accumulate=2)(
            parts, model.params, batch
        )
    adam = torch.optim.AdamW(
        [p for p in theirs.parameters() if p.requires_grad], lr=RATE, weight_decay=0.01
    )
    loss = theirs(**torch_inputs(model, head, batch, answers)).loss
    loss.backward()
    theirs_grads = {n: p.grad.clone() for n, p in theirs.named_parameters() if p.requires_grad}
    adam.step()
    return dict(
        loss=(float(numbers["loss"]), float(loss.detach())), model=model, grads=grads,
        theirs_grads=theirs_grads, state=state, parts=parts, in_parts=in_parts, numbers=numbers,
        theirs=theirs,
    )  # fmt: skip


def test_loss_is_transformers_loss(compared):
    ours, theirs = compared["loss"]
    assert abs(ours - theirs) < TOLERANCE * theirs


def test_gradients_are_pefts(compared):
    config, count = compared["model"].config, 0
    for ours, theirs in pairs(compared["grads"], compared["theirs_grads"], config):
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE * np.abs(theirs).max())
        count += 1
    assert count == 2 * len(TARGETS) * config.text_config.num_hidden_layers


def test_a_step_is_pefts(compared):
    """AdamW's first step is the sign of the gradient: where that is as small as its error it may
    differ by all of the learning rate, so those entries (below a hundredth) are left out."""
    tensors = dict(compared["theirs"].named_parameters())
    config = compared["model"].config
    sizes = list(pairs(compared["grads"], compared["theirs_grads"], config))
    after = list(pairs(compared["state"].params, tensors, config))
    for (ours, theirs), (_, grad) in zip(after, sizes, strict=True):
        clear = np.abs(grad) > 1e-2 * np.abs(grad).max()
        assert clear.mean() > 0.3
        np.testing.assert_allclose(ours[clear], theirs[clear], atol=1e-3 * RATE)


def test_parts_of_a_batch_have_the_gradients_of_the_whole(compared):
    for name in ("loss", "grad_norm"):
        whole = float(compared["numbers"][name])
        assert abs(float(compared["in_parts"][name]) - whole) < TOLERANCE * whole
    for a, b in zip(
        jax.tree.leaves(compared["parts"].optimiser), jax.tree.leaves(compared["state"].optimiser),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(a, b, atol=TOLERANCE * max(float(np.abs(b).max()), 1e-12))


def test_labels_between_answers_are_learnt_in_their_shares():
    head = by_name(nano_heads())["progress"]
    rng = np.random.default_rng(0)
    drawn = answer_of(head, np.full(20_000, 0.34), rng)
    values = np.asarray(head.values)[drawn]
    assert set(np.round(values, 6)) == {0.3, 0.4}
    # The mean of 20,000 draws of spread 0.049: 4.5 standard errors.
    assert abs(values.mean() - 0.34) < 4.5 * 0.049 / 20_000**0.5
    both = by_name(nano_heads())["contrastive"]
    np.testing.assert_array_equal(answer_of(both, np.array([-1.0, 1.0]), rng), [0, 1])


pytestmark = pytest.mark.usefixtures("one_program_a_loss")
SETTINGS = AdapterTraining(
    rank=4, alpha=8.0, rows=8, accumulate=2, steps=5, remat="none", checkpoint_every=2, dropout=0.1,
    optimiser=Optimiser(learning_rate=1e-2, warmup_steps=1),
)  # fmt: skip


@pytest.fixture(scope="module")
def nano():
    return load_reward_model("lrm-nano")


@pytest.fixture(scope="module")
def world():
    store, clips = toy.toy_clips(count=8, length=6)
    frames = np.repeat(np.repeat(store.frames, 2, axis=1), 2, axis=2)  # 64 x 64, as lrm-nano's
    return dataclasses.replace(store, frames=frames), clips


def test_a_killed_run_ends_with_the_same_adapter(nano, world, tmp_path, monkeypatch):
    """Killed twice, between checkpoints; then saved, and read by the package and by PEFT."""
    head = by_name(nano.heads)["progress"]
    whole = training.train_adapter(SETTINGS, nano, head, *world, tmp_path / "whole")
    draw, calls = lessons.Batches.__call__, []

    def killed(self, step):
        calls.append(step)
        if len(calls) in (4, 6):
            raise KeyboardInterrupt
        return draw(self, step)

    monkeypatch.setattr(lessons.Batches, "__call__", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            training.train_adapter(SETTINGS, nano, head, *world, tmp_path / "killed")
    again = training.train_adapter(SETTINGS, nano, head, *world, tmp_path / "killed")
    assert calls == [0, 1, 2, 3, 2, 3, 2, 3, 4]  # the fourth and the sixth call were killed
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    assert any(np.abs(pair["b"]).max() > 0 for _, pair in factors_of(again["lora"]))

    training.save_adapter(tmp_path / "peft", again, SETTINGS, nano)
    loaded = load_reward_model("lrm-nano", adapters={"progress": tmp_path / "peft"})
    back = dict(factors_of(loaded.adapters["progress"]["lora"]))
    for path, pair in factors_of(again["lora"]):
        np.testing.assert_array_equal(back[path]["a"], pair["a"])
        np.testing.assert_array_equal(back[path]["b"], pair["b"])
    assert peft.PeftConfig.from_pretrained(tmp_path / "peft").r == 4


def test_a_lost_loss_stops_and_leaves_its_batch(nano, world, tmp_path):
    head = by_name(nano.heads)["completion"]
    broken = dataclasses.replace(
        nano, params=jax.tree.map(lambda x: x * jnp.nan, nano.params), _engines={}
    )
    with pytest.raises(UserError, match=r"not a finite number.*bad_batch\.npz"):
        training.train_adapter(SETTINGS, broken, head, *world, tmp_path)
    assert np.load(tmp_path / "bad_batch.npz")["tokens"].shape[0] == 8


@pytest.mark.parametrize(
    "change, message",
    [(dict(rows=9), "multiple of 2"), (dict(rows=4096), "do not fill a batch")],
)
def test_wrong_settings(nano, world, tmp_path, change, message):
    settings = dataclasses.replace(SETTINGS, **change)
    with pytest.raises(UserError, match=message):
        training.train_adapter(settings, nano, by_name(nano.heads)["progress"], *world, tmp_path)


def test_a_head_without_labels(world):
    _, clips = world
    head = Head("tidiness", by_name(nano_heads())["completion"].prompt, ("no", "yes"), (0, 1))
    with pytest.raises(UserError, match="no labels of that name"):
        lessons.examples_of(head, clips, sentences_of(clips), SETTINGS.examples, 0)
