"""How far the network is from transformers', case by case: largest error, bound and its reason.

    python -m lrm_jax.benchmarks.parity --json=FILE

Small random checkpoints that transformers writes, float32 with the highest precision of products
unless the case says otherwise. Errors are the largest difference as a share of the largest value.
Prints the table as markdown.
"""

import tempfile
from pathlib import Path

import jax
import numpy as np
from absl import flags

from lrm_jax.benchmarks import peers
from lrm_jax.evaluation import tables
from lrm_jax.run.cli import reject_arguments, run_app
from lrm_jax.run.progress import note

_JSON = flags.DEFINE_string("json", None, "File for the figures.", required=True)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Random checkpoints and inputs of each case.", 1)

# Logits: a float32 sum of some hundred terms errs by about 1e-6 of its scale, eleven layers add a
# few of those. Gradients pass through twice as many.
LOGITS, FEATURES, GRADIENTS = 1e-5, 1e-5, 2e-5
SUMS = "order of float32 sums over 11 layers: a few 1e-6"
TWICE = "twice as many sums as forward"
# Rounding to 8 bits errs by 2^-9 (RMS) of a value each time, at random. About eight roundings a
# layer over eleven layers add up as the square root of their number: 88**0.5 * 2**-9 = 0.018 of the
# typical value, as root mean square; twice that covers a network that amplifies.
BFLOAT16 = 2 * 88**0.5 * 2**-9
PADDED = [[2, ("image", 6, 4), 3], [4, ("image", 4, 4), 2, ("image", 4, 8), 9]]


def measured(folder: Path, seeds: int) -> list[dict]:
    """A row for each case: {"case", "error", "bound", "because"}."""
    import torch

    from lrm_jax.benchmarks import parity_cases as cases
    from lrm_jax.qwen3_vl import Qwen3VL, from_pretrained
    from lrm_jax.qwen3_vl.batching import pack

    rows: dict[str, dict] = {}

    def add(case: str, error: float, bound: float, because: str) -> None:
        row = rows.setdefault(case, dict(case=case, error=0.0, bound=bound, because=because))
        row["error"] = max(row["error"], float(error))

    for seed in range(seeds):
        note(f"seed {seed}")
        pairs = {
            name: cases.make_pair(
                folder / f"{name}{seed}", cases.hf_config(tie_word_embeddings=name == "tied"), seed
            )
            for name in ("untied", "tied")
        }
        pair = pairs["untied"]
        for name, given in cases.CASES.items():
            batch = cases.batch_of(given, seed=seed)
            add(f"logits: {name.replace('_', ' ')}", pair.error(batch), LOGITS, SUMS)
        for side in ("left", "right"):
            error = pair.error(cases.batch_of(PADDED, side, seed=seed))
            add(f"logits: rows of 1 and 2 images, {side} padding", error, LOGITS, SUMS)
        batch = cases.batch_of(cases.CASES["two_sizes"], seed=seed)
        add("logits: tied embeddings", pairs["tied"].error(batch), LOGITS, SUMS)

        with torch.no_grad():
            given = cases.tensors(batch)
            theirs = pair.hf.model.get_image_features(
                given["pixel_values"], given["image_grid_thw"]
            )
        packed, model = pack(pair.ours.config, batch), pair.ours.model
        got = jax.jit(lambda p, v, model=model: model.apply({"params": p}, v, method="encode"))(
            pair.ours.params, packed.vision
        )
        for n, expected in enumerate(theirs.pooler_output):
            error = cases.relative(got.embeds[n, : len(expected)], expected.numpy())
            add("vision features", error, FEATURES, SUMS)
        for k, level in enumerate(theirs.deepstack_features):
            for n, expected in enumerate(level):
                error = cases.relative(got.deepstack[k, n, : len(expected)], expected.numpy())
                add("DeepStack features", error, FEATURES, SUMS)

        padded = cases.batch_of(PADDED, "left", seed=seed)
        loss, expected = cases.hf_gradients(pair, padded)
        packed, model = pack(pair.ours.config, padded), Qwen3VL(pair.ours.config)
        value, grads = jax.jit(
            jax.value_and_grad(lambda p, m=model, b=packed: cases.next_token_loss(m, p, b))
        )(pair.ours.params)
        add("loss", abs(float(value) - loss) / abs(loss), LOGITS, SUMS)
        flat = jax.tree_util.tree_leaves_with_path(grads)
        for path, leaf in flat:
            error = cases.relative(leaf, expected[tuple(k.key for k in path)])
            add("gradients, each parameter", error, GRADIENTS, TWICE)

        said = pair.ours.generate(**padded, max_new_tokens=8)
        with torch.no_grad():
            wanted = pair.hf.generate(**cases.tensors(padded), max_new_tokens=8, do_sample=False)
        wanted = wanted.numpy()[:, padded["input_ids"].shape[1] :]
        add("greedy tokens that differ", int((said != wanted).sum()), 0, "the same argmax")

        ours = from_pretrained(pair.folder, dtype="bfloat16").logits(**batch)
        exact = pair.hf_logits(batch)
        error = np.sqrt(np.mean((ours - exact) ** 2) / np.mean(exact**2))
        add("bfloat16 logits, root mean square", error, BFLOAT16, "88 roundings of 2^-9, doubled")
        half = type(pair.hf).from_pretrained(
            pair.folder, dtype=torch.bfloat16, attn_implementation="eager"
        )
        with torch.no_grad():
            theirs = half(**cases.tensors(batch)).logits.float().numpy()
        other = np.sqrt(np.mean((theirs - exact) ** 2) / np.mean(exact**2))
        add("bfloat16: ours over transformers' own error", error / other, 1.3, "the same roundings")
    return list(rows.values())


def main(argv: list[str]) -> None:
    """Measures, writes the figures and prints the table."""
    reject_arguments(argv)
    torch, transformers = peers.need_torch()
    with tempfile.TemporaryDirectory() as name, jax.default_matmul_precision("highest"):
        rows = measured(Path(name), _SEEDS.value)
    for row in rows:
        row["met"] = bool(row["error"] <= row["bound"])
    peers.write(
        _JSON.value,
        {
            "benchmark": "parity", "seeds": _SEEDS.value, "cases": rows,
            "torch": torch.__version__, "transformers": transformers.__version__,
            **peers.device_facts(),
        },
    )  # fmt: skip
    cells = [[r["case"], f"{r['error']:.2g}", f"{r['bound']:.2g}", r["because"]] for r in rows]
    print(tables.markdown(["case", "largest error", "bound", "because"], cells))


if __name__ == "__main__":
    run_app(main)
