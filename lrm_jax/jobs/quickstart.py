"""The job `quickstart`: the whole road once, from demonstrations to a verdict and a report."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.jobs import oracle, story
from lrm_jax.jobs.base_policy import World, clone_stage, evaluation_stage
from lrm_jax.jobs.refine import RefineJob, handed_over, refine_stage, spent
from lrm_jax.rewards.model import load_reward_model
from lrm_jax.run import atomic, config, manifest, processes
from lrm_jax.run.errors import UserError
from lrm_jax.run.timing import Stopwatch
from lrm_jax.run.workdir import Workdir


def run(raw, workdir: Workdir) -> dict[str, Any]:
    """Demonstrate, clone, refine, evaluate; writes summary.json and report.html."""
    job = config.build(RefineJob, raw)
    if processes.count() > 1:
        raise UserError("the quickstart films its episodes in one process: refine with job refine")
    if len(job.arms) != 1 or len(job.seeds) != 1:
        raise UserError("quickstart takes one arm and one seed: use job='refine' for several")
    (arm,), (seed,) = job.arms, job.seeds
    watch = Stopwatch(_earlier(workdir))
    started = time.monotonic()

    def checkpoint() -> None:
        atomic.write_json(workdir / "timing.json", watch.table())

    world = World.make(job.env, job.policy, job.mesh)
    model = load_reward_model(job.reward.model, mesh=world.mesh)
    manifest.update(
        workdir.path, hashes=model.facts,
        seeds={
            "run": seed, "evaluation": job.evaluation.seed,
            "demonstrations": job.demonstrations.seed,
        },
    )  # fmt: skip
    with watch("demonstrations and cloning"):
        base, variables, _ = clone_stage(workdir, job, seed, world)
    checkpoint()
    with watch("evaluation"):
        before = evaluation_stage(
            workdir, f"evaluation_base_{seed}", job.evaluation, world, variables, base
        )
    checkpoint()
    with watch("refinement"):
        stage, refined, rows = refine_stage(workdir, job, arm, seed, world, base, variables, model)
    checkpoint()
    with watch("evaluation"):
        after = evaluation_stage(
            workdir, f"evaluation_{arm}_{seed}", job.evaluation, world, refined, stage
        )
    checkpoint()
    _, verdict = handed_over(job.keep, rows, before, after, (base.name, stage.name))
    used = spent(job, arm, rows)
    summary = {
        **verdict,
        **oracle.recorded(job.without_reward, seed),
        "arm": arm,
        "seed": seed,
        "iterations": len(rows),
        "env_steps": int(rows[-1]["env_steps"]),
        "vlm_scores": used["judgements"],
        "stopped": used["stopped"],
        "privileged": used["privileged"],
        "invalid_scores": int(sum(r["invalid_scores"] for r in rows)),
    }
    with watch("report"):
        media, example = story.film(
            world, model, variables, refined, before, after, job.evaluation.seed, workdir
        )
    split = split_refinement(world, job, rows, watch)
    summary["wall_seconds"] = round(sum(watch.table().values()), 1)
    summary["this_start_seconds"] = round(time.monotonic() - started, 1)
    summary["minutes"] = {k: round(v / 60, 2) for k, v in split.items()}
    atomic.write_json(workdir / "summary.json", summary)
    story.write(workdir, summary, rows, split, media, example)
    checkpoint()
    watch.close()
    return summary


def _earlier(workdir: Workdir) -> dict[str, float] | None:
    path = workdir / "timing.json"
    try:
        return atomic.read_json(path) if path.is_file() else None
    except UserError:  # cut off by a kill: the table starts anew, results do not depend on it
        return None


def split_refinement(world: World, job: RefineJob, rows: list[dict], watch: Stopwatch) -> dict:
    """Seconds by category, the refinement split into rollout parts, scoring and learning.

    Rendering happens inside the compiled rollout; its share is one batch of frames, timed alone
    on the same shapes, times the batches rendered. What is drawn does not matter to the time: the
    caster has no branches.
    """
    table = dict(watch.table())
    keys = jax.random.split(jax.random.PRNGKey(0), job.refine.num_envs)
    shapes = jax.eval_shape(jax.vmap(world.env.reset), keys)
    state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    draw = jax.jit(world.render)
    jax.block_until_ready(draw(state))
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        jax.block_until_ready(draw(state))
        times.append(time.perf_counter() - begun)
    # The first iteration of a start includes compilation, which the stopwatch counts apart: the
    # typical iteration stands in for it.
    typical = {
        k: float(np.median([r[f"seconds_{k}"] for r in rows])) * len(rows)
        for k in ("rollout", "score", "learn")
    }
    rendering = float(np.median(times)) * (job.refine.num_chunks + 1) * len(rows)
    rest = max(table.pop("refinement", 0.0) - sum(typical.values()), 0.0)
    table |= {
        "physics and policy": max(typical["rollout"] - rendering, 0.0),
        "rendering": rendering,
        "scoring": typical["score"],
        "learning": typical["learn"],
        "checkpoints and logs": rest,
    }
    return table
