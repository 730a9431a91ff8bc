"""One iteration of the quickstart's refinement: its split, what the reward engine saves, and the
same loop built the released way.

    python -m lrm_jax.benchmarks.refine --json=FILE
    python -m lrm_jax.benchmarks.refine --json=FILE --environments=64,128,256,512

Ours is `rl.refine` with an untrained policy (the work is the same). The released way does one thing
after another: MuJoCo's C engine steps one environment, `mujoco.Renderer` draws the frames that are
judged, and transformers generates an answer for each frame and head, from the same lrm-nano: as
many tokens as the released answers have in Qwen's vocabulary (`peers.RELEASED_TOKENS`), or
`--new_tokens`. It is measured on a few episodes and answers, and scaled. Its controller, policy and
update, the server between them, prompts longer than lrm-nano's and answers that reason first are
left out, in its favour. It is given twice: "one_after_another" draws only the frames that are
judged, "as_released" one after every control step, as that loop's environment does, whose chunk is
a row of steps that each return a picture (RLinf, `ManiskillEnv.chunk_step`). `--mesh=data=2` makes
two devices of a CPU.

The second command measures the iteration and its memory against the number of environments, until
one of them does not fit; each is a process of its own, so that its memory is its own.
"""

import json
import os
import sys
import time

if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")  # before mujoco is imported

import jax
import numpy as np
from absl import flags

from lrm_jax.benchmarks import peers, scale
from lrm_jax.benchmarks.worlds import physics_and_pixels, quickstart
from lrm_jax.jobs.arms import heads_asked, make_reward
from lrm_jax.jobs.base_policy import World
from lrm_jax.jobs.refine import RefineJob
from lrm_jax.parallel.mesh import ask_for_cores, under
from lrm_jax.qwen3_vl import patchify
from lrm_jax.rewards.heads import by_name
from lrm_jax.rewards.model import NANO_FOLDER, load_reward_model
from lrm_jax.rewards.tokenizer import IMAGE_PAD
from lrm_jax.rl.refine import refine
from lrm_jax.run.cli import reject_arguments, run_app
from lrm_jax.run.progress import note

_JSON = flags.DEFINE_string("json", None, "File for the figures.", required=True)
_ENVS = flags.DEFINE_integer("envs", 128, "Environments.", lower_bound=4)
_ITERATIONS = flags.DEFINE_integer("iterations", 4, "Measured iterations of each loop.", 1)
_NEW_TOKENS = flags.DEFINE_integer(
    "new_tokens", None, "Tokens of a generated answer; as the released formats have by default.", 1
)
_EPISODES = flags.DEFINE_integer("peer_episodes", 4, "Episodes of the peer's physics.", 1)
_ANSWERS = flags.DEFINE_integer("peer_answers", 40, "Answers that the peer generates.", 2)
_MESH = flags.DEFINE_string("mesh", "", "Devices of our loop, such as data=2; one by default.")
_ENVIRONMENTS = flags.DEFINE_list("environments", None, "Measure scale at these numbers instead.")
_ONE = flags.DEFINE_boolean("one_scale", False, "Internal: one number of environments, one line.")

PARTS = ("rollout", "score", "learn")


def measured(job: RefineJob, world: World, reward) -> dict[str, float]:
    """Median seconds of each part of an iteration, after one that compiles."""
    rows: list[dict[str, float]] = []
    rng = jax.random.PRNGKey(0)
    with under(world.mesh):
        refine(
            world.env, world.render, world.policy, world.placed(world.fresh(0)), reward,
            job.refine, rng, on_iteration=lambda _, row: rows.append(row),
        )  # fmt: skip
    found = {p: float(np.median([r[f"seconds_{p}"] for r in rows[1:]])) for p in PARTS}
    total = sum(found.values())
    return found | {"iteration": total, "share_of_scoring": found["score"] / total}


def one_scale() -> None:
    """Prints one line of JSON: the iteration at `--envs` environments, and the peak of memory."""
    ask_for_cores(_MESH.value)
    job = quickstart(_ENVS.value, _ITERATIONS.value + 1)
    world = World.make(job.env, job.policy, _MESH.value)
    model = load_reward_model("lrm-nano", mesh=world.mesh)
    engine = model.engine(world.env.instructions, (job.env.size, job.env.size))
    before = scale.peak_bytes()
    found = measured(
        job, world, make_reward(job.reward, job.refine.ppo.discount, engine, model.variables)
    )
    steps = job.refine.num_envs * world.env.episode_length
    row = {
        "environments": _ENVS.value, **found, "peak_bytes": scale.peak_bytes(),
        "peak_bytes_before": before, "control_steps_per_second": steps / found["iteration"],
    }  # fmt: skip
    print(json.dumps(row))


