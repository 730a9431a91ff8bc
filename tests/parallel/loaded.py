"""What users load, on a mesh and on one device: a checkpoint's logits and tokens, a reward model's
scores."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import tiny

import lrm_jax
from lrm_jax import lora
from lrm_jax.lora.transform import factors_of
from lrm_jax.qwen3_vl import from_pretrained, names

MESH = "data=2,fsdp=2,tensor=2"


def outputs() -> dict:
    """What a processor returns for three rows of other lengths, the first two with an image."""
    config, rng = tiny.CONFIG, np.random.default_rng(0)
    tokens = rng.integers(1, 90, (3, 12))
    mask = np.ones_like(tokens)
    tokens[0, 2:6] = tokens[1, 5:9] = config.image_token_id
    mask[1, :2] = mask[2, :5] = 0
    pixels = rng.normal(size=(32, config.vision_config.patch_features)).astype(np.float32)
    return dict(
        input_ids=tokens, attention_mask=mask, pixel_values=pixels,
        image_grid_thw=np.array([[1, 4, 4]] * 2),
    )  # fmt: skip


def save_adapter(folder: Path, config) -> Path:
    """A PEFT folder of random factors, B not zero."""
    chosen = lora.LoraConfig(rank=4, alpha=8.0, targets=("q_proj", "down_proj"))
    leaves = names.leaves(config)
    adapter = lora.init(jax.random.key(0), {}, chosen, leaves)
    rng = np.random.default_rng(5)
    for _, pair in factors_of(adapter["lora"]):
        pair["b"] = rng.normal(0, 0.1, pair["b"].shape).astype(np.float32)
    lora.save_peft(folder, adapter, chosen, leaves)
    return folder


def adapted(folder: Path, given: dict, keep: np.ndarray, plain: np.ndarray) -> dict:
    """One row with an adapter, one without, one with; what a mesh changes."""
    own = {"a": save_adapter(folder.parent / "adapter", tiny.CONFIG)}
    chosen = ["a", None, "a"]
    alone = from_pretrained(folder, adapters=own)
    cut = from_pretrained(folder, adapters=own, mesh=MESH)
    logits = alone.logits(**given, adapter=chosen)[keep]
    trees = {"params": cut.params, "lora": cut.lora}
    whole = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(trees)
        if path[-1].key in ("kernel", "a", "b") and leaf.sharding.is_fully_replicated
    ]
    return {
        "adapted": tiny.relative([cut.logits(**given, adapter=chosen)[keep]], [logits]),
        "adapter_moves": tiny.relative([logits], [plain]),
        "whole": whole,
    }


def measured(folder: Path) -> dict:
    """The largest differences from one device, and the share of the parameters on one device."""
    given = outputs()
    keep = given["attention_mask"].astype(bool)
    alone, cut = from_pretrained(folder), from_pretrained(folder, mesh=MESH)
    logits = alone.logits(**given)[keep]
    frames = np.random.default_rng(1).integers(0, 256, (3, 5, 64, 64, 3), np.uint8)
    tasks = [f"put the {c} cube on the white plate" for c in ("red", "blue", "green")]
    one = lrm_jax.load_reward_model("lrm-nano")
    many = lrm_jax.load_reward_model("lrm-nano", mesh=MESH)
    scores, found = one.score(frames, tasks), many.score(frames, tasks)
    where = {"progress": save_adapter(folder.parent / "nano_adapter", one.config)}
    both = [m.with_adapters(where).score(frames, tasks, heads=["progress"]) for m in (one, many)]
    said = [m.generate(frames[:1, :3], tasks[0], max_new_tokens=3).texts for m in (one, many)]
    return adapted(folder, given, keep, logits) | {
        "adapted_scores": float(np.abs(both[0].progress - both[1].progress).max()),
        "logits": tiny.relative([cut.logits(**given)[keep]], [logits]),
        "tokens": bool(np.array_equal(cut.generate(**given, max_new_tokens=5),
                                      alone.generate(**given, max_new_tokens=5))),
        "held": sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(cut.params))
        / sum(x.nbytes for x in jax.tree.leaves(cut.params)),
        "scores": max(
            float(np.nanmax(np.abs(getattr(scores, n) - getattr(found, n))))
            for n in ("progress", "completion", "contrastive", "tri", "distribution")
        ),
        "valid": all(np.array_equal(scores.valid[n], found.valid[n]) for n in scores.valid),
        "shape": list(found.progress.shape),
        "texts": all(np.array_equal(said[0][n], said[1][n]) for n in said[0]),
    }  # fmt: skip
