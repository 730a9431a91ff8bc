"""Heads under Qwen's real vocabulary: token ids, and scores against transformers' own."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrm_jax.benchmarks import peers
from lrm_jax.qwen3_vl import patchify
from lrm_jax.rewards import generated
from lrm_jax.rewards.heads import default_heads, joint_heads
from lrm_jax.rewards.model import load_reward_model

TASKS = ("put the red cube on the blue plate", "open the drawer")
IMAGE = 64


@pytest.fixture(scope="module")
def qwen():
    return peers.qwen_tokenizer()


@pytest.fixture(scope="module")
def theirs():
    from dashscope import get_tokenizer

    return get_tokenizer("qwen-turbo")


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=40))
def test_token_ids_are_qwens(qwen, theirs, text):
    if "<|" not in text:
        assert qwen.encode(text)[0] == theirs.encode(text)


def test_token_ids_of_prompts(qwen, theirs):
    for head in (*default_heads(), *joint_heads()):
        for part in head.pieces:
            text = part[1].replace("<|im_start|>", "").replace("<|im_end|>", "")
            assert qwen.encode(text)[0] == theirs.encode(text)
    assert qwen.token_id("<|vision_start|>") == 151652
    assert qwen.token_id("<|image_pad|>") == 151655


@pytest.fixture(scope="module")
def pair(qwen, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    hf = peers.random_peer(peers.SIZES["tiny"], qwen, folder)
    with torch.no_grad():
        for value in hf.parameters():  # far from uniform answers
            value.mul_(3.0)
    hf.save_pretrained(folder)
    return hf, load_reward_model(folder)


def brute_force(hf, qwen, config, head, task, images):
    """Log-probability of every full answer by teacher forcing, one forward each, float64 [A]."""
    grid = IMAGE // config.vision_config.patch_size
    prompt = peers.prompt_ids(head, task, qwen, grid * grid // 4)
    before = "".join(v if k == "text" else "" for k, v in head.pieces[-3:-2])
    closing = head.pieces[-1][1]
    scores = []
    for answer in head.answers:
        # The answer's tokens as they stand between scaffold and closing text.
        scaffold = before.rsplit("assistant\n", 1)[-1]
        whole = qwen.encode(scaffold + answer + closing)[0]
        alone, after = qwen.encode(scaffold)[0], qwen.encode(closing)[0]
        tokens = whole[len(alone) : len(whole) - len(after)]
        assert whole[: len(alone)] == alone and qwen.inner.decode(tokens) == answer
        ids = torch.tensor([prompt + tokens])
        given = dict(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == qwen.token_id("<|image_pad|>")).long(),
            pixel_values=torch.from_numpy(np.concatenate(images)),
            image_grid_thw=torch.tensor([[1, grid, grid]] * len(images)),
        )
        with torch.no_grad():
            logits = torch.log_softmax(hf(**given).logits[0].double(), -1)
        places = range(len(prompt) - 1, len(prompt) - 1 + len(tokens))
        scores.append(sum(float(logits[p, t]) for p, t in zip(places, tokens, strict=True)))
    return np.array(scores)


@pytest.mark.parametrize("heads", [default_heads, joint_heads])
def test_scores_equal_teacher_forcing_in_transformers(pair, qwen, heads):
    hf, model = pair
    engine = dataclasses.replace(model, heads=heads()).engine(
        TASKS, (IMAGE, IMAGE), frames_per_row=2
    )
    frames = np.random.default_rng(0).integers(0, 256, (3, 2, IMAGE, IMAGE, 3), np.uint8)
    with jax.default_matmul_precision("highest"):
        got = jax.tree.map(np.asarray, engine.score(model.params, frames, np.array([1, 0])))
        flat = patchify(jax.numpy.asarray(frames).reshape(-1, IMAGE, IMAGE, 3), model.config)
    patches = np.asarray(flat).reshape(3, 2, *flat.shape[1:])

    def answers(name, t, n, swap=False):
        head = engine.heads[name]
        shown = {"initial": 0, "previous": t - 1, "current": t}
        if swap:
            shown |= {"previous": t, "current": t - 1}
        images = [patches[shown[i], n] for i in head.images]
        scores = brute_force(hf, qwen, model.config, head, TASKS[1 - n], images)
        p = np.exp(scores - scores.max())
        return p / p.sum()

    # Log-probabilities of some tokens each, float32 against float32: 1e-4 of a probability.
    for t, n in ((0, 0), (1, 1), (2, 0)):
        np.testing.assert_allclose(got.distribution[t, n], answers("progress", t, n), atol=1e-4)
        np.testing.assert_allclose(got.completion[t, n], answers("completion", t, n)[1], atol=1e-4)
        if t:
            one, two = answers("contrastive", t, n), answers("contrastive", t, n, swap=True)
            want = (one[1] - one[0] + two[0] - two[1]) / 2
            np.testing.assert_allclose(got.contrastive[t, n], want, atol=2e-4)
    # Not a comparison of constants.
    assert np.ptp(got.distribution) > 0.05 and np.nanstd(got.contrastive) > 1e-3


@pytest.mark.parametrize("scaffold", [False, True])
def test_generated_tokens_equal_transformers(pair, qwen, scaffold):
    hf, model = pair
    config, (head,) = model.config, [h for h in default_heads() if h.name == "contrastive"]
    frames = np.random.default_rng(1).integers(0, 256, (3, IMAGE, IMAGE, 3), np.uint8)
    shown, grid = np.array([[0, 1], [2, 0]]), IMAGE // config.vision_config.patch_size
    asked = [generated.prompt(head, t, qwen, grid * grid // 4, scaffold) for t in TASKS]
    ends = generated.stops(config, qwen)
    with jax.default_matmul_precision("highest"):
        got = generated.write(
            model.model, {"params": model.params}, [p.tokens for p in asked], frames, shown, ends, 9
        )
        patches = np.asarray(patchify(jax.numpy.asarray(frames), config))
    for row, own, images in zip(asked, got, shown, strict=True):
        ids = torch.tensor([row.tokens])
        with torch.no_grad():
            want = hf.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == qwen.token_id("<|image_pad|>")).long(),
                pixel_values=torch.from_numpy(np.concatenate(patches[images])),
                image_grid_thw=torch.tensor([[1, grid, grid]] * 2),
                max_new_tokens=9, do_sample=False, eos_token_id=list(ends), pad_token_id=ends[0],
            )[0, ids.shape[1] :].tolist()  # fmt: skip
        assert own == [t for t in want if t not in ends] and len(set(own)) > 1
    assert got[0] != got[1]
    if scaffold:
        assert asked[0].tokens == qwen.encode(qwen.inner.decode(asked[0].tokens, False))[0]
        assert asked[0].begun.startswith('{"more_complete_image": "')
