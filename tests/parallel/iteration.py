"""A small refinement iteration on a mesh and without one: rollout of a toy, and its scores."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np

from lrm_jax.parallel import hlo, rules
from lrm_jax.parallel.aot import refine
from lrm_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from lrm_jax.policies.networks import Policy, PolicyConfig, init_variables
from lrm_jax.policies.vocabulary import Vocabulary
from lrm_jax.qwen3_vl import Qwen3VL, init_params, sharding
from lrm_jax.reward_training.config import NanoSize
from lrm_jax.reward_training.nano import nano_config
from lrm_jax.rewards.engine import RewardEngine
from lrm_jax.rewards.heads import nano_heads
from lrm_jax.rewards.model import NANO_FOLDER
from lrm_jax.rewards.tokenizer import Tokenizer
from lrm_jax.rl.rollout import reset_keys, rollout_from
from lrm_jax.run.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1] / "rl"))
from pixel_point import SENTENCES, PixelPoint, draw

MESH = "data=2,fsdp=2,tensor=2"
ENVIRONMENTS, CHUNKS = 8, 2
SIZE = NanoSize(
    image_size=32, vision_depth=2, vision_hidden=32, vision_heads=2, vision_mlp=48, deepstack=(0,),
    text_layers=2, text_hidden=48, text_heads=2, text_kv_heads=2, text_mlp=64,
)  # fmt: skip


def measured(options: dict) -> dict:
    """The largest differences from one device, and the rollout's collectives."""
    tokenizer = Tokenizer.from_folder(NANO_FOLDER)
    model = Qwen3VL(nano_config(SIZE, tokenizer))
    params = init_params(model, jax.random.key(0))
    # So small a budget that a shard's rows go in several micro-batches.
    engine = RewardEngine(
        model, nano_heads(), tokenizer, (32, 32), SENTENCES, memory_bytes=1 << 18
    )  # fmt: skip
    vocabulary = Vocabulary.of(SENTENCES)
    config = PolicyConfig(
        waypoints=0, chunk=4, image_size=32, channels=8, blocks=1, keypoints=4, sentence_size=16,
        hidden=32,
    )  # fmt: skip
    policy = Policy(config, vocabulary.size, 2)
    variables = init_variables(policy, jax.random.PRNGKey(0), vocabulary, SENTENCES)
    env, rng = PixelPoint(), jax.random.PRNGKey(2)
    keys = reset_keys(rng, ENVIRONMENTS)

    def play(variables, keys):
        return rollout_from(env, draw, policy, variables, keys, rng, num_chunks=CHUNKS, chunk=4)

    def score(params, frames, task_ids):
        return engine.score(params, frames, task_ids)

    def compiled(function, *given):
        return jax.jit(function).lower(*given).compile(compiler_options=options)

    alone = compiled(play, variables, keys)(variables, keys)
    given = params, alone.frames, alone.task_ids
    scores = compiled(score, *given)(*given)
    mesh = make_mesh(MESH)
    homes = rules.plan(params, sharding.PARAMS, mesh, indivisible="replicate").shardings
    own = jax.device_put(variables, replicated(mesh)), jax.device_put(keys, batch_sharding(mesh))
    with jax.set_mesh(mesh):
        program = compiled(play, *own)
        played = program(*own)
        given = jax.device_put(params, homes), played.frames, played.task_ids
        judged = compiled(score, *given)(*given)
    out = {
        "rollout": difference(played, alone),
        "scores": difference(judged, scores),
        "collectives": hlo.by_kind(hlo.collectives(program.as_text(), 8)),
        "frames": str(played.frames.sharding.spec),
        "frames_differ": int(np.ptp(np.asarray(alone.frames, int), axis=(0, 1)).max()),
        "scores_differ": float(np.ptp(np.asarray(scores.progress))),
    }
    out["predictions"] = predictions(model.config, tokenizer, options)
    with jax.set_mesh(mesh):
        try:
            engine.score(params, alone.frames[:, :3], alone.task_ids[:3])
        except UserError as error:
            out["refused"] = str(error)
    return out


def predictions(config, tokenizer, options: dict) -> dict:
    """Bytes between devices while the loop that is compiled for TPUs scores: by hand, compiled."""
    mesh = make_mesh("fsdp=8")
    loop = refine.Loop.make(config, mesh, ENVIRONMENTS, 32, tokenizer, 1 << 22, rank=4)
    frames = jax.ShapeDtypeStruct(
        (loop.frames, ENVIRONMENTS, 32, 32, 3), np.uint8, sharding=batch_sharding(mesh, 1)
    )
    tasks = jax.ShapeDtypeStruct((ENVIRONMENTS,), np.int32, sharding=batch_sharding(mesh))
    program = loop.scoring(frames, tasks)
    compiled = program.lower(mesh).compile(compiler_options=options)
    by_hand = loop.estimate(program)
    return {
        "passes": by_hand["passes"],
        "loops": [turns for _, turns in hlo.loops(compiled.as_text())],
        "by_hand": by_hand["predicted_collective_bytes"]["total"],
        "compiled": sum(one.total for one in hlo.collectives(compiled.as_text(), 8)),
    }


def difference(got, expected) -> float:
    """The largest difference of two trees; NaN must meet NaN."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        worst = max(worst, float(np.nanmax(np.abs(a - b), initial=0.0)))
    return worst
