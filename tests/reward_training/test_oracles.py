"""DPO, the expectation loss and a trained vision tower: losses, gradients and a step of AdamW
against torch, transformers and PEFT."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import safetensors.numpy
import torch
import transformers

from lrm_jax import lora
from lrm_jax.labels import FrameStore
from lrm_jax.qwen3_vl import names, read_adapter
from lrm_jax.reward_training import AdapterTraining, dpo, lessons
from lrm_jax.reward_training import adapters as training
from lrm_jax.reward_training.step import TrainState
from lrm_jax.reward_training.written import Writer
from lrm_jax.rewards.heads import by_name, default_heads
from lrm_jax.rewards.model import load_reward_model

from .torch_peer import SIDE, TARGETS, TASKS, pairs, torch_inputs

# Adam's first step is rate g / (|g| + eps): an eps above the rounding of g makes it a well-posed
# function of the gradient.
RATE, EPS = 1e-2, 1e-3
# float32 sums in another order: a few ulp (6e-8) a layer over about ten layers and back.
TOLERANCE = 2e-5
BETA, SMOOTHING = 0.5, 0.1


@pytest.fixture(scope="module")
def model(peer):
    return load_reward_model(peer[0])


def asked(model, name, labels):
    """(writer, store, examples) of a head about random frames, one question a label."""
    head, rng = by_name(default_heads())[name], np.random.default_rng(0)
    rows, images = len(labels), len(head.images)
    frames = rng.integers(0, 256, (rows * images, SIDE, SIDE, 3), np.uint8)
    store = FrameStore(frames, np.array([0, len(frames)]))
    found = lessons.Examples(
        np.arange(rows * images).reshape(rows, images), np.arange(rows, dtype=np.int32) % 2,
        np.asarray(labels, np.float32),
    )  # fmt: skip
    return Writer(head, model.tokenizer, model.config, (SIDE, SIDE), TASKS), store, found


def one_step(model, adapter, lesson, rows, decay=0.01):
    """(state, numbers, gradients) of an AdamW step; its first moment is a tenth of the gradient."""
    optimiser = lora.only_trainable(optax.adamw(RATE, weight_decay=decay, eps=EPS))
    state = TrainState(adapter, optimiser.init(adapter), jnp.zeros((), jnp.int32))
    batch = lesson.rows(np.arange(rows), np.random.default_rng(0))
    with jax.default_matmul_precision("highest"):
        step = training.make_step(model.model, optimiser, loss=lesson.loss)
        state, numbers = step(state, model.params, batch)
    moments = optax.tree_utils.tree_get(state.optimiser, "mu")
    return state, numbers, jax.tree.map(lambda x: x / (1 - 0.9), moments)


def torch_step(theirs, loss, decay=0.01):
    weights = [p for p in theirs.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(weights, lr=RATE, weight_decay=decay, eps=EPS)
    loss.backward()
    grads = {n: p.grad.clone() for n, p in theirs.named_parameters() if p.requires_grad}
    adam.step()
    return grads


def check_step(model, state, grads, theirs, theirs_grads, tolerance=TOLERANCE):
    """Gradients, and factors after the step, whose slope in the gradient is at most RATE / EPS."""
    after = pairs(state.params, dict(theirs.named_parameters()), model.config)
    errors, largest = {}, 0.0
    for i, (ours, want) in enumerate(pairs(grads, theirs_grads, model.config)):
        errors[i] = np.abs(ours - want).max()
        largest = max(largest, np.abs(want).max())
        np.testing.assert_allclose(ours, want, atol=tolerance * max(np.abs(want).max(), 1e-3))
    count = 0
    for i, (ours, want) in enumerate(after):
        allowed = RATE * (errors[i] / EPS + 1e-5) + 2**-22 * np.abs(want).max()
        assert allowed < 0.1 * RATE
        np.testing.assert_allclose(ours, want, rtol=0, atol=allowed)
        count += 1
    assert largest > 0 and count == 2 * len(TARGETS) * model.config.text_config.num_hidden_layers


def torch_turns(theirs, model, head, frames, answers):
    """log P of the assistant's turn for each row, written out in torch."""
    batch = type("Shown", (), {"frames": frames})
    given = torch_inputs(model, head, batch, answers)
    labels = given.pop("labels")[:, 1:]
    scores = torch.log_softmax(theirs(**given).logits[:, :-1].float(), -1)
    picked = scores.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return (picked * (labels != -100)).sum(-1)


