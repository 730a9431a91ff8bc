"""Scripted demonstrations of PutOnPlate, right and wrong ones.

python -m lrm_jax.train --config=configs/collect.py --config.collect.episodes=512

With --config.write=array_record (or tfrecord) they are also a data set of tensorflow-datasets, with
--config.write=lerobot one of LeRobot v3, under stages/dataset/lrm_sim.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """256 episodes in all modes; "small" collects 8."""
    small = arg == "small"
    modes = {
        "success": 0.5, "retry": 0.1, "wrong_cube": 0.07, "wrong_plate": 0.07, "drop": 0.07,
        "miss": 0.06, "stall": 0.07, "near_miss": 0.06,
    }  # fmt: skip
    return ConfigDict(
        {
            "job": "collect",
            "write": "",
            "validation": 0.0,
            "env": {"name": "PutOnPlate", "settings": {"combos": "all"}, "size": 64},
            "collect": {
                "episodes": 8 if small else 256, "modes": modes, "stride": 2,
                "batch": 8 if small else 64, "seed": 0,
            },
        }
    )  # fmt: skip
