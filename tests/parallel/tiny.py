"""A tiny Qwen3-VL whose every dimension divides by the meshes of the tests."""

from __future__ import annotations

import jax
import numpy as np

from lrm_jax.parallel.aot import programs
from lrm_jax.qwen3_vl import Config, Qwen3VL, TextConfig, VisionConfig, init_params
from lrm_jax.reward_training import closed_answers
from lrm_jax.rewards.layout import AnswerTable, Tables

CONFIG = Config(
    vision_config=VisionConfig(
        depth=4,
        hidden_size=48,
        intermediate_size=72,
        num_heads=4,
        patch_size=4,
        out_hidden_size=64,
        num_position_embeddings=25,
        deepstack_visual_indexes=(0, 2),
    ),
    text_config=TextConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=80,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        rope_theta=200.0,
        mrope_section=(6, 3, 3),
    ),
    image_token_id=90,
    video_token_id=91,
    vision_start_token_id=92,
    vision_end_token_id=93,
)
ROWS, IMAGES, SIDE, TOKENS, RANK, SCALE = 8, 2, 16, 20, 4, 2.0
VALUES = (0.0, 0.5, 1.0)
ANSWERS = AnswerTable(
    read=np.array([[0, 1], [0, 2], [1, 2]], np.int32),
    token=np.array([[3, 5], [4, 7], [8, 2]], np.int32),
    used=np.array([[True, True], [True, True], [True, False]]),
)


def model(remat: str = "full") -> Qwen3VL:
    return Qwen3VL(CONFIG, remat=remat)


def base():
    """Float32 parameters, every one of which matters."""
    shapes, seed = init_params(model(), jax.random.key(0)), np.random.default_rng(1)
    return jax.tree.map(
        lambda x: np.asarray(x + 0.05 * seed.standard_normal(x.shape), np.float32), shapes
    )


def adapters():
    """Factors alone: what gradients are compared of."""
    rng = np.random.default_rng(2)
    shapes = without_scale(programs.adapter_shapes(CONFIG, RANK))
    return jax.tree.map(
        lambda s: rng.normal(size=s.shape).astype(np.float32) / s.shape[-2] ** 0.5, shapes
    )


def without_scale(tree):
    """An adapter's "lora" tree without its scales."""
    return {
        k: without_scale(v) if isinstance(v, dict) else v for k, v in tree.items() if k != "scale"
    }


def with_scale(factors):
    """And with `SCALE` again."""
    if "a" in factors:
        return {**factors, "scale": jax.numpy.full(factors["a"].shape[:-2], SCALE)}
    return {key: with_scale(child) for key, child in factors.items()}


def tables() -> Tables:
    """One sentence; the first eight tokens of a row are its two images."""
    rng = np.random.default_rng(3)
    slot = np.full(TOKENS, -1, np.int32)
    slot[:4], slot[4:8] = 0, 1
    return Tables(
        tokens=rng.integers(1, 90, (1, TOKENS), dtype=np.int32),
        valid=np.ones((1, TOKENS), bool),
        positions=np.broadcast_to(np.arange(TOKENS, dtype=np.int32), (3, 1, TOKENS)).copy(),
        attention=np.tril(np.ones((TOKENS, TOKENS), bool)),
        slot=slot,
        offset=np.where(slot >= 0, np.arange(TOKENS) % 4, 0).astype(np.int32),
        reads=np.array([TOKENS - 3, TOKENS - 2, TOKENS - 1], np.int32),
    )


def rows() -> closed_answers.Rows:
    rng = np.random.default_rng(4)
    labels = rng.uniform(0, 1, ROWS).astype(np.float32)
    labels[3] = np.nan
    return closed_answers.Rows(
        frames=rng.integers(0, 256, (ROWS, IMAGES, SIDE, SIDE, 3), dtype=np.uint8),
        sentence=np.zeros(ROWS, np.int32),
        labels=labels,
    )


def lesson(network, variables, batch, rng):
    """The loss as a lesson has it; batch: (tables, rows)."""
    del rng
    tables, rows = batch
    total, count = closed_answers.cross_entropy(network, variables, tables, ANSWERS, VALUES, rows)
    return total, (count, {})


def loss(adapters, base, tables, rows):
    """The training loss, float32 []."""
    variables = {"params": base, "lora": with_scale(adapters)}
    total, (count, _) = lesson(model(), variables, (tables, rows), None)
    return total / count


def loss_and_gradients(whole: bool):
    """The loss and its gradients for the adapters and, if `whole`, for the base."""
    return jax.value_and_grad(loss, argnums=(0, 1) if whole else (0,))


def answers(adapters, base, tables, rows):
    """Log-probabilities of the answers, float32 [B, A]."""
    variables = {"params": base, "lora": with_scale(adapters)}
    return closed_answers.answer_log_probabilities(model("none"), variables, tables, ANSWERS, rows)


def relative(got, expected) -> float:
    """Largest difference over all leaves, each as a share of its leaf's largest entry."""
    worst = 0.0
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        g, e = np.asarray(g, np.float64), np.asarray(e, np.float64)
        assert g.shape == e.shape and np.isfinite(g).all()
        worst = max(worst, float(np.abs(g - e).max() / max(np.abs(e).max(), 1e-30)))
    return worst
