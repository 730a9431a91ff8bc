"""The quickstart's refinement under every reward arm or for several seeds, as one table.

python -m lrm_jax.train --config=configs/evidence.py:seeds      # vlm, seeds 0 to 4
python -m lrm_jax.train --config=configs/evidence.py:controls   # seed 0: controls and oracle
"""

from ml_collections import ConfigDict

from lrm_jax.run.config import sibling


def get_config(arg: str = "seeds") -> ConfigDict:
    """Which rows: "seeds", "controls" or "small" (a smoke test)."""
    quickstart = sibling(__file__, "quickstart")
    config = quickstart.get_config("small" if arg == "small" else "")
    config.job = "refine"
    if arg == "seeds":
        config.seeds = (0, 1, 2, 3, 4)
    elif arg in ("controls", "small"):
        config.arms = ("oracle", "constant", "time_ramp", "wrong_sentence")
    else:
        raise ValueError(f"argument {arg!r}: choose seeds, controls or small")
    return config
