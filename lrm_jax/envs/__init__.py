"""Simulated manipulation tasks in MJX: ``make(name)``, ``names()``.

``make("playground:NAME")`` gives a task of MuJoCo Playground, where that package is installed.
"""

import inspect

from lrm_jax.envs.base import Env, State
from lrm_jax.envs.lift_peg import LiftPeg
from lrm_jax.envs.open_drawer import OpenDrawer
from lrm_jax.envs.place_in_bowl import PlaceInBowl
from lrm_jax.envs.press_buttons import PressButtons
from lrm_jax.envs.push_to_region import PushToRegion
from lrm_jax.envs.put_in_drawer import PutInDrawerAndClose
from lrm_jax.envs.put_on_plate import PutOnPlate
from lrm_jax.envs.stack_cubes import StackCubes
from lrm_jax.run.errors import UserError, did_you_mean

_TASKS = {
    task.__name__: task
    for task in (
        PutOnPlate, StackCubes, PushToRegion, PlaceInBowl, OpenDrawer, PressButtons, LiftPeg,
        PutInDrawerAndClose,
    )
}  # fmt: skip


def names() -> tuple[str, ...]:
    """The registered task names."""
    return tuple(_TASKS)


def make(name: str, **settings) -> Env:
    """Build a task by name; ``settings`` go to its constructor.

    UserError for an unknown name or setting.
    """
    if name.startswith("playground:"):
        from lrm_jax.envs import playground

        known = set(inspect.signature(playground.Playground).parameters) - {"name"}
        if unknown := sorted(set(settings) - known):
            raise UserError(
                f"{name} has no setting {unknown[0]!r}: {did_you_mean(unknown[0], known)}"
            )
        return playground.Playground(name.removeprefix("playground:"), **settings)
    if name not in _TASKS:
        raise UserError(f"there is no task {name!r}: known are {', '.join(_TASKS)}")
    return _TASKS[name](**settings)


__all__ = ["Env", "State", "make", "names"]