@pytest.fixture(scope="module")
def preferred(peer, model, tmp_path_factory):
    """Ours and torch's DPO; the reference is the base without the adapter, as TRL has it."""
    _, folder, theirs = peer
    writer, store, found = asked(model, "contrastive", [1, -1, -1, 1])
    frames = store.frames[found.images]
    cache = tmp_path_factory.mktemp("reference")
    given = (model.model, {"params": model.params}, writer, store, found, 0, 3, cache)
    with jax.default_matmul_precision("highest"):
        reference = dpo.reference_log_probabilities(*given, identity="base")
    lesson = dpo.preferences(writer, store, found, reference, 0, BETA, SMOOTHING)
    adapter = read_adapter(folder, model.config, model.params)
    state, numbers, grads = one_step(model, adapter, lesson, 4)

    chosen, rejected = [1, 0, 0, 1], [0, 1, 1, 0]
    with torch.no_grad(), theirs.disable_adapter():
        ref_c, ref_r = (
            torch_turns(theirs, model, writer.head, frames, a) for a in (chosen, rejected)
        )
    pi_c, pi_r = (torch_turns(theirs, model, writer.head, frames, a) for a in (chosen, rejected))
    logits = BETA * ((pi_c - ref_c) - (pi_r - ref_r))
    loss = (
        -torch.nn.functional.logsigmoid(logits) * (1 - SMOOTHING)
        - torch.nn.functional.logsigmoid(-logits) * SMOOTHING
    ).mean()
    theirs_grads = torch_step(theirs, loss)
    return dict(
        given=given, reference=reference, theirs_reference=torch.stack([ref_c, ref_r], 1).numpy(),
        numbers=numbers, loss=loss.item(), margin=logits.detach().numpy(), state=state,
        grads=grads, theirs=theirs, theirs_grads=theirs_grads,
    )  # fmt: skip


def test_reference_log_probabilities_are_torchs(preferred):
    # Sums over about ten tokens, each of a few nats.
    np.testing.assert_allclose(
        preferred["reference"], preferred["theirs_reference"], rtol=TOLERANCE
    )


def test_dpo_loss_gradients_and_step_are_torchs(preferred, model):
    p, margin = preferred, preferred["margin"]
    assert np.abs(margin).max() > 0.01  # the adapter has moved from its reference
    assert abs(float(p["numbers"]["loss"]) - p["loss"]) < 1e-4 * p["loss"]
    assert float(p["numbers"]["preference_accuracy"]) == (margin > 0).mean()
    # A margin is a small difference of sums of about 50 nats.
    assert abs(float(p["numbers"]["preference_margin"]) - margin.mean()) < 1e-4
    # The gradients of the two turns, which differ in one token, cancel but for a few per cent.
    check_step(
        model, p["state"], p["grads"], p["theirs"], p["theirs_grads"], tolerance=10 * TOLERANCE
    )


def test_the_reference_is_computed_once(preferred, monkeypatch):
    """A second run reads it; of a changed example, or under another model, it is computed."""
    *start, writer, store, found, seed, rows, cache = preferred["given"]

    def refuse(*_):
        raise AssertionError("computed")

    monkeypatch.setattr(dpo, "turn_log_probabilities", refuse)

    def again(store=store, identity="base"):
        return dpo.reference_log_probabilities(
            *start, writer, store, found, seed, rows, cache, identity=identity
        )

    np.testing.assert_array_equal(again(), preferred["reference"])
    frames = store.frames.copy()
    frames[0, 0, 0, 0] ^= 1
    for change in (dict(store=FrameStore(frames, store.starts)), dict(identity="another")):
        with pytest.raises(AssertionError, match="computed"):
            again(**change)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_loss_is_the_formula(smoothing):
    rng = np.random.default_rng(0)
    policy, reference = (np.float32(rng.normal(-20, 8, (64, 2))) for _ in range(2))
    ours, grad = jax.value_and_grad(lambda p: dpo.loss(p, reference, 0.3, smoothing)[0].sum())(
        policy
    )
    pi, ref = torch.tensor(policy, requires_grad=True), torch.tensor(reference)
    logits = 0.3 * ((pi[:, 0] - ref[:, 0]) - (pi[:, 1] - ref[:, 1]))
    sigmoid = torch.nn.functional.logsigmoid
    theirs = (-sigmoid(logits) * (1 - smoothing) - sigmoid(-logits) * smoothing).sum()
    theirs.backward()
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-5)
    np.testing.assert_allclose(grad, pi.grad.numpy(), atol=1e-6)


# --- expectation ---


