"""Prefill and a LoRA training step: this package beside transformers and PEFT in torch.

    python -m lrm_jax.benchmarks.lora_step --json=FILE [--size=100m --dtype=float32]

The same random weights and inputs for both: rows with one image and a sentence of random words, cut
to one length, so that neither side pads. Prefill gives the logits of the last place. A training
step is forward, cross-entropy of the last `--answer` tokens, gradients of rank-64 factors on q, k,
v and o, AdamW. Losses of both are compared first; a benchmark of two different computations would
mean nothing.
"""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from lrm_jax import lora
from lrm_jax.benchmarks import peers
from lrm_jax.qwen3_vl import from_pretrained, names
from lrm_jax.qwen3_vl.batching import pack
from lrm_jax.qwen3_vl.model import Qwen3VL
from lrm_jax.rewards import cost
from lrm_jax.run.cli import reject_arguments, run_app
from lrm_jax.run.errors import UserError
from lrm_jax.run.platform import network_options

_JSON = flags.DEFINE_string("json", None, "File for the figures.", required=True)
_SIZE = flags.DEFINE_enum("size", "100m", list(peers.SIZES), "Size of the random model.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of base and computation.")
_IMAGE = flags.DEFINE_integer("image", 256, "Height and width of a frame in pixels.", 32)
_ROWS = flags.DEFINE_integer("rows", 8, "Rows of a batch.", 1)
_TOKENS = flags.DEFINE_integer("tokens", 192, "Tokens of a row, its image included.", 16)
_ANSWER = flags.DEFINE_integer("answer", 8, "Tokens at a row's end that are learnt.", 1)
_RANK = flags.DEFINE_integer("rank", 64, "Rank of the factors.", 1)
_REMAT = flags.DEFINE_enum("remat", "none", ["none", "dots", "full"], "What we recompute.")
_SECONDS = flags.DEFINE_float("seconds", 10.0, "Least time for each measurement.", 0.1)

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
RATE = 1e-4


def inputs(config, rows: int, tokens: int, image: int) -> dict[str, np.ndarray]:
    """Processor outputs: an image, then random words; every row `tokens` long."""
    rng = np.random.default_rng(0)
    vision = config.vision_config
    side = image // vision.patch_size
    shown = side * side // vision.spatial_merge_size**2
    if tokens < shown + 3:
        raise UserError(f"--tokens={tokens}: an image of {image} pixels alone takes {shown + 2}")
    ids = rng.integers(0, 150_000, (rows, tokens))
    ids[:, 0], ids[:, shown + 1] = config.vision_start_token_id, config.vision_end_token_id
    ids[:, 1 : shown + 1] = config.image_token_id
    return dict(
        input_ids=ids,
        attention_mask=np.ones_like(ids),
        mm_token_type_ids=(ids == config.image_token_id).astype(np.int64),
        pixel_values=rng.uniform(-1, 1, (rows * side * side, vision.patch_features)).astype(
            np.float32
        ),
        image_grid_thw=np.array([[1, side, side]] * rows),
    )


