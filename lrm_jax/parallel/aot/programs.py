"""The programs that are compiled ahead of time, with abstract arguments: shapes and shardings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lrm_jax import lora
from lrm_jax.parallel import rules
from lrm_jax.parallel.mesh import ROW_AXES, replicated
from lrm_jax.qwen3_vl import Config, Qwen3VL, grid_of, names, sharding
from lrm_jax.reward_training import closed_answers
from lrm_jax.reward_training.adapters import step_function
from lrm_jax.reward_training.course import homes_of
from lrm_jax.reward_training.step import TrainState
from lrm_jax.rewards import scoring
from lrm_jax.rewards.layout import AnswerTable, Tables
from lrm_jax.run.errors import UserError

PROGRAMS = ("lora_train", "score")
RANK, ALPHA = 64, 128  # the published adapters' (their server's defaults)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
TENTHS = tuple(k / 10 for k in range(11))
# The progress question: its scaffold is forced, "0" and "1" split first, the tenth comes third.
READS = 5


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a program works on: `rows` questions of `tokens` tokens, of which `images` images of
    `side` x `side` pixels are a part."""

    rows: int
    tokens: int = 320
    images: int = 2
    side: int = 256

    def validate(self, config: Config, mesh: Mesh) -> None:
        """UserError unless the images fit the row and the rows fit the mesh."""
        try:
            _, height, width = grid_of(config, self.side, self.side)
        except ValueError as error:
            raise UserError(f"--image: {error}") from error
        shown = self.images * (height * width // config.vision_config.merge_unit + 2)
        if self.tokens <= shown:
            raise UserError(
                f"--tokens={self.tokens}: {self.images} images of {self.side} pixels alone take "
                f"{shown}"
            )
        parts = mesh.shape["data"] * mesh.shape["fsdp"]
        if self.rows % parts:
            raise UserError(f"--batch={self.rows} must be a multiple of data*fsdp = {parts}")


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of abstract arguments, ready to lower.

    donated: numbers of the arguments whose memory the results take over. base: shapes and shardings
    of the model's parameters; adapters: those of the factors. fallbacks: see `rules.plan`.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    donated: tuple[int, ...]
    base: Any
    adapters: Any
    fallbacks: tuple[rules.Fallback, ...]

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """Traces and lowers for the devices of `mesh`."""
        with jax.set_mesh(mesh):
            return jax.jit(self.function, donate_argnums=self.donated).lower(*self.arguments)


def build(
    name: str,
    config: Config,
    mesh: Mesh,
    shape: Shape,
    *,
    remat: str = "full",
    rank: int = RANK,
    attention: str = "xla",
) -> Program:
    """The program `name` for a bfloat16 base with one float32 adapter of `rank`.

    Raises:
      UserError: no such program, or a shape that does not fit.
    """
    if name not in PROGRAMS:
        raise UserError(f"--program={name}: there are {', '.join(PROGRAMS)}")
    shape.validate(config, mesh)
    base = rules.plan(shapes := base_shapes(config), sharding.PARAMS, mesh, indivisible="replicate")
    factors = adapter_shapes(config, rank)
    homes = rules.plan(factors, sharding.LORA, mesh, indivisible="replicate")
    tables = placed(table_shapes(shape), replicated(mesh))
    answers = AnswerTable(
        read=np.minimum(np.arange(33).reshape(11, 3), READS - 1).astype(np.int32),
        token=np.arange(33, dtype=np.int32).reshape(11, 3),
        used=np.ones((11, 3), bool),
    )
    rows = closed_answers.Rows(
        frames=_struct((shape.rows, shape.images, shape.side, shape.side, 3), np.uint8),
        sentence=_struct((shape.rows,), np.int32),
        labels=_struct((shape.rows,), np.float32),
    )
    rows = placed(rows, NamedSharding(mesh, PartitionSpec(ROW_AXES)))
    base_args, adapters = placed(shapes, base.shardings), placed(factors, homes.shardings)
    common = dict(base=base_args, adapters=adapters, fallbacks=(*base.fallbacks, *homes.fallbacks))
    model = Qwen3VL(
        config, dtype=jnp.bfloat16, remat=remat if name == "lora_train" else "none",
        attention=attention,
    )  # fmt: skip
    if name == "score":

        def score(base, adapters, tables, rows):
            variables = lora.variables(base, {"lora": adapters})
            found = closed_answers.answer_log_probabilities(
                model, variables, tables, answers, rows
            )
            return scoring.normalise(found).expectation(TENTHS)

        return Program(score, (base_args, adapters, tables, rows), (), **common)

    def loss(model, variables, batch, rng):
        del rng
        tables, rows = batch
        total, count = closed_answers.cross_entropy(
            model, variables, tables, answers, TENTHS, rows
        )
        return total, (count, {})

    optimiser = lora.only_trainable(
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-5, weight_decay=0.0))
    )
    tree = {"lora": adapters}
    homes = homes_of(tree, optimiser, mesh)
    moments = placed(jax.eval_shape(optimiser.init, tree), homes.optimiser)
    state = TrainState(tree, moments, placed(_struct((), np.int32), homes.step))
    step = step_function(model, optimiser, loss=loss)

    def train(state, base, tables, rows):
        after, metrics = step(state, base, (tables, rows))
        # What goes out lies where it came in, or the next step would compile again.
        return jax.lax.with_sharding_constraint(after, homes), metrics

    return Program(train, (state, base_args, tables, rows), (0,), **common)


def base_shapes(config: Config) -> dict[str, Any]:
    """The parameter tree's shapes, bfloat16."""
    found = {leaf.path: _struct(leaf.tree_shape, jnp.bfloat16) for leaf in names.leaves(config)}
    return _nested(found)


def adapter_shapes(config: Config, rank: int, targets: Sequence[str] = TARGETS) -> dict[str, Any]:
    """Shapes of an adapter's "lora" tree at the decoder's `targets`: float32 a [.., in, rank], b
    [.., rank, out], scale [..]."""
    found = {}
    for leaf in names.leaves(config):
        if leaf.path[0] == "language_model" and leaf.is_kernel and leaf.path[-2] in targets:
            *stack, fan_in, fan_out = leaf.tree_shape
            found[(*leaf.path[:-1], "a")] = _struct((*stack, fan_in, rank), np.float32)
            found[(*leaf.path[:-1], "b")] = _struct((*stack, rank, fan_out), np.float32)
            found[(*leaf.path[:-1], "scale")] = _struct(tuple(stack), np.float32)
    return _nested(found)


def table_shapes(shape: Shape) -> Tables:
    """A row's index tables for one sentence."""
    n = shape.tokens
    return Tables(
        tokens=_struct((1, n), np.int32),
        valid=_struct((1, n), np.bool_),
        positions=_struct((3, 1, n), np.int32),
        attention=_struct((n, n), np.bool_),
        slot=_struct((n,), np.int32),
        offset=_struct((n,), np.int32),
        reads=_struct((READS,), np.int32),
    )


def placed(tree: Any, shardings: Any) -> Any:
    """The shapes of `tree` with shardings: a tree of them, or one for all leaves."""
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def _struct(shape, dtype) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(shape), dtype)


def _nested(flat: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree
