"""The job `refine`: PPO refinement of cloned policies, for every (reward arm, seed) asked for."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from lrm_jax.evaluation import stats
from lrm_jax.jobs import oracle
from lrm_jax.jobs.arms import judgements, make_reward, other_sentences, untrained
from lrm_jax.jobs.base_policy import (
    EvaluationSettings,
    World,
    clone_stage,
    evaluation_stage,
)
from lrm_jax.jobs.reward_settings import ARMS, JUDGE_ARMS, MODEL_ARMS, ORACLES, RewardSettings
from lrm_jax.jobs.settings import CollectSettings, EnvSettings
from lrm_jax.parallel.mesh import under
from lrm_jax.policies import CloneConfig, PolicyConfig
from lrm_jax.rewards.judges import load_judge
from lrm_jax.rewards.model import RewardModel, load_reward_model
from lrm_jax.rl import stopping
from lrm_jax.rl.refine import RefineConfig, RefineState, init_state, refine
from lrm_jax.run import atomic, config, manifest, metrics, processes
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
    equal_budget: refuse arms that would take a different number of control steps or whose models
    would be shown a different number of frames ("frames", the paper's notion: every arm judges the
    same ones) or asked a different number of questions ("judgements": heads count); "" allows all.
    keep: hand the refined policy over only if the mean reward of its iterations rose, with a
    Mann-Kendall p of at most this, and else the clone: who is paid by chance walks away from what
    the clone can do. 1 hands it over whatever happened.
    mesh: devices that physics, pixels, the reward model and the learner share, such as "data=-1";
    "" for one. "data=2" makes two devices of a CPU. Results differ by rounding.
    """

    job: str = "refine"
    arms: tuple[str, ...] = ("vlm",)
    seeds: tuple[int, ...] = (0,)
    keep: float = field(1.0, gt=0, le=1)
    mesh: str = ""
    equal_budget: Literal["", "frames", "judgements"] = ""
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
            self.with_arm(arm)
        if not self.arms or not self.seeds or min(self.seeds) < 0:
            raise UserError("config.arms and config.seeds need at least one entry, seeds from 0 up")
        if self.equal_budget:
            check_equal_budget({arm: self.with_arm(arm) for arm in self.arms}, self.equal_budget)
        self.check_sizes(self.env.make().episode_length)

    def check_sizes(self, length: int) -> None:
        """UserError where decisions or images do not fit the task; `length` of its episodes."""
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

    def with_arm(self, arm: str) -> "RefineJob":
        """The job of one arm. UserError for a judge without a folder, and the like."""
        reward = dataclasses.replace(self.reward, arm=arm)
        reward.validate()
        return dataclasses.replace(self, arms=(arm,), reward=reward, equal_budget="")

    @property
    def without_reward(self) -> tuple[Any, ...]:
        """The settings that every arm's result depends on."""
        return (
            self.env, self.demonstrations, self.policy, self.clone, self.refine, self.evaluation
        )  # fmt: skip

    @property
    def judgements(self) -> int:
        """Questions that the first arm puts to its model in the whole refinement."""
        c, reward = self.refine, dataclasses.replace(self.reward, arm=self.arms[0])
        return c.iterations * judgements(reward, c.num_chunks, c.num_envs)

    @property
    def judged_frames(self) -> int:
        """Frames that the first arm shows to its model in the whole refinement."""
        c = self.refine
        frames = 1 + c.num_chunks // self.reward.every
        asks = self.arms[0] in (*MODEL_ARMS, *JUDGE_ARMS)
        return c.iterations * c.num_envs * frames * asks

    @property
    def env_steps(self) -> int:
        """Control steps of the whole refinement."""
        return self.refine.iterations * self.refine.num_envs * self.refine.num_chunks * (
            self.policy.chunk
        )  # fmt: skip


def check_equal_budget(jobs: dict[str, RefineJob], unit: str) -> None:
    """UserError unless all arms take as many control steps, and those that ask a model ask it as
    much, in frames or in judgements."""
    spend = {name: job.judged_frames if unit == "frames" else job.judgements
             for name, job in jobs.items()}  # fmt: skip
    steps = {name: job.env_steps for name, job in jobs.items()}
    asked = {name: count for name, count in spend.items() if count}
    for what, found in (("control steps", steps), (unit, asked)):
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{name} {count:,}" for name, count in found.items())
            raise UserError(
                f"arms differ in {what} ({listed}): change their settings, or allow it with "
                "config.equal_budget=''"
            )


