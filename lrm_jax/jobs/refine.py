"""The job `refine`: PPO refinement of cloned policies, for every (reward arm, seed) asked for."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lrm_jax.evaluation import stats
from lrm_jax.jobs import oracle
from lrm_jax.jobs.arms import ARMS, RewardSettings, make_reward, other_sentences
from lrm_jax.jobs.base_policy import (
    EvaluationSettings,
    World,
    clone_stage,
    evaluation_stage,
)
from lrm_jax.jobs.settings import CollectSettings, EnvSettings
from lrm_jax.policies import CloneConfig, PolicyConfig
from lrm_jax.rewards.model import RewardModel, load_reward_model
from lrm_jax.rl.refine import RefineConfig, RefineState, init_state, refine
from lrm_jax.run import atomic, config, manifest, metrics
from lrm_jax.run.checkpoints import Checkpoints
from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError, did_you_mean
from lrm_jax.run.metrics import MetricsWriter
from lrm_jax.run.progress import bar
from lrm_jax.run.trees import load_tree, save_tree
from lrm_jax.run.workdir import Stage, Workdir


@dataclasses.dataclass(frozen=True)
class RefineJob:
    """Everything that `job="refine"` (and `quickstart`) depends on.

    arms: which rewards to refine with, each from the same cloned policy. seeds: a seed sets the
    demonstrations, the clone and the refinement alike; evaluation episodes are the same for all.
    """

    job: str = "refine"
    arms: tuple[str, ...] = ("vlm",)
    seeds: tuple[int, ...] = (0,)
    env: EnvSettings = field(default_factory=EnvSettings)
    demonstrations: CollectSettings = field(default_factory=CollectSettings)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    clone: CloneConfig = field(default_factory=CloneConfig)
    reward: RewardSettings = field(default_factory=RewardSettings)
    refine: RefineConfig = field(default_factory=RefineConfig)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def validate(self) -> None:
        """UserError for arms or sizes that cannot work."""
        for arm in self.arms:
            if arm not in ARMS:
                raise UserError(f"config.arms: {did_you_mean(arm, ARMS)}")
        if not self.arms or not self.seeds or min(self.seeds) < 0:
            raise UserError("config.arms and config.seeds need at least one entry, seeds from 0 up")
        length = self.env.make().episode_length
        if self.refine.num_chunks * self.policy.chunk != length:
            raise UserError(
                f"config.refine.num_chunks ({self.refine.num_chunks}) x config.policy.chunk "
                f"({self.policy.chunk}) must be the episode's {length} control steps"
            )
        if self.policy.image_size != self.env.size:
            raise UserError(
                f"config.policy.image_size ({self.policy.image_size}) must be config.env.size "
                f"({self.env.size})"
            )


def reward_function(job: RefineJob, arm: str, world: World, model: RewardModel | None):
    """The reward function of an arm over this world's sentences."""
    settings = dataclasses.replace(job.reward, arm=arm)
    if arm in ("vlm", "wrong_sentence"):
        engine = model.engine(world.env.instructions, (job.env.size, job.env.size))
        ids = sorted({world.env.instructions.index(s) for s in world.env.sentences_in_use()})
        swap = other_sentences(world.env.instructions, np.array(ids))
        return make_reward(settings, job.refine.ppo.discount, engine, model.variables, swap)
    return make_reward(settings, job.refine.ppo.discount, None, None)