def torch_crps(log_p, values, labels):
    """The integral itself, piece by piece between answers and label."""
    chance, total = torch.softmax(log_p, -1), []
    for row, label in zip(chance, labels, strict=True):
        cuts = sorted({*values, float(label)})
        pieces = []
        for low, high in itertools.pairwise(cuts):
            below = sum(p for p, v in zip(row, values, strict=True) if v <= low)
            pieces.append((below - float(label <= low)) ** 2 * (high - low))
        total.append(sum(pieces))
    return torch.stack(total)


def test_expectation_gradients_and_step_are_torchs(peer, model):
    """CRPS over eleven answers: ours from one row's token tree, theirs from a row an answer."""
    base, folder, _ = peer
    hf = transformers.Qwen3VLForConditionalGeneration.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(hf, folder, is_trainable=True).eval()
    labels = [0.34, 0.8]
    writer, store, found = asked(model, "progress", labels)
    lesson = lessons.expected(writer, (store, found), "crps", 0.0, closed_mass=0.1)
    adapter = read_adapter(folder, model.config, model.params)
    state, numbers, grads = one_step(model, adapter, lesson, 2)

    head, frames = writer.head, store.frames[found.images]
    columns = []
    for number, text in enumerate(head.answers):
        (token,) = model.tokenizer.encode(text)[0]
        batch = type("Shown", (), {"frames": frames})
        given = torch_inputs(model, head, batch, [number] * 2)
        turn = given.pop("labels")
        scores = torch.log_softmax(theirs(**given).logits.float(), -1)
        at = [int(np.flatnonzero(row == token)[0]) for row in turn.numpy()]
        columns.append(torch.stack([scores[i, p - 1, token] for i, p in enumerate(at)]))
    log_p = torch.stack(columns, -1)
    each = torch_crps(log_p, head.values, labels) - 0.1 * torch.logsumexp(log_p, -1)
    theirs_grads = torch_step(theirs, each.mean())
    assert abs(float(numbers["loss"]) - each.mean().item()) < TOLERANCE * each.mean().item()
    mean = (torch.softmax(log_p, -1) * torch.tensor(head.values)).sum(-1).detach().numpy()
    assert abs(float(numbers["mae"]) - np.abs(mean - labels).mean()) < 1e-5
    check_step(model, state, grads, theirs, theirs_grads)


# --- vision tower ---


def test_a_trained_vision_tower_steps_as_pefts(peer, model, tmp_path):
    """PEFT reads our fresh adapter with its own tower, both take a step, all tensors agree."""
    settings = AdapterTraining(rank=4, alpha=8.0, train_vision=True)
    config, leaves = settings.lora_config(), names.leaves(model.config)
    adapter = lora.init(jax.random.key(0), model.params, config, leaves)
    assert set(adapter["params"]) == {"visual"}
    lora.save_peft(tmp_path / "before", adapter, config, leaves)
    hf = transformers.Qwen3VLForConditionalGeneration.from_pretrained(peer[0])
    theirs = peft.PeftModel.from_pretrained(hf, tmp_path / "before", is_trainable=True).eval()
    writer, store, found = asked(model, "completion", [1, 0])
    lesson = lessons.written(writer, (store, found))
    state, numbers, grads = one_step(model, adapter, lesson, 2, decay=0.0)

    batch = type("Shown", (), {"frames": store.frames[found.images]})
    loss = theirs(**torch_inputs(model, writer.head, batch, [1, 0])).loss
    torch_step(theirs, loss, decay=0.0)
    assert abs(float(numbers["loss"]) - loss.item()) < TOLERANCE * loss.item()
    training.save_adapter(tmp_path / "after", state.params, settings, model)
    ours = safetensors.numpy.load_file(tmp_path / "after" / "adapter_model.safetensors")
    want = {k: v.detach().numpy() for k, v in peft.get_peft_model_state_dict(theirs).items()}
    assert set(ours) == set(want)
    assert sum(".visual." in k for k in ours) > 20
    before = safetensors.numpy.load_file(tmp_path / "before" / "adapter_model.safetensors")
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads["params"]))
    allowed = RATE * (TOLERANCE * largest / EPS + 1e-5)
    for name, value in want.items():
        np.testing.assert_allclose(
            ours[name], value, rtol=0, atol=allowed + 2**-22 * np.abs(value).max(), err_msg=name
        )
    moved = [np.abs(want[k] - before[k]).max() for k in want if ".visual." in k]
    assert allowed < 0.1 * RATE and max(moved) > 0.5 * RATE
