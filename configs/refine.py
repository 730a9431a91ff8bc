"""Refinement as this project does it: the quickstart's clone, reward and PPO, without its film.

    python -m lrm_jax.train --config=configs/refine.py --config.arms="('vlm','oracle')"

The paper's mode is configs/refine_paper.py. "small" is a smoke test.
"""

from ml_collections import ConfigDict

from lrm_jax.run.config import sibling


def get_config(arg: str = "") -> ConfigDict:
    """The quickstart's settings as job "refine"."""
    config = sibling(__file__, "quickstart").get_config(arg)
    config.job = "refine"
    return config
