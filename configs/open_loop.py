"""Judge a reward model on scripted episodes of held-out colours, half of them failures.

    python -m lrm_jax.evaluate --config=configs/open_loop.py --config.model=lrm-nano

    python -m lrm_jax.evaluate --config=configs/open_loop.py:suite

judges lrm-nano-suite on all the tasks of `configs/reward_nano.py:suite`.
"""

from ml_collections import ConfigDict

from lrm_jax.run.config import sibling


def get_config(arg: str = "") -> ConfigDict:
    """The evaluation that configs/reward_nano.py ends with; "small" is a smoke test."""
    nano = sibling(__file__, "reward_nano")
    full = nano.get_config(arg)
    names = ("held_out", "evaluate", "more_held_out", "unseen", "bars")
    parts = {name: full[name] for name in names}
    model = "lrm-nano-suite" if "suite" in arg else "lrm-nano"
    return ConfigDict({"job": "open_loop", "model": model, **parts})
