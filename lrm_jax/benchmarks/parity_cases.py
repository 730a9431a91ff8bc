"""What parity is measured on, here and in the tests: small random Qwen3-VL checkpoints, written by
transformers, and inputs as its processor makes them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from lrm_jax import qwen3_vl
from lrm_jax.qwen3_vl import generate, names

IMAGE, VIDEO, START, END, VOCAB = 90, 91, 92, 93, 96

# Chosen so that no two sizes that could be confused are equal: head_dim != hidden / heads, a vision
# head of 12 (no multiple of 8), a 5x5 position table that fits none of the image grids, a rotary
# base so low that even the slowest frequency turns visibly within a test's few positions.
VISION = dict(
    depth=6,
    hidden_size=48,
    intermediate_size=72,
    num_heads=4,
    patch_size=4,
    out_hidden_size=64,
    num_position_embeddings=25,
    deepstack_visual_indexes=[1, 2, 4],
)
TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=80,
    num_hidden_layers=5,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=24,
    rope_parameters={
        "rope_type": "default",
        "rope_theta": 200.0,
        "mrope_section": [6, 3, 3],
        "mrope_interleaved": True,
    },
)


# Two rows and three images at most, so that most cases share one compiled program.
CASES = {
    "text": [[9]],
    "one_image": [[3, ("image", 6, 4), 5]],
    "two_sizes": [[3, ("image", 4, 8), 2, ("image", 6, 6), 4]],
    "video": [[2, ("video", 3, 4, 6), 4], [5]],
    "image_and_video": [[("image", 4, 4), 3], [2, ("video", 1, 4, 4), 3, ("image", 6, 4), 2]],
    "three_images": [[("image", 4, 4), 1, ("image", 8, 2), 1, ("image", 2, 2), 2], [7]],
}


def hf_config(vision=None, text=None, **top):
    return transformers.Qwen3VLConfig(
        vision_config={**VISION, **(vision or {})},
        text_config={**TEXT, **(text or {})},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        **top,
    )


def hf_model(config, seed=0):
    """A float32 model whose every parameter matters: no zero bias, unit scale, tiny kernel."""
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = transformers.Qwen3VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn_like(value)
            if value.ndim == 1:
                value.copy_(0.3 * noise + (1.0 if "norm" in name and "bias" not in name else 0.0))
            elif "embed" in name and "proj" not in name:
                value.copy_(noise)
            else:
                value.copy_(noise / value[0].numel() ** 0.5)
    return model


@dataclasses.dataclass
class Pair:
    """The same weights in transformers and here."""

    folder: object
    hf: transformers.Qwen3VLForConditionalGeneration
    ours: qwen3_vl.Backbone

    def hf_logits(self, batch) -> np.ndarray:
        with torch.no_grad():
            return self.hf(**tensors(batch)).logits.float().numpy()

    def error(self, batch) -> float:
        """Largest difference of the logits at real tokens, as a fraction of the largest logit."""
        expected, got = self.hf_logits(batch), self.ours.logits(**batch)
        real = np.asarray(batch.get("attention_mask", np.ones_like(batch["input_ids"]))) == 1
        return relative(got[real], expected[real])


def relative(got, expected) -> float:
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape and np.isfinite(got).all()
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def tensors(batch):
    batch = {k: torch.from_numpy(np.array(v)) for k, v in batch.items()}
    return {k: v.long() if v.dtype == torch.int32 else v for k, v in batch.items()}


def make_pair(folder, config, seed=0, **save) -> Pair:
    hf = hf_model(config, seed)
    hf.save_pretrained(folder, **save)
    return Pair(folder, hf, qwen3_vl.from_pretrained(folder))


def batch_of(rows, side="right", seed=0, patch_features=96):
    """Processor outputs for rows of pieces, padded on one side.

    A piece is an int n (n random text tokens), ("image", rows, columns) or ("video", t, rows,
    columns) in patches; a video's temporal patches stand after text of their own, as timestamps do.
    """
    rng = np.random.default_rng(seed)
    ids, grids = [], {"image": [], "video": []}

    def block(token, height, width):
        return [START, *[token] * (height * width // 4), END]

    for row in rows:
        out = []
        for piece in row:
            if isinstance(piece, int):
                out += rng.integers(1, IMAGE, piece).tolist()
            elif piece[0] == "image":
                out += block(IMAGE, *piece[1:])
                grids["image"].append((1, *piece[1:]))
            else:
                for _ in range(piece[1]):
                    out += rng.integers(1, IMAGE, 3).tolist() + block(VIDEO, *piece[2:])
                grids["video"].append(piece[1:])
        ids.append(out)
    length = max(map(len, ids))
    tokens = np.zeros((len(ids), length), np.int64)
    mask = np.zeros_like(tokens)
    for b, row in enumerate(ids):
        place = slice(len(row)) if side == "right" else slice(length - len(row), None)
        tokens[b, place], mask[b, place] = row, 1
    batch = {"input_ids": tokens, "attention_mask": mask}
    kinds = np.where(tokens == IMAGE, 1, np.where(tokens == VIDEO, 2, 0))
    batch["mm_token_type_ids"] = kinds
    for kind, pixels, grid in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        if grids[kind]:
            batch[grid] = np.asarray(grids[kind], np.int64)
            count = int(batch[grid].prod(1).sum())
            batch[pixels] = rng.uniform(-1, 1, (count, patch_features)).astype(np.float32)
    return batch


def hf_gradients(pair, batch):
    """Next-token cross entropy of the real tokens, and its gradients in our tree's layout."""
    pair.hf.zero_grad()
    given = tensors(batch)
    scores = torch.log_softmax(pair.hf(**given).logits[:, :-1], -1)
    picked = torch.gather(scores, -1, given["input_ids"][:, 1:, None])[..., 0]
    real = (given["attention_mask"][:, 1:] & given["attention_mask"][:, :-1]).float()
    loss = -(picked * real).sum() / real.sum()
    loss.backward()
    flat = {k: v.grad.numpy() for k, v in pair.hf.named_parameters() if v.grad is not None}
    out = {}
    for leaf in names.leaves(pair.ours.config):
        parts = [leaf.from_file(flat[name]) for name in leaf.names]
        out[leaf.path] = np.stack(parts) if leaf.stacked else parts[0]
    return float(loss.detach()), out


def next_token_loss(model, params, packed):
    """Our side of `hf_gradients`: the same loss of a packed batch, float32 []."""
    scores = jax.nn.log_softmax(
        generate.logits.__wrapped__(model, params, None, packed, None)[:, :-1]
    )
    picked = jnp.take_along_axis(scores, packed.tokens[:, 1:, None], -1)[..., 0]
    real = packed.valid[:, 1:] & packed.valid[:, :-1]
    return -jnp.sum(jnp.where(real, picked, 0)) / real.sum()
