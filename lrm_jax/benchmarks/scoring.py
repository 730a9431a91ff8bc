"""A rollout's rewards: this engine beside two ways of asking transformers the same questions.

    python -m lrm_jax.benchmarks.scoring --json=FILE [--size=100m --environments=12 --triggers=8]

Progress, completion and contrastive for every environment at every trigger, random weights, the
same weights and frames for all, float32:

  one_by_one  the released way: each question a `generate` of its own, 16 tokens (its kindest case;
              the released server allows 512). Measured on a few environments; the rest is the same
              work again.
  batched     the best way without an engine: each head one batched forward, logits of the last
              place only. Contrastive in one order; ours asks both.
  lrm_jax     `RewardEngine` with the wording of `joint_heads`.

FLOPs are counted from the configuration, so the JSON also holds the ratio that arithmetic allows,
and what each of the engine's savings is worth, switched off one at a time. All ways take frames
that lie decoded in memory; the peers' patches are made beforehand, ours within the measured time.
"""

import dataclasses
import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from lrm_jax.benchmarks import peers
from lrm_jax.qwen3_vl import patchify
from lrm_jax.rewards import cost
from lrm_jax.rewards.engine import RewardEngine
from lrm_jax.rewards.heads import default_heads, joint_heads
from lrm_jax.rewards.model import load_reward_model
from lrm_jax.rewards.scores import NAMES
from lrm_jax.rewards.tokenizer import IMAGE_PAD, Tokenizer
from lrm_jax.run.cli import reject_arguments, run_app
from lrm_jax.run.progress import note

_JSON = flags.DEFINE_string("json", None, "File for the figures.", required=True)
_SIZE = flags.DEFINE_enum("size", "100m", list(peers.SIZES), "Size of the random model.")
_IMAGE = flags.DEFINE_integer("image", 256, "Height and width of a frame in pixels.", 32)
_ENVIRONMENTS = flags.DEFINE_integer("environments", 12, "Environments in the rollout.", 1)
_TRIGGERS = flags.DEFINE_integer("triggers", 8, "Scored frames of each environment.", 2)
_FRAMES_PER_ROW = flags.DEFINE_integer("frames_per_row", 4, "Judged frames in one row of ours.", 1)
_MEMORY = flags.DEFINE_integer("memory_mb", 256, "Our micro-batches' budget, MiB.", 1)
_PEER_BATCH = flags.DEFINE_integer("peer_batch", 12, "Rows in a forward of the batched way.", 1)
_PEER_ENVIRONMENTS = flags.DEFINE_integer(
    "peer_environments", 1, "Environments on which the one-by-one way is measured.", 1
)
_NEW_TOKENS = flags.DEFINE_integer("new_tokens", 16, "Tokens of a generated answer.", 1)
_REPETITIONS = flags.DEFINE_integer(
    "repetitions", 2, "Times that each way is measured, after one call that is not counted.", 1
)

TASKS = (
    "put the red cube on the blue plate",
    "put the giraffe in the bowl",
    "stack the green block on the yellow block",
    "open the top drawer of the cabinet",
)


def questions(environment: int, triggers: int) -> list[tuple[str, list[tuple[int, int]]]]:
    """The released way's questions of one environment: head, and (trigger, environment) of each
    image. There is nothing to compare with at the first trigger."""
    asked = []
    for t in range(triggers):
        now = (t, environment)
        asked.append(("progress", [(0, environment), now]))
        asked.append(("completion", [now]))
        if t > 0:
            asked.append(("contrastive", [(t - 1, environment), now]))
    return asked


