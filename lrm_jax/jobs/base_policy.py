"""The job `base_policy`: demonstrations, behaviour cloning, and how often the clone succeeds."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lrm_jax import envs
from lrm_jax.jobs.collect import collect_stage
from lrm_jax.jobs.settings import CollectSettings, EnvSettings
from lrm_jax.parallel.mesh import make_mesh, replicated, under
from lrm_jax.parallel.placement import put
from lrm_jax.policies import (
    CloneConfig,
    Policy,
    PolicyConfig,
    Vocabulary,
    clone,
    from_episodes,
    init_variables,
    save_policy,
)
from lrm_jax.rl.evaluate import Evaluation, episode_keys, evaluate
from lrm_jax.rl.rollout import make_render_fn
from lrm_jax.run import atomic, config, processes
from lrm_jax.run.config import field
from lrm_jax.run.progress import bar
from lrm_jax.run.trees import load_tree, save_tree
from lrm_jax.run.workdir import Stage, Workdir

TRIALS = 700_000  # first seed of the episodes that decide when cloning stops; never evaluated on


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """Closed-loop evaluation: how many paired episodes, from which seed, how many at once."""

    episodes: int = field(512, ge=1)
    seed: int = field(10_000, ge=0)
    batch: int = field(64, ge=1)


@dataclasses.dataclass(frozen=True)
class BasePolicyJob:
    """Everything that `job="base_policy"` depends on."""

    job: str = "base_policy"
    seed: int = field(0, ge=0)
    env: EnvSettings = field(default_factory=EnvSettings)
    demonstrations: CollectSettings = field(default_factory=CollectSettings)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    clone: CloneConfig = field(default_factory=CloneConfig)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """What rollouts need, made once so that nothing compiles twice.

    mesh: what environments, the reward model and the learner are cut over; None for one device.
    """

    env: envs.Env
    render: Any
    policy: Policy
    vocabulary: Vocabulary
    mesh: Mesh | None = None

    @classmethod
    def make(cls, env: EnvSettings, policy: PolicyConfig, mesh: str = "") -> "World":
        """Environment, renderer and policy network for these settings; `mesh` such as "data=2", ""
        for one device."""
        over = make_mesh(mesh) if mesh else None  # before anything starts JAX's backends
        made = env.make()
        vocabulary = Vocabulary.of(made.instructions)
        network = Policy(policy, vocabulary.size, made.proprio_size)
        return cls(made, make_render_fn(made, env.size, env.size), network, vocabulary, over)

    def placed(self, tree: Any) -> Any:
        """`tree` copied to every device of the mesh, of all processes; itself without one."""
        return tree if self.mesh is None else put(tree, replicated(self.mesh))

    def fresh(self, seed: int) -> Any:
        """Untrained policy variables."""
        key = jax.random.key(seed)
        return init_variables(self.policy, key, self.vocabulary, self.env.instructions)


def clone_stage(workdir: Workdir, job: Any, seed: int, world: World) -> tuple[Stage, Any, dict]:
    """Demonstrations and the cloned policy of a seed: (stage, variables, report)."""
    demos = dataclasses.replace(job.demonstrations, seed=job.demonstrations.seed + seed)
    before, arrays = collect_stage(workdir, f"demonstrations_{seed}", job.env, demos)
    settings = {"policy": job.policy, "clone": job.clone, "seed": seed}
    stage = workdir.stage(f"base_policy_{seed}", settings, after=[before])

    def compute(folder: Path) -> None:
        own = np.asarray(arrays["own"])
        done = arrays["success"][np.arange(len(own)), :, own]
        good = np.flatnonzero(done[:, -1])  # an imitator is shown what worked
        stride = demos.stride
        data = from_episodes(
            [np.repeat(arrays["frames"][e][:-1], stride, axis=0) for e in good],
            [arrays["proprio"][e][:-1] for e in good],
            [int(arrays["task_id"][e]) for e in good],
            [arrays["actions"][e] for e in good],
            chunk=job.policy.chunk, stride=stride,
        )  # fmt: skip
        with bar(total=job.clone.epochs, desc="behaviour cloning", unit="epoch") as progress:

            def on_epoch(_, row):
                progress.update(1)
                played = {"success": f"{row['trial']:.2f}"} if "trial" in row else {}
                progress.set_postfix(loss=f"{row['validation_loss']:.4f}", **played)

            def trial(variables) -> float:
                episodes = job.clone.trial_episodes
                batch = min(job.evaluation.batch, episodes)
                chosen = EvaluationSettings(episodes, TRIALS + seed, batch)
                return _played(world, variables, chosen).rate

            variables, report = clone(
                world.policy, world.fresh(seed), data, job.clone, jax.random.key(seed + 1),
                on_epoch=on_epoch, trial=trial,
            )  # fmt: skip
        save_tree(folder / "policy.safetensors", variables)
        # The same with its settings and words, for use outside of this run (load_policy).
        save_policy(folder / "policy", world.policy, world.vocabulary, variables)
        atomic.write_json(folder / "report.json", report)

    def load(folder: Path) -> tuple[Any, dict]:
        variables = load_tree(folder / "policy.safetensors", like=world.fresh(seed))
        return variables, atomic.read_json(folder / "report.json")

    variables, report = stage.run(compute, load)
    return stage, variables, report


def play_episodes(
    world: World, variables: Any, settings: EvaluationSettings, label: str
) -> Evaluation:
    """The paired episodes of a policy, under a progress bar."""
    size = settings.batch
    with bar(total=settings.episodes, desc=label, unit="episode") as progress:
        return _played(
            world, variables, settings,
            on_batch=lambda done, _: progress.update(done - (done - 1) // size * size),
        )  # fmt: skip


def _played(
    world: World, variables: Any, settings: EvaluationSettings, **options: Any
) -> Evaluation:
    """`evaluate` on the devices of the world's mesh."""
    keys = world.placed(episode_keys(settings.seed, settings.episodes))
    with under(world.mesh):
        return evaluate(
            world.env, world.render, world.policy, world.placed(variables), keys,
            batch=settings.batch, rng=world.placed(jax.random.PRNGKey(0)), **options,
        )  # fmt: skip