def tokens_of(job: RefineJob) -> dict[str, int]:
    """Tokens that the peer generates for an answer of each head of the reward."""
    of = peers.RELEASED_TOKENS
    return {name: _NEW_TOKENS.value or of[name] for name in heads_asked(job.reward)}


def answer_seconds(world: World, job: RefineJob, answers: int) -> float:
    """Mean seconds of one generated answer, over the heads of the reward."""
    torch, transformers = peers.need_torch()
    ours = load_reward_model("lrm-nano")
    hf = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
        NANO_FOLDER, dtype=torch.float32
    )
    heads, side = by_name(ours.heads), job.env.size // ours.config.vision_config.patch_size
    frame = np.random.default_rng(0).integers(0, 256, (1, job.env.size, job.env.size, 3), np.uint8)
    patches = np.asarray(patchify(frame, ours.config))[0]
    given = []
    for name, length in tokens_of(job).items():
        images = len(heads[name].images)
        ids = peers.prompt_ids(
            heads[name], world.env.instructions[0], ours.tokenizer, side * side // 4
        )
        tokens = np.array([ids], np.int64)
        pad = ours.tokenizer.token_id(IMAGE_PAD)
        given.append((
            length,
            peers.as_torch(
                dict(
                    input_ids=tokens, attention_mask=np.ones_like(tokens),
                    pixel_values=np.concatenate([patches] * images),
                    image_grid_thw=np.array([[1, side, side]] * images, np.int64),
                    mm_token_type_ids=(tokens == pad).astype(np.int64),
                ),
                torch,
            ),
        ))  # fmt: skip

    def ask(length, one):
        with torch.inference_mode():
            hf.generate(
                **one, max_new_tokens=length, min_new_tokens=length, do_sample=False,
                pad_token_id=0,
            )  # fmt: skip

    ask(*given[0])
    start = time.perf_counter()
    for i in range(answers):
        ask(*given[i % len(given)])
    return (time.perf_counter() - start) / answers


def main(argv: list[str]) -> None:
    """Measures and writes the figures."""
    reject_arguments(argv)
    if _ONE.value:
        return one_scale()
    if _ENVIRONMENTS.value is not None:
        numbers = scale.numbers_of(_ENVIRONMENTS.value)
        rows = scale.measure(numbers, _ITERATIONS.value, _MESH.value)
        facts = {"benchmark": "refine_scale", "image": quickstart(4, 2).env.size}
        facts |= {"mesh": _MESH.value}
        return peers.write(_JSON.value, facts | {"rows": rows} | peers.device_facts())
    ask_for_cores(_MESH.value)
    job = quickstart(_ENVS.value, _ITERATIONS.value + 1)
    world = World.make(job.env, job.policy, _MESH.value)
    model = load_reward_model("lrm-nano", mesh=world.mesh)
    size = (job.env.size, job.env.size)

    def reward(**settings):
        engine = model.engine(world.env.instructions, size, **settings)
        return make_reward(job.reward, job.refine.ppo.discount, engine, model.variables)

    note("lrm_jax")
    ours = measured(job, world, reward())
    note("lrm_jax, every saving of the reward engine off")
    plain = measured(job, world, reward(share=False, frames_per_row=1))
    note("one thing after another")
    frames = job.refine.num_chunks + 1
    episode = physics_and_pixels(world.env, job.env.size, frames, _EPISODES.value)
    answer = answer_seconds(world, job, _ANSWERS.value)
    judged = frames * job.refine.num_envs
    answers = judged * len(heads_asked(job.reward))
    other = {
        "rollout": job.refine.num_envs * sum(episode.values()),
        "score": answers * answer,
    }
    other["iteration"] = sum(other.values())
    every = episode["physics"] + episode["pixels"] * (world.env.episode_length + 1) / frames
    released = {"rollout": job.refine.num_envs * every, "score": other["score"]}
    released["iteration"] = sum(released.values())
    figures = {
        "benchmark": "refine", "environments": job.refine.num_envs,
        "control_steps": job.refine.num_envs * world.env.episode_length, "image": job.env.size,
        "mesh": _MESH.value, "judged_frames": judged, "answers": answers,
        "heads": heads_asked(job.reward),
        "lrm_jax": ours, "without_savings": plain,
        "one_after_another": other | {"episode": episode, "seconds_per_answer": answer,
                                      "new_tokens": tokens_of(job)},
        "as_released": released,
        "ratio": {k: v / ours[k] for k, v in other.items()},
        "ratio_as_released": {k: v / ours[k] for k, v in released.items()},
        **peers.device_facts(),
    }  # fmt: skip
    peers.write(_JSON.value, figures)


if __name__ == "__main__":
    run_app(main)