class Peer:
    """transformers on the same weights and frames."""

    def __init__(self, model, tokenizer: Tokenizer, patches: np.ndarray, side: int):
        self.torch, _ = peers.need_torch()
        self.model, self.tokenizer, self.patches, self.side = model, tokenizer, patches, side
        self.heads = {h.name: h for h in default_heads()}

    @functools.cache  # noqa: B019 one object, a few hundred prompts
    def ids(self, name: str, task: str) -> tuple[int, ...]:
        """A prompt's tokens."""
        per_image = self.side * self.side // 4
        return tuple(peers.prompt_ids(self.heads[name], task, self.tokenizer, per_image))

    def inputs(self, name: str, asked: list[list[tuple[int, int]]]):
        """Processor outputs for one head, left-padded; rows differ in their task's length."""
        rows = [self.ids(name, TASKS[images[0][1] % len(TASKS)]) for images in asked]
        width = max(map(len, rows))
        tokens, mask = (
            np.zeros((len(rows), width), np.int64),
            np.zeros((len(rows), width), np.int64),
        )
        for i, row in enumerate(rows):
            tokens[i, width - len(row) :], mask[i, width - len(row) :] = row, 1
        pixels = np.concatenate([self.patches[t, n] for images in asked for t, n in images])
        grid = np.array([[1, self.side, self.side]] * sum(map(len, asked)), np.int64)
        pad = self.tokenizer.token_id(IMAGE_PAD)
        return peers.as_torch(
            dict(
                input_ids=tokens, attention_mask=mask, pixel_values=pixels, image_grid_thw=grid,
                mm_token_type_ids=(tokens == pad).astype(np.int64),
            ),
            self.torch,
        )  # fmt: skip

    def generate(self, inputs, tokens: int):
        """Greedy tokens, exactly so many."""
        with self.torch.inference_mode():
            return self.model.generate(
                **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
                pad_token_id=0,
            )  # fmt: skip

    def forward(self, inputs):
        """Logits of the last place."""
        with self.torch.inference_mode():
            return self.model(**inputs, logits_to_keep=1).logits


def peer_flops(config, asked, lengths: dict[str, int], patches: int, new_tokens: int) -> float:
    """FLOPs of the peers' way for questions `asked`, and of `new_tokens` decoded ones each."""
    total = 0.0
    for name, images in asked:
        total += len(images) * cost.image_flops(config, patches)
        total += cost.row_flops(config, lengths[name], 1)
        total += new_tokens * cost.row_flops(config, 1, 1)
    return total


