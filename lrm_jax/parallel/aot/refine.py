"""The refinement iteration as it runs: rollout, scoring and learning, a compiled program each.

`rl.refine.refine` calls three programs an iteration: physics, pixels and decisions of N episodes;
the reward model's judgement of every frame; the PPO update. They are compiled here one after the
other, each with the shardings that the one before it gave its results. Environments are cut over
data and fsdp; the policy is small and copied; the reward model is cut as for `score`, and stays on
the chips while the other two run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lrm_jax.jobs.arms import heads_asked
from lrm_jax.jobs.base_policy import World
from lrm_jax.jobs.reward_settings import RewardSettings
from lrm_jax.jobs.settings import EnvSettings
from lrm_jax.jobs.signals import rewards_of
from lrm_jax.parallel import rules
from lrm_jax.parallel.aot import estimate, programs
from lrm_jax.parallel.aot.programs import Program, placed
from lrm_jax.parallel.mesh import batch_sharding, replicated
from lrm_jax.policies import PolicyConfig
from lrm_jax.qwen3_vl import Config, Qwen3VL, sharding
from lrm_jax.rewards import cost
from lrm_jax.rewards.engine import RewardEngine
from lrm_jax.rewards.heads import default_heads
from lrm_jax.rewards.plan import RowTimes
from lrm_jax.rewards.tokenizer import Tokenizer
from lrm_jax.rl.ppo import PPOConfig
from lrm_jax.rl.refine import RefineConfig, init_state, learn
from lrm_jax.rl.rollout import reset_keys, rollout_from
from lrm_jax.run.errors import UserError

PARTS = ("rollout", "score", "learn")
CHUNK, CHUNKS = 8, 10  # as the quickstart: an episode of 80 control steps in ten decisions
GRID = 16  # the policy looks at 16 x 16 patches, whatever the camera's size
# Of a chip's HBM, what a micro-batch's activations may take by the engine's own estimate.
SCORING_SHARE = 0.25
SIGNAL = "tri"  # all three heads, each with an adapter of its own


@dataclasses.dataclass(frozen=True)
class Loop:
    """What an iteration works with.

    world: environment, renderer, policy. engine: of a bfloat16 reward model. settings, config: of
    the reward and of the loop.
    """

    world: World
    engine: RewardEngine
    settings: RewardSettings
    config: RefineConfig
    mesh: Mesh
    rank: int

    @classmethod
    def make(
        cls, config: Config, mesh: Mesh, environments: int, side: int, tokenizer: Tokenizer,
        memory_bytes: int, rank: int = programs.RANK,
        attention: str = "xla",
    ) -> Loop:  # fmt: skip
        """The loop for a camera of `side` pixels; `memory_bytes` as for `RewardEngine`.

        Raises:
          UserError: a camera that the policy or the reward model cannot take; environments that do
            not divide over the mesh.
        """
        parts = mesh.shape["data"] * mesh.shape["fsdp"]
        if environments % parts:
            raise UserError(f"--batch={environments} must be a multiple of data*fsdp = {parts}")
        if side % GRID:
            raise UserError(f"--image={side} must be a multiple of {GRID} for the policy")
        policy = PolicyConfig(
            chunk=CHUNK, image_size=side, patch=side // GRID, rho=0.0, explored=(0, 1, 2)
        )
        world = World.make(EnvSettings(size=side), policy)
        model = Qwen3VL(config, dtype=jnp.bfloat16, attention=attention)
        settings = RewardSettings(signal=SIGNAL)
        adapters = {name: i for i, name in enumerate(heads_asked(settings))}
        engine = RewardEngine(
            model, default_heads(), tokenizer, (side, side), world.env.instructions,
            memory_bytes=memory_bytes, adapters=adapters,
        )  # fmt: skip
        ppo = PPOConfig(minibatches=4, epochs=6, natural=1, target_kl=0.03, unexplained=True)
        refine = RefineConfig(num_envs=environments, num_chunks=CHUNKS, ppo=ppo)
        return cls(world, engine, settings, refine, mesh, rank)

    @property
    def frames(self) -> int:
        """Frames of an episode that are scored."""
        return self.config.num_chunks + 1

    def programs(self) -> Iterator[tuple[str, Program, Callable[[Any], None]]]:
        """(name, program, tell) in the order of an iteration. Before the next one is asked for,
        `tell` has to be given the shardings of this one's results (`Compiled.output_shardings`)."""
        told: list[Any] = []
        everywhere, c = replicated(self.mesh), self.config
        empty = dict(base={}, adapters={}, fallbacks=())
        state = jax.eval_shape(
            lambda: init_state(self.world.fresh(0), config=c, rng=jax.random.PRNGKey(0))
        )
        state = placed(state, everywhere)

        def play(variables, rng):
            keys = jax.lax.with_sharding_constraint(
                reset_keys(rng, c.num_envs), batch_sharding(self.mesh)
            )
            return rollout_from(
                self.world.env, self.world.render, self.world.policy, variables, keys,
                jax.random.fold_in(rng, 1), num_chunks=c.num_chunks, chunk=CHUNK,
            )  # fmt: skip

        arguments = (state.variables, state.rng)
        yield "rollout", Program(play, arguments, (), **empty), told.append
        with jax.set_mesh(self.mesh):
            played = jax.eval_shape(play, *arguments)
        played = placed(played, told.pop()).replace(privileged=None)

        scoring = self.scoring(played.frames, played.task_ids)
        yield "score", scoring, told.append
        with jax.set_mesh(self.mesh):
            rewards, valid = jax.eval_shape(scoring.function, *scoring.arguments)
        rewards, valid = placed((rewards, valid), told.pop())

        def update(state, played, rewards, valid):
            state, metrics = learn(self.world.policy, c, state, played, rewards, valid)
            everything = jax.tree.map(lambda _: everywhere, state)
            return jax.lax.with_sharding_constraint(state, everything), metrics

        yield "learn", Program(update, (state, played, rewards, valid), (), **empty), told.append

    def scoring(self, frames: Any, task_ids: Any) -> Program:
        """The reward of every decision from frames [T+1,N,H,W,3], with one adapter for each
        head."""
        shapes = programs.base_shapes(self.engine.model.config)
        base = rules.plan(shapes, sharding.PARAMS, self.mesh, indivisible="replicate")
        factors = programs.adapter_shapes(self.engine.model.config, self.rank)
        homes = rules.plan(factors, sharding.LORA, self.mesh, indivisible="replicate")
        adapters = tuple({"lora": placed(factors, homes.shardings)} for _ in self.engine.adapters)
        base_args = placed(shapes, base.shardings)

        def score(variables, frames, task_ids):
            scores = self.engine.score(
                variables, frames, task_ids, heads=heads_asked(self.settings)
            )
            rewards, found = rewards_of(self.settings, scores, self.config.ppo.discount)
            return rewards, found["valid"]

        return Program(
            score, ({"params": base_args, "adapters": adapters}, frames, task_ids), (),
            base=base_args, adapters=adapters, fallbacks=(*base.fallbacks, *homes.fallbacks),
        )  # fmt: skip

    def passes(self) -> dict[str, int]:
        """How often scoring runs the vision tower ("images"), and the decoder for each adapter, on
        a shard's micro-batches."""
        engine, config = self.engine, self.engine.model.config
        count = self.config.num_envs // (self.mesh.shape["data"] * self.mesh.shape["fsdp"])
        size = cost.feature_bytes(config, engine.patches, 2) * self.frames
        groups = cost.micro_batches(count, engine.memory_bytes // size).shape
        here = groups[1]

        def batches(number: int, each: int) -> int:
            return groups[0] * cost.micro_batches(number, engine.memory_bytes // each).shape[0]

        found = {"images": batches(here * self.frames, cost.image_bytes(config, engine.patches, 2))}
        for name in engine.adapters:
            plan = engine.plan((name,), engine.frames_per_row)
            rows = RowTimes(self.frames, 1, plan.frames_per_row).rows * here
            tables = plan.tables
            each = cost.row_bytes(config, len(tables.slot), len(tables.reads), 2)
            found[name] = batches(rows, each)
        return found

    def estimate(self, program: Program) -> dict[str, Any]:
        """The hand calculation for the program of `scoring`: FLOPs, and bytes between chips, as in
        `estimate.collective_bytes` but with parameters gathered for every micro-batch."""
        config, mesh, passes = self.engine.model.config, self.mesh, self.passes()
        frames = self.frames * self.config.num_envs
        each = self.engine.cost(self.frames)
        factors = estimate.factor_flops(config, frames * each["tokens"], self.rank)
        total = frames * each["flops"] + factors
        once = estimate.parameter_gathers(program.base, config, mesh)
        runs = [passes[name] for name in self.engine.adapters]
        here = frames / (mesh.shape["data"] * mesh.shape["fsdp"])
        found = {
            "vision gathers": once["vision"] * passes["images"],
            "decoder gathers": once["decoder"] * sum(runs),
            "output layer gathers": once["output layer"] * sum(runs),
            "factor gathers": sum(
                estimate.gathers(tree, mesh) * n
                for tree, n in zip(program.adapters, runs, strict=True)
            ),
            **estimate.between_tensor(
                config, mesh, images=here, patches=self.engine.patches,
                tokens=here * each["tokens"],
            ),
        }  # fmt: skip
        return {
            "passes": passes,
            "tokens_per_frame": each["tokens"],
            "model_flops": total,
            "executed_flops": total,
            "predicted_collective_bytes": {**found, "total": sum(found.values())},
        }

    def hbm_bytes(self, program: Program, held: float) -> float:
        """As `estimate.hbm_bytes`, with parameters written and read for every micro-batch."""
        passes, whole = self.passes(), estimate.whole_bytes(program.base, self.mesh)
        runs = sum(passes[name] for name in self.engine.adapters)
        return held + 2 * (whole["visual"] * passes["images"] + whole["rest"] * runs)

    def batch_bytes(self, program: Program) -> float:
        """The hand calculation for "learn": every chip gets all decisions, because minibatches are
        drawn from all of them. What comes from elsewhere, on each chip: observations, actions, two
        numbers of the rollout and two of GAE, and the mask; by decision."""
        _, played, rewards, _ = program.arguments
        seen = (played.features, played.proprio, played.values)
        steps = self.config.num_chunks / (self.config.num_chunks + 1)  # the last frame is not used
        size = steps * sum(map(_bytes, seen))
        size += sum(map(_bytes, (played.actions, played.log_probs, played.mask)))
        size += 2 * _bytes(rewards)
        parts = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        return size * (parts - 1) / parts


def _bytes(shape: Any) -> int:
    return math.prod(shape.shape) * shape.dtype.itemsize