def flops(config, rows: int, tokens: int, answer: int, image: int, rank: int) -> dict[str, float]:
    """Matrix-product FLOPs: a prefill, and the least that a training step takes.

    The step: forward of everything, gradients of activations through the decoder (the image tower
    lies before the first factor and needs none), and of the factors.
    """
    text = config.text_config
    patches = (image // config.vision_config.patch_size) ** 2
    decoder = cost.row_flops(config, tokens, answer)
    wide = text.num_attention_heads * text.head_dim
    narrow = text.num_key_value_heads * text.head_dim
    pairs = 2 * (text.hidden_size + wide) + 2 * (text.hidden_size + narrow)
    factors = 2 * tokens * text.num_hidden_layers * rank * pairs
    once = cost.image_flops(config, patches)
    return {
        "prefill": rows * (once + cost.row_flops(config, tokens, 1)),
        "step": rows * (once + 2 * decoder + 3 * factors),
    }


def main(argv: list[str]) -> None:
    """Measures and writes the figures."""
    reject_arguments(argv)
    torch, transformers = peers.need_torch()
    try:
        import peft
    except ImportError as error:
        raise UserError("peft is not installed: pip install 'lrm_jax[test]'") from error
    tokenizer = peers.qwen_tokenizer()
    answer, rank = _ANSWER.value, _RANK.value
    with tempfile.TemporaryDirectory() as name:
        base, start = Path(name) / "base", Path(name) / "adapter"
        hf = peers.random_peer(peers.SIZES[_SIZE.value], tokenizer, base)
        ours = from_pretrained(base, dtype=_DTYPE.value)
        hf = hf.to(getattr(torch, _DTYPE.value))
        theirs = peft.get_peft_model(
            hf,
            peft.LoraConfig(
                r=rank, lora_alpha=2 * rank,
                target_modules=rf".*language_model.*\.({'|'.join(TARGETS)})",
            ),
        )  # fmt: skip
        theirs.save_pretrained(start)
        leaves = names.leaves(ours.config)
        adapter = lora.load_peft(
            start, leaves, spellings=names.SPELLINGS, params=ours.params,
            allow_identity_adapter=True,
        )  # fmt: skip
    config = ours.config
    given = inputs(config, _ROWS.value, _TOKENS.value, _IMAGE.value)
    tensors = peers.as_torch(given, torch)
    tensors["pixel_values"] = tensors["pixel_values"].to(getattr(torch, _DTYPE.value))
    batch = jax.tree.map(jnp.asarray, pack(config, given))
    learnt = jnp.asarray(given["input_ids"][:, -answer:])
    last = slice(_TOKENS.value - answer - 1, _TOKENS.value - 1)  # places that predict them
    model = Qwen3VL(config, dtype=jnp.dtype(_DTYPE.value), remat=_REMAT.value)

    def states(variables, batch):
        features = model.apply(variables, batch.vision, method="encode")
        return model.apply(
            variables, batch.tokens, batch.positions, batch.valid, batch.visual_index, features,
            method="hidden",
        )  # fmt: skip

    @jax.jit
    def prefill(params, batch):
        hidden = states({"params": params}, batch)[: _ROWS.value, _TOKENS.value - 1]
        return model.apply({"params": params}, hidden, method="logits")

    def loss_of(adapter, params, batch, learnt):
        variables = lora.variables(params, adapter)
        hidden = states(variables, batch)[: _ROWS.value, last]
        scores = model.apply(variables, hidden, method="logits").astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(scores, learnt).mean()

    optimiser = lora.only_trainable(optax.adamw(RATE, weight_decay=0.01))

    @functools.partial(jax.jit, compiler_options=network_options())  # as `make_step` does
    def step(adapter, moments, params, batch, learnt):
        loss, grads = jax.value_and_grad(loss_of)(adapter, params, batch, learnt)
        updates, moments = optimiser.update(grads, moments, adapter)
        return optax.apply_updates(adapter, updates), moments, loss

    adam = torch.optim.AdamW(
        [p for p in theirs.parameters() if p.requires_grad], lr=RATE, weight_decay=0.01
    )
    labels = tensors["input_ids"][:, -answer:]

    def torch_prefill():
        with torch.inference_mode():
            return theirs.base_model.model(**tensors, logits_to_keep=1).logits

    def torch_step():
        adam.zero_grad(set_to_none=True)
        scores = theirs(**tensors, logits_to_keep=answer + 1).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten())
        loss.backward()
        adam.step()
        return float(loss.detach())

    moments = optimiser.init(adapter)
    got, expected = [], []
    trained = adapter
    for _ in range(3):
        trained, moments, loss = step(trained, moments, ours.params, batch, learnt)
        got.append(float(loss))
        expected.append(torch_step())
    difference = float(np.max(np.abs(np.subtract(got, expected))))
    if difference > (1e-3 if _DTYPE.value == "float32" else 0.1):
        raise RuntimeError(f"the two do not compute the same: losses {got} and {expected}")

    seconds = _SECONDS.value
    both = {
        "prefill": {
            "lrm_jax": lambda: jax.block_until_ready(prefill(ours.params, batch)),
            "torch": torch_prefill,
        },
        "step": {
            "lrm_jax": lambda: jax.block_until_ready(
                step(trained, moments, ours.params, batch, learnt)
            ),
            "torch": torch_step,
        },
    }
    measured = {kind: peers.timed_in_turn(runs, seconds) for kind, runs in both.items()}
    ceiling = peers.matmul_ceiling(_DTYPE.value)
    counted = flops(config, _ROWS.value, _TOKENS.value, answer, _IMAGE.value, rank)
    for kind, sides in measured.items():
        for side in sides.values():
            side["tokens_per_second"] = _ROWS.value * _TOKENS.value / side["seconds"]
            side["share_of_matmul_ceiling"] = counted[kind] / side["seconds"] / ceiling
        sides["ratio"] = sides["torch"]["seconds"] / sides["lrm_jax"]["seconds"]
        sides["flops"] = counted[kind]
    peers.write(
        _JSON.value,
        {
            "benchmark": "lora_step",
            "model": _SIZE.value,
            "dtype": _DTYPE.value,
            "rows": _ROWS.value,
            "tokens": _TOKENS.value,
            "image": _IMAGE.value,
            "rank": rank,
            "remat": _REMAT.value,
            "parameters": peers.parameters(config, ours.params),
            **measured,
            "losses": {"lrm_jax": got, "torch": expected, "largest_difference": difference},
            "matmul_flops_per_second": ceiling,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
            **peers.device_facts(),
        },
    )


if __name__ == "__main__":
    run_app(main)
