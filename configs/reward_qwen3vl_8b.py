"""The paper's adapters: rank 64, alpha 128 on q, k, v and o of a frozen Qwen3-VL-8B, one a head.

    python -m lrm_jax.train --config=configs/reward_qwen3vl_8b.py --config.model=FOLDER \
        --config.mesh=fsdp=-1

Batch 128, one epoch, bfloat16 base (arXiv 2603.16065). Its learning rate is not published: ours. It
learns from simulated episodes at 256 x 256 pixels, or from data sets on disk: one, or a mixture

    ... --config.data.source.path=FOLDER --config.data.source.fps=5
    ... --config.data.mixture=configs/data/lrm24.py --config.data.root=FOLDER

"small" is a smoke test of the same stages for a small checkpoint. Other objectives:
`training.objective` (sft, expectation, dpo), an adapter with a vision tower of its own (the paper's
progress head): `training.train_vision`, all heads in one run: `training.together`. To end with the
parameters of the best validation: `training.best={head}/loss`, `training.final=best`.

    python -m lrm_jax.train --config=configs/reward_qwen3vl_8b.py:dpo --config.model=FOLDER \
        --config.training.start=runs/reward_qwen3vl_8b/stages/adapter_{head}

goes on with the contrastive adapter of that run, on hard pairs; "dpo,small" is its smoke test.
"""

from ml_collections import ConfigDict

from lrm_jax.run.config import sibling


def get_config(arg: str = "") -> ConfigDict:
    """The paper's setting; "dpo" to go on from it; with "small" a few episodes and steps."""
    words = set(filter(None, arg.split(",")))
    if unknown := words - {"dpo", "small"}:
        raise ValueError(f"argument {sorted(unknown)[0]!r}: choose dpo, small, or dpo,small")
    small = "small" in words
    nano = sibling(__file__, "reward_nano").get_config("small" if small else "")
    nano.env.size = nano.held_out.size = 64 if small else 256
    config = ConfigDict(
        {
            "job": "adapters",
            "model": "",
            "heads": (),
            "dtype": "float32" if small else "bfloat16",
            "mesh": "",
            "env": nano.env,
            "collect": nano.collect,
            # Nothing named: simulated episodes. episodes=0 takes every one once.
            "data": {
                "mixture": "", "root": "", "episodes": 0, "frames": 33, "absent": "error",
                "source": {"name": "data", "path": "", "format": "", "split": "train", "camera": "",
                           "sentence": "", "task": "", "success": "", "fps": 0.0,
                           "demonstrations": True, "trim_end": 0.0, "flip": False},
                "limit": {"count": 10, "share": 0.01},
                "reading": {"threads": 4, "ahead": 16},
                "seed": 0,
                # Decoded while training draws them, not stored before: needs training.steps.
                "stream": False, "per_episode": 8,
            },
            # Never trained on; asked about while the adapters learn.
            "validation_episodes": 2 if small else 128,
            "held_out": nano.held_out,
            "evaluate": nano.evaluate,
            "training": {
                "method": "lora",
                "objective": "sft",
                "train_vision": False,
                "together": False,
                "start": "",
                "rank": 4 if small else 64,
                "alpha": 8.0 if small else 128.0,
                "targets": ("q_proj", "k_proj", "v_proj", "o_proj"),
                "rows": 8 if small else 128,
                "accumulate": 2 if small else 1,
                "epochs": 1,
                "steps": 3 if small else 0,
                "remat": "full",
                "optimiser": {"learning_rate": 2e-4, "warmup_steps": 1 if small else 100,
                              "weight_decay": 0.01, "beta2": 0.999},
                "examples": {"max_offset": 0},
                "checkpoint_every": 2 if small else 100,
                "evaluate_every": 2 if small else 100,
                "best": "",
                "final": "last",
            },
        }
    )  # fmt: skip
    if "dpo" in words:
        # Frames up to 4 apart, whatever their progress differs by; the paper's beta is not known.
        config.heads = ("contrastive",)
        training = config.training
        training.update({"objective": "dpo", "beta": 0.1, "label_smoothing": 0.0})
        training.optimiser.learning_rate = 1e-3 if small else 2e-5
        training.examples.update({"hard_share": 1.0, "hard_offset": 4, "hard_gap": 0.0})
    return config