def main(argv: list[str]) -> None:
    """Measures and writes the figures."""
    reject_arguments(argv)
    torch, transformers = peers.need_torch()
    time, count = _TRIGGERS.value, _ENVIRONMENTS.value
    tokenizer = peers.qwen_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        hf = peers.random_peer(peers.SIZES[_SIZE.value], tokenizer, Path(folder))
        ours = load_reward_model(folder)
    config = ours.config
    side = _IMAGE.value // config.vision_config.patch_size
    frames = np.random.default_rng(0).integers(
        0, 256, (time, count, _IMAGE.value, _IMAGE.value, 3), np.uint8
    )
    patches = np.asarray(patchify(jnp.asarray(frames).reshape(-1, *frames.shape[2:]), config))
    patches = patches.reshape(time, count, *patches.shape[1:])
    peer = Peer(hf, tokenizer, patches, side)
    every = [q for n in range(count) for q in questions(n, time)]
    lengths = {name: len(peer.ids(name, TASKS[0])) for name in peer.heads}

    def engine(heads=None, **settings) -> RewardEngine:
        settings = {"frames_per_row": _FRAMES_PER_ROW.value} | settings
        return dataclasses.replace(ours, heads=heads or joint_heads()).engine(
            TASKS, (_IMAGE.value, _IMAGE.value), memory_bytes=_MEMORY.value << 20, **settings
        )

    tasks = jnp.arange(count, dtype=jnp.int32) % len(TASKS)
    on_device = jnp.asarray(frames)

    def scored(engine, names=None):
        return engine.score(ours.params, on_device, tasks, heads=names)

    def measured(run) -> dict:
        found = peers.timed(lambda: jax.block_until_ready(run()), 0.0, least=_REPETITIONS.value)
        note(f"{found['best']:.1f} s")
        return found

    note("lrm_jax")
    full = engine()
    reference = jax.tree.map(np.asarray, scored(full))
    result = measured(lambda: scored(full))
    flops = full.cost(time)["flops"] * time * count

    savings = {}
    for name, other in {
        # Not in rows of several frames, whose attention would then cost more than the tokens.
        "sharing within a row": engine(share=False, frames_per_row=1),
        "several frames in a row": engine(frames_per_row=1),
        "questions before the images": engine(default_heads()),
    }.items():
        note(f"without {name}")
        values = jax.tree.map(np.asarray, scored(other))
        savings[name] = measured(lambda other=other: scored(other)) | {
            "flops": other.cost(time)["flops"] * time * count
        }
        if name != "questions before the images":  # other words, other answers
            savings[name]["largest_difference"] = max(
                float(np.nanmax(np.abs(getattr(values, k) - getattr(reference, k)))) for k in NAMES
            )
    savings["heads in one call"] = measured(
        lambda: [scored(full, (name,)) for name in full.heads]
    ) | {"flops": sum(full.cost(time, [name])["flops"] for name in full.heads) * time * count}
    encode = jax.jit(functools.partial(full._encode, {"params": ours.params}))
    encoding = measured(lambda: encode(on_device.reshape(-1, *frames.shape[2:])))
    # Not a run of its own: the measured time of encoding, as often as the questions show images.
    shown = sum(len(images) for _, images in every) / (time * count)
    savings["each frame encoded once (from the time of encoding)"] = {
        "best": result["best"] + (shown - 1) * encoding["best"],
        "flops": flops + (shown - 1) * time * count * cost.image_flops(config, side * side),
    }
    for saving in savings.values():
        saving["slower"] = saving["best"] / result["best"]

    note("transformers, one by one")
    sample = [q for n in range(_PEER_ENVIRONMENTS.value) for q in questions(n, time)]
    given = [peer.inputs(name, [images]) for name, images in sample]
    peer.generate(given[0], 2)
    one = (
        peers.timed(lambda: [peer.generate(g, _NEW_TOKENS.value) for g in given], 0.0, least=1)[
            "best"
        ]
        * count
        / _PEER_ENVIRONMENTS.value
    )
    note(f"{one:.1f} s for all environments")
    by_head = {name: [i for n, i in every if n == name] for name in peer.heads}
    size = _PEER_BATCH.value
    batches = [
        peer.inputs(name, images[at : at + size])
        for name, images in by_head.items()
        for at in range(0, len(images), size)
    ]
    note("transformers, batched")
    batched = peers.timed(
        lambda: [peer.forward(b) for b in batches], 0.0, least=_REPETITIONS.value
    )["best"]
    note(f"{batched:.1f} s")

    ceiling, bandwidth = peers.matmul_ceiling(), peers.read_bandwidth()
    read = peers.parameters(config, ours.params)
    flops_one = peer_flops(config, every, lengths, side * side, _NEW_TOKENS.value)
    flops_batched = peer_flops(config, every, lengths, side * side, 0)
    # A decoded token reads every weight once, which takes longer than its arithmetic.
    reading = len(every) * _NEW_TOKENS.value * read["read_by_a_token"] * 4 / bandwidth
    flops_prefill = flops_batched / ceiling
    bound_one = (flops_prefill + max(reading, (flops_one - flops_batched) / ceiling)) / (
        flops / ceiling
    )
    bound_batched = flops_batched / flops
    judgements = time * count
    figures = {
        "benchmark": "scoring",
        "model": _SIZE.value,
        "parameters": read,
        "environments": count,
        "triggers": time,
        "image": _IMAGE.value,
        "prompt_tokens": lengths,
        "questions_one_by_one": len(every),
        "lrm_jax": result | {
            "flops": flops, "tokens": full.cost(time)["tokens"] * judgements,
            "flops_per_second": flops / result["best"],
            "share_of_matmul_ceiling": flops / result["best"] / ceiling,
            "milliseconds_per_judgement": 1e3 * result["best"] / judgements,
            "compilations": full.compilations,
        },
        "one_by_one": {"seconds": one, "flops": flops_one, "ratio": one / result["best"],
                       "bound": bound_one,
                       "share_of_bound": one / result["best"] / bound_one},
        "batched": {"seconds": batched, "flops": flops_batched,
                    "ratio": batched / result["best"], "bound": bound_batched,
                    "share_of_bound": batched / result["best"] / bound_batched},
        "savings": savings,
        "matmul_flops_per_second": ceiling,
        "bytes_per_second": bandwidth,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "torch_threads": torch.get_num_threads(),
        **peers.device_facts(),
    }  # fmt: skip
    peers.write(_JSON.value, figures)


if __name__ == "__main__":
    run_app(main)