def evaluation_stage(
    workdir: Workdir,
    name: str,
    settings: EvaluationSettings,
    world: World,
    variables: Any,
    after: Stage,
) -> dict[str, np.ndarray]:
    """Paired episodes of a policy: success_end, success_any, bad bool [E], task_ids int32 [E],
    progress float32 [E,T+1]."""
    stage = workdir.stage(name, settings, after=[after])

    def compute(folder: Path) -> None:
        found = play_episodes(world, variables, settings, name.replace("_", " "))
        np.savez(
            folder / "episodes.npz", success_end=found.success_end, success_any=found.success_any,
            progress=found.progress, bad=found.bad, task_ids=found.task_ids,
        )  # fmt: skip

    return stage.run(compute, lambda folder: dict(np.load(folder / "episodes.npz")))


def run(raw, workdir: Workdir) -> dict:
    """Clone the policy of ``config.seed`` and evaluate it; writes summary.json."""
    from lrm_jax.evaluation import stats

    job = config.build(BasePolicyJob, raw)
    world = World.make(job.env, job.policy)
    stage, variables, report = clone_stage(workdir, job, job.seed, world)
    found = evaluation_stage(
        workdir, f"evaluation_base_{job.seed}", job.evaluation, world, variables, stage
    )
    won = int(found["success_end"].sum())
    shown = (
        "train_samples", "train_episodes", "validation_samples", "validation_episodes",
        "validation_loss", "epoch", "parameters", "std",
    )  # fmt: skip
    summary = {
        "base_success": won / len(found["success_end"]),
        "episodes": len(found["success_end"]),
        "wilson_base": list(stats.wilson(won, len(found["success_end"]))),
        "bad_episodes": int(found["bad"].sum()),
        "clone": {k: report[k] for k in shown},
    }
    if processes.is_first():
        atomic.write_json(workdir / "summary.json", summary)
    return summary
