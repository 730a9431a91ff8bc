"""Behaviour cloning alone: the quickstart's base policy and how often it succeeds.

python -m lrm_jax.train --config=configs/base_policy.py
"""

from ml_collections import ConfigDict

from lrm_jax.run.config import sibling


def get_config(arg: str = "") -> ConfigDict:
    """The quickstart's demonstrations and clone; "small" is a smoke test."""
    quickstart = sibling(__file__, "quickstart")
    full = quickstart.get_config(arg)
    names = ("env", "demonstrations", "policy", "clone", "evaluation")
    return ConfigDict({"job": "base_policy", "seed": 0, **{name: full[name] for name in names}})
