"""Simulated manipulation tasks in MJX: ``make(name)``, ``names()``."""

from lrm_jax.envs.base import Env, State
from lrm_jax.envs.put_on_plate import PutOnPlate
from lrm_jax.run.errors import UserError

_TASKS = {"PutOnPlate": PutOnPlate}


def names() -> tuple[str, ...]:
    """The registered task names."""
    return tuple(_TASKS)


def make(name: str, **settings) -> Env:
    """Build a task by name; ``settings`` go to its constructor. UserError for an unknown name."""
    if name not in _TASKS:
        raise UserError(f"there is no task {name!r}: known are {', '.join(_TASKS)}")
    return _TASKS[name](**settings)


__all__ = ["Env", "State", "make", "names"]