def refine_stage(
    workdir: Workdir,
    job: RefineJob,
    arm: str,
    seed: int,
    world: World,
    base: Stage,
    variables: Any,
    model: RewardModel | None,
) -> tuple[Stage, Any, list[dict]]:
    """The refined policy of an arm and seed, and a row of figures for each iteration."""
    name = f"refine_{arm}_{seed}"
    settings = {
        "refine": job.refine,
        "reward": dataclasses.replace(job.reward, arm=arm),
        "seed": seed,
        "model": model.facts if model is not None and arm in ("vlm", "wrong_sentence") else None,
    }
    stage = workdir.stage(name, settings, after=[base])

    def compute(folder: Path) -> None:
        setup = dataclasses.replace(job.refine, privileged_reward=arm == "oracle")
        rng = jax.random.PRNGKey(seed + 1_000)
        fresh = init_state(variables, setup, rng)
        with Checkpoints(stage.scratch / "checkpoints", stage.fingerprint) as checkpoints:
            found = checkpoints.latest_valid(fresh)
            state: RefineState = fresh if found is None else found.state
            done = int(state.iteration)
            with (
                MetricsWriter(workdir.path, name, resume_step=done if done else None) as writer,
                bar(total=setup.iterations, desc=f"refining ({arm}, seed {seed})", unit="iteration",
                    initial=done) as progress,
            ):  # fmt: skip

                def on_iteration(state: RefineState, row: dict[str, float]) -> None:
                    writer.write(int(row["iteration"]), row)
                    checkpoints.save(int(row["iteration"]), state)
                    progress.update(1)
                    progress.set_postfix(
                        reward=f"{row['episode_reward']:.3f}", success=f"{row['success_end']:.2f}"
                    )

                state = refine(
                    world.env, world.render, world.policy, variables,
                    reward_function(job, arm, world, model), setup, rng,
                    state=state, on_iteration=on_iteration,
                )  # fmt: skip
        save_tree(folder / "policy.safetensors", state.variables)
        atomic.write_json(folder / "iterations.json", metrics.read(workdir.path, name))

    def load(folder: Path) -> tuple[Any, list[dict]]:
        refined = load_tree(folder / "policy.safetensors", like=variables)
        return refined, atomic.read_json(folder / "iterations.json")

    refined, rows = stage.run(compute, load)
    return stage, refined, rows


def compare(base: dict[str, np.ndarray], refined: dict[str, np.ndarray]) -> dict[str, Any]:
    """The verdict on paired episodes: rates, Wilson intervals, McNemar's p, paired difference."""
    a, b = base["success_end"], refined["success_end"]
    gain = stats.paired_bootstrap(b.astype(float), a.astype(float))
    return {
        "base_success": float(a.mean()),
        "refined_success": float(b.mean()),
        "episodes": len(a),
        "wilson_base": list(stats.wilson(int(a.sum()), len(a))),
        "wilson_refined": list(stats.wilson(int(b.sum()), len(b))),
        "mcnemar_p": float(stats.mcnemar(a, b).pvalue),
        "gain": float(gain.difference),
        "gain_interval": [float(gain.low), float(gain.high)],
        "bad_episodes": int(refined["bad"].sum()),
    }


def run(raw, workdir: Workdir) -> dict:
    """Refine with every arm and seed of the config; writes summary.json and a Markdown table."""
    job = config.build(RefineJob, raw)
    world = World.make(job.env, job.policy)
    needs_model = any(arm in ("vlm", "wrong_sentence") for arm in job.arms)
    model = load_reward_model(job.reward.model) if needs_model else None
    if model is not None:
        manifest.update(workdir.path, hashes=model.facts)
    rows = []
    for seed in job.seeds:
        base, variables, _ = clone_stage(workdir, job, seed, world)
        before = evaluation_stage(
            workdir, f"evaluation_base_{seed}", job.evaluation, world, variables, base
        )
        for arm in job.arms:
            stage, refined, iterations = refine_stage(
                workdir, job, arm, seed, world, base, variables, model
            )
            after = evaluation_stage(
                workdir, f"evaluation_{arm}_{seed}", job.evaluation, world, refined, stage
            )
            rows.append({
                "arm": arm, "seed": seed, **compare(before, after),
                "iterations": len(iterations),
                "invalid_scores": int(sum(r["invalid_scores"] for r in iterations)),
            })  # fmt: skip
            atomic.write_json(workdir / "summary.json", {"runs": rows})
            atomic.write_bytes(workdir / "table.md", table(rows).encode())
            oracle.record(workdir / "quickstart_oracle.json", job, rows)
    return {"runs": rows}


def table(rows: list[dict]) -> str:
    """The runs as a Markdown table."""
    lines = [
        "| reward | seed | base | refined | gain (95 % interval) | McNemar p |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        low, high = (100 * v for v in r["gain_interval"])
        lines.append(
            f"| {r['arm'].replace('_', ' ')} | {r['seed']} | {100 * r['base_success']:.1f} % "
            f"| {100 * r['refined_success']:.1f} % | {100 * r['gain']:+.1f} ({low:+.1f} to "
            f"{high:+.1f}) | {r['mcnemar_p']:.1e} |"
        )
    return "\n".join(lines) + "\n"
