"""The environment interface: pure functions over one typed state, as in Brax and MJX Playground."""

from typing import Any, Protocol

import jax
from flax import struct

from lrm_jax.run.quiet_mjx import mjx


@struct.dataclass
class State:
    """Everything one environment carries from step to step (a pytree; vmap adds a batch axis).

    data: the physics state. obs: what a policy may see beside pixels (``proprio`` float32 [P]).
    reward: privileged dense reward of the last step, float32 [] (evaluation and the oracle arm).
    done: float32 [], 1.0 once the fixed horizon is reached. metrics: privileged simulator facts
    (``success``, ``progress``: float32 []). info: task identity, counters, controller target.
    """

    data: mjx.Data
    obs: dict[str, jax.Array]
    reward: jax.Array
    done: jax.Array
    metrics: dict[str, jax.Array]
    info: dict[str, Any]


class Env(Protocol):
    """What rollouts, collection and evaluation rely on."""

    instructions: tuple[str, ...]
    camera: str
    episode_length: int
    action_size: int
    proprio_size: int
    control_hz: float

    def reset(self, rng: jax.Array) -> State:
        """A new episode from a PRNG key."""
        ...

    def step(self, state: State, action: jax.Array) -> State:
        """One control step with an action [action_size] in [-1, 1]."""
        ...

    def scene(self, state: State) -> tuple[mjx.Model, mjx.Data]:
        """The model (with this episode's colours) and data that a renderer takes."""
        ...