def reward_function(job: RefineJob, arm: str, world: World, model: RewardModel | None):
    """The reward function of an arm over this world's sentences."""
    settings = dataclasses.replace(job.reward, arm=arm)
    discount, chunk = job.refine.ppo.discount, job.policy.chunk
    sentences = world.env.instructions
    if arm in JUDGE_ARMS:
        if processes.count() > 1:
            raise UserError(f"reward arm {arm!r} reads frames on the host: run it in one process")
        return make_reward(
            settings, discount, None, None, chunk=chunk, judge=load_judge(arm, settings.judge),
            sentences=sentences, control_hz=world.env.control_hz,
        )  # fmt: skip
    if arm not in MODEL_ARMS:
        return make_reward(settings, discount, None, None)
    speaker = untrained(model) if arm == "untrained" else model
    engine = speaker.engine(sentences, (job.env.size, job.env.size))
    ids = sorted({sentences.index(s) for s in world.env.sentences_in_use()})
    swap = other_sentences(sentences, np.array(ids))
    return make_reward(settings, discount, engine, speaker.variables, swap, chunk=chunk)


def model_facts(job: RefineJob, arm: str, model: RewardModel | None) -> dict | None:
    """What the reward of an arm depends on besides its settings: hashes of the weights it reads."""
    if arm in MODEL_ARMS:
        return model.facts
    if arm in JUDGE_ARMS:
        files = sorted(Path(job.reward.judge).glob("*.safetensors"))
        return {"judge_sha256": {f.name: atomic.sha256(f) for f in files}}
    return None


def refine_stage(
    workdir: Workdir,
    job: RefineJob,
    arm: str,
    seed: int,
    world: World,
    base: Stage,
    variables: Any,
    model: RewardModel | None,
    label: str | None = None,
) -> tuple[Stage, Any, list[dict]]:
    """The refined policy of an arm and seed, and a row of figures for each iteration. `label`
    stands for the arm in the stage's name."""
    name = f"refine_{label or arm}_{seed}"
    settings = {
        "refine": job.refine,
        "reward": dataclasses.replace(job.reward, arm=arm),
        "seed": seed,
        "model": model_facts(job, arm, model),
    }
    stage = workdir.stage(name, settings, after=[base])
    name = stage.name  # a view of the folder may have changed it

    def compute(folder: Path) -> None:
        setup = dataclasses.replace(job.refine, privileged_reward=arm in ORACLES)
        rng = jax.random.PRNGKey(seed + 1_000)
        fresh = world.placed(init_state(variables, setup, rng))
        with (
            under(world.mesh),
            Checkpoints(stage.scratch / "checkpoints", stage.fingerprint) as checkpoints,
        ):
            found = checkpoints.latest_valid(fresh)
            state: RefineState = fresh if found is None else found.state
            done = int(state.iteration)
            history = metrics.read(workdir.path, name)[:done]
            processes.wait_for_all(f"{name} read what is done")  # before the first writes there
            with (
                _writer(workdir.path, name, done) as writer,
                bar(total=setup.iterations, desc=f"refining ({label or arm}, seed {seed})",
                    unit="iteration", initial=done) as progress,
            ):  # fmt: skip

                def on_iteration(state: RefineState, row: dict[str, float]) -> None:
                    if writer is not None:
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
                    history=history,
                )  # fmt: skip
        save_tree(folder / "policy.safetensors", state.variables)
        atomic.write_json(folder / "iterations.json", metrics.read(workdir.path, name))

    def load(folder: Path) -> tuple[Any, list[dict]]:
        refined = load_tree(folder / "policy.safetensors", like=variables)
        return refined, atomic.read_json(folder / "iterations.json")

    refined, rows = stage.run(compute, load)
    return stage, refined, rows


def _writer(folder: Path, series: str, done: int) -> contextlib.AbstractContextManager[Any]:
    """The metrics of a refinement that goes on after `done` iterations; None for all processes but
    the first."""
    if not processes.is_first():
        return contextlib.nullcontext()
    return MetricsWriter(folder, series, resume_step=done if done else None)


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


def handed_over(
    keep: float,
    iterations: list[dict],
    base: dict[str, np.ndarray],
    refined: dict[str, np.ndarray],
    stages: tuple[str, str],
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The episodes of the policy that a refinement hands over, see `RefineJob.keep`, and a row:
    `compare` with those of the clone, whether the refined policy was kept, the p of the reward's
    rise, "policy": its file in the work folder, and "trained": success and gain of the refined
    policy, kept or not. stages: names of the clone's stage and of the refinement's."""
    p = stopping.rise_p(iterations)
    kept = p <= keep
    chosen = refined if kept else base
    trained = compare(base, refined)
    trained = {k: trained[k] for k in ("refined_success", "gain", "gain_interval", "mcnemar_p")}
    row = {**compare(base, chosen), "kept": kept, "reward_rise_p": p, "trained": trained}
    row |= {"policy": f"stages/{stages[kept]}/policy.safetensors"}
    return chosen, {**row, "bad_episodes": int(refined["bad"].sum())}


def spent(job: RefineJob, arm: str, iterations: list[dict]) -> dict[str, Any]:
    """What a refinement used: iterations, control steps, questions to the model, scores that could
    not be read; why it stopped, and whether anything in it read the simulator's facts."""
    why = stopping.reason(job.refine.stop, iterations)
    return {
        "iterations": len(iterations),
        "env_steps": int(iterations[-1]["env_steps"]),
        "judgements": int(sum(r.get("reward/judgements", 0) for r in iterations)),
        "invalid_scores": int(sum(r["invalid_scores"] for r in iterations)),
        "stopped": why if len(iterations) < job.refine.iterations else None,
        "privileged": arm in ORACLES or job.refine.stop.privileged_rank is not None,
    }


def run(raw, workdir: Workdir) -> dict:
    """Refine with every arm and seed of the config; writes summary.json and a Markdown table."""
    job = config.build(RefineJob, raw)
    world = World.make(job.env, job.policy, job.mesh)
    needs_model = any(arm in MODEL_ARMS for arm in job.arms)
    model = load_reward_model(job.reward.model, mesh=world.mesh) if needs_model else None
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
            names = base.name, stage.name
            _, row = handed_over(job.keep, iterations, before, after, names)
            rows.append({"arm": arm, "seed": seed, **row, **spent(job, arm, iterations)})
            if processes.is_first():
                atomic.write_json(workdir / "summary.json", {"runs": rows})
                atomic.write_bytes(workdir / "table.md", table(rows).encode())
                oracle.record(workdir / "quickstart_oracle.json", job.without_reward, rows)
    return {"runs": rows}


def table(rows: list[dict]) -> str:
    """The runs as a Markdown table."""
    lines = [
        "| reward | seed | base | refined | gain (95 % interval) | McNemar p | judgements |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        low, high = (100 * v for v in r["gain_interval"])
        lines.append(
            f"| {r['arm'].replace('_', ' ')} | {r['seed']} | {100 * r['base_success']:.1f} % "
            f"| {100 * r['refined_success']:.1f} % | {100 * r['gain']:+.1f} ({low:+.1f} to "
            f"{high:+.1f}) | {r['mcnemar_p']:.1e} | {r['judgements']:,} |"
        )
    if len({r["judgements"] for r in rows if r["judgements"]}) > 1:
        lines += ["", "The arms asked their models a different number of questions."]
    for r in rows:
        if not r["kept"]:
            low, high = (100 * v for v in r["trained"]["gain_interval"])
            lines += [
                "",
                f"{r['arm'].replace('_', ' ')}, seed {r['seed']}: the reward did not rise "
                f"(p = {r['reward_rise_p']:.2g}), the clone is kept; refined it gains "
                f"{100 * r['trained']['gain']:+.1f} ({low:+.1f} to {high:+.1f}).",
            ]
        if r["stopped"]:
            who = f"{r['arm'].replace('_', ' ')}, seed {r['seed']}"
            lines += ["", f"{who}: stopped after iteration {r['iterations']} ({r['stopped']})."]
    if any(r["privileged"] and r["arm"] not in ORACLES for r in rows):
        lines += ["", "Runs with `refine.stop.privileged_rank` read the simulator's success."]
    return "\n".join(lines) + "\n"
