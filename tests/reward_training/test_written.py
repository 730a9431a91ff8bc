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
from lrm_jax.benchmarks import peers
from lrm_jax.labels import sentences_of
from lrm_jax.lora.transform import factors_of
from lrm_jax.qwen3_vl import names, patchify, read_adapter
from lrm_jax.reward_training import AdapterTraining, Optimiser, lessons
from lrm_jax.reward_training import adapters as training
from lrm_jax.reward_training.lessons import written_loss
from lrm_jax.reward_training.step import TrainState
from lrm_jax.reward_training.written import Writer, answer_of, total_loss
from lrm_jax.rewards.heads import Head, by_name, default_heads, nano_heads
from lrm_jax.rewards.model import NANO_FOLDER, load_reward_model
from lrm_jax.rewards.tokenizer import Tokenizer
from lrm_jax.run.errors import UserError

from . import toy

SIDE = 64
TASKS = ("put the red cube on the blue plate", "put the blue cube on the white plate")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
RATE = 1e-2
# float32 sums in another order: a few ulp (6e-8) a layer over about ten layers and back.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """(folder of the base, folder of an adapter, PEFT's model): random weights, non-zero B."""
    folder = tmp_path_factory.mktemp("written")
    tokenizer = Tokenizer.from_folder(NANO_FOLDER)
    tokenizer.inner.add_special_tokens(["<|video_pad|>"])
    tiny = peers.SIZES["tiny"]
    config = dataclasses.replace(
        tiny,
        text_config=dataclasses.replace(tiny.text_config, vocab_size=tokenizer.size + 3),
        **{
            f"{field}_token_id": tokenizer.token_id(f"<|{token}|>")
            for field, token in (
                ("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"),
                ("vision_end", "vision_end"),
            )
        },
    )  # fmt: skip
    hf = peers.random_peer(config, tokenizer, folder / "base")
    theirs = peft.get_peft_model(
        hf,
        peft.LoraConfig(
            r=4, lora_alpha=8, target_modules=rf".*language_model.*\.({'|'.join(TARGETS)})"
        ),
    )
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.05)
    theirs.save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter", theirs


def conversations(model, head, rows=4):
    rng = np.random.default_rng(0)
    writer = Writer(head, model.tokenizer, model.config, (SIDE, SIDE), TASKS)
    frames = rng.integers(0, 256, (rows, len(head.images), SIDE, SIDE, 3), np.uint8)
    answers = rng.integers(0, len(head.answers), rows)
    return writer.batch(frames, [TASKS[i % 2] for i in range(rows)], answers), answers


def torch_inputs(model, head, batch, answers):
    """The same conversations as transformers takes them, written out by hand."""
    pad, tokens = model.tokenizer.token_id("<|image_pad|>"), []
    for i, answer in enumerate(answers):
        text = head.prompt.replace("<task>", TASKS[i % 2])
        text = text.replace("<answer>", head.answers[answer])
        for image in head.images:
            shown = "<|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|>"
            text = text.replace(f"<image:{image}>", shown)
        said = text.index("<|im_start|>assistant\n") + len("<|im_start|>assistant\n")
        ids, starts = model.tokenizer.encode(text)
        tokens.append((ids, [s >= said for s in starts]))
    width = max(len(ids) for ids, _ in tokens)
    ids = np.zeros((len(tokens), width), np.int64)
    mask, labels = np.zeros_like(ids), np.full_like(ids, -100)
    for i, (row, learnt) in enumerate(tokens):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
        labels[i, : len(row)][learnt] = np.array(row)[learnt]
    pixels = patchify(jnp.asarray(batch.frames).reshape(-1, SIDE, SIDE, 3), model.config)
    given = dict(
        input_ids=ids, attention_mask=mask, labels=labels,
        mm_token_type_ids=(ids == pad).astype(np.int64),
        pixel_values=np.asarray(pixels).reshape(-1, pixels.shape[-1]),
        image_grid_thw=np.array([[1, 4, 4]] * pixels.shape[0]),
    )  # fmt: skip
    return peers.as_torch(given, torch)


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


def torch_factor(tensors, layer, module, factor):
    (name,) = [
        n for n in tensors if f"layers.{layer}.self_attn.{module}." in n and f"lora_{factor}" in n
    ]
    return tensors[name].detach().numpy().T


def pairs(tree, tensors, config):
    """(ours, theirs) for each factor of each decoder layer; ours may be scanned or unrolled."""
    found = dict(factors_of(tree["lora"]))
    for leaf in names.leaves(config):
        if leaf.path[0] != "language_model" or leaf.path[-2] not in TARGETS:
            continue
        own = found[leaf.path[:-1]]
        for i, name in enumerate(leaf.names):
            layer = int(name.split("layers.")[1].split(".")[0])
            for factor in ("a", "b"):
                ours = own[factor][i] if leaf.stacked else own[factor]
                yield np.asarray(ours), torch_factor(tensors, layer, leaf.path[-2], factor.upper())


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


SETTINGS = AdapterTraining(
    rank=4, alpha=8.0, rows=8, accumulate=2, steps=5, remat="none", checkpoint_every=2, dropout=0.1,
    optimiser=Optimiser(learning_rate=1e-2, warmup_steps=1),
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_program_a_head():
    """Compiling takes longest here: runs with the same settings share their step."""
    original, made = training.make_step, {}

    def make_step(model, optimiser, accumulate=1, dropout_seed=None, loss=written_loss):
        key = (model, accumulate, dropout_seed, loss)
        return made.setdefault(key, original(model, optimiser, accumulate, dropout_seed, loss))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "make_step", make_step)
        yield


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
