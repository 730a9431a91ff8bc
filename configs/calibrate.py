"""Fit a reward model's calibration on scripted episodes, and say what it is worth on others.

python -m lrm_jax.evaluate --config=configs/calibrate.py --config.model=lrm-nano
"""

from ml_collections import ConfigDict

from lrm_jax.run.config import sibling


def get_config(arg: str = "") -> ConfigDict:
    """Episodes like those of configs/open_loop.py under another seed; "small" is a smoke test."""
    config = sibling(__file__, "open_loop").get_config(arg)
    config.job = "calibrate"
    for name in ("bars", "more_held_out", "unseen"):
        del config[name]
    config.evaluate.seed += 1000
    return config
