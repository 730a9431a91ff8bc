"""From scripted demonstrations to a better policy on two CPU cores.

    python -m lrm_jax.train --config=configs/quickstart.py

The argument "small" runs the same stages with a few episodes and iterations (a smoke test).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(arg: str = "") -> ConfigDict:
    """The quickstart, or with "small" a smoke test of it."""
    small = arg == "small"
    return ConfigDict(
        {
            "job": "quickstart",
            "arms": ("vlm",),
            "seeds": (0,),
            "keep": 0.001,  # else the clone is handed over
            "mesh": "",  # "data=2": two devices, also of a CPU
            # Every (cube, plate) colour pair of these scenes is held out of lrm-nano's training.
            "env": {"name": "PutOnPlate", "settings": {"combos": "held_out"}, "size": 64},
            "demonstrations": {
                "episodes": 8 if small else 192, "modes": {"success": 1.0}, "stride": 2,
                "batch": 8 if small else 64, "seed": 500,
            },
            # A tool that never turns gets no noise: a tiny std would own the gradient. Nor does
            # trembling within a chunk: it moves the tool nowhere, and is noise to the gradient.
            "policy": {"chunk": 8, "rho": 0.0, "explored": (0, 1, 2), "cosines": 2},
            # Stopped when it succeeds in about half of its trials: who imitates many episodes sees
            # well before it acts well, and acting is what refinement mends. Trained out on fewer it
            # fails as often and gains half as much.
            "clone": {
                "epochs": 1 if small else 40, "batch": 128, "lr": 4e-3, "ema": 0.99,
                "until": 0.45, "trial_episodes": 8 if small else 128,
                "trial_every": 1 if small else 2,
                "std_low": 0.12, "std_high": 0.12,
            },
            "reward": {"model": "lrm-nano", "signal": "progress+completion", "transform": "delta"},
            "refine": {
                "iterations": 2 if small else 30,
                "num_envs": 8 if small else 128,
                "num_chunks": 10,
                "critic_warmup": 0 if small else 2,
                "ppo": {
                    "natural": 1, "target_kl": 0.03, "unexplained": True, "clip": 0.2,
                    "entropy": 0.0, "minibatches": 4, "epochs": 6, "value_lr": 1e-3, "decay": 0.9,
                    "value_clip": placeholder(float),  # off
                },
            },
            "evaluation": {
                "episodes": 8 if small else 512, "seed": 10_000, "batch": 8 if small else 128,
            },
        }
    )  # fmt: skip
