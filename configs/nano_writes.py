"""Teach lrm-nano to write its answers, so that they can be generated and read as well as scored.

    python -m lrm_jax.train --config=configs/nano_writes.py
    python -m lrm_jax.benchmarks.fidelity --json=FILE \
        --adapter=progress=runs/nano_writes/stages/adapter_progress \
        --adapter=completion=runs/nano_writes/stages/adapter_completion \
        --adapter=contrastive=runs/nano_writes/stages/adapter_contrastive

One adapter a head; the base stays as it is. "small" is a smoke test.
"""

from ml_collections import ConfigDict

from lrm_jax.run.config import sibling


def get_config(arg: str = "") -> ConfigDict:
    """A quarter of the episodes of lrm-nano's own training, 250 steps a head."""
    small = arg == "small"
    nano = sibling(__file__, "reward_nano").get_config("small" if small else "")
    collect = nano.collect
    collect.episodes = 16 if small else 768
    return ConfigDict(
        {
            "job": "adapters",
            "model": "lrm-nano",
            "dtype": "float32",
            "env": nano.env,
            "collect": collect,
            "held_out": nano.held_out,
            "evaluate": nano.evaluate,
            "training": {
                "rank": 16, "alpha": 32.0,
                "targets": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
                            "down_proj"),
                "rows": 8 if small else 64,
                "steps": 3 if small else 250,
                "remat": "none",
                "optimiser": {"learning_rate": 2e-3, "warmup_steps": 1 if small else 20,
                              "weight_decay": 0.0},
                "clips": {"wrong_sentences": 2, "rewinds": 0.2},
                "examples": {"max_offset": 12},
                "checkpoint_every": 2 if small else 50,
            },
        }
    )  # fmt: skip
