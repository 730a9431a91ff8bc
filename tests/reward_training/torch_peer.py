"""A tiny random Qwen3-VL with PEFT's adapter in torch, and the same conversations for both."""

import jax.numpy as jnp
import numpy as np
import torch

from lrm_jax.benchmarks import peers
from lrm_jax.lora.transform import factors_of
from lrm_jax.qwen3_vl import names, patchify
from lrm_jax.reward_training.written import Writer

SIDE = 64
TASKS = ("put the red cube on the blue plate", "put the blue cube on the white plate")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


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
