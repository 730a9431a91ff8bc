"""Refinement as the paper does it (arXiv 2603.16065 and its released configurations).

    python -m lrm_jax.train --config=configs/refine_paper.py
    python -m lrm_jax.train --config=configs/refine_paper.py:small_lr   # its learning rates as well

12 environments, chunks of 5 control steps, 16 of them an episode; the progress head asked every 10
control steps and its answer held, a chunk's reward the sum over its steps, unscaled; PPO of 2
epochs in 8 minibatches of 24 decisions, clip 0.10, dual clip 3, Huber 10, value clip 0.2, entropy
0.0005, gamma 0.99, lambda 0.95, bootstrapping at time limits, gradients of actor and critic clipped
together at 0.3; exploration between 0.08 and 0.16; no warm-up of the critic.

The paper's learning rates (2.5e-6 for the policy, 5e-5 for the critic) belong to a policy of 3
billion parameters; ours has half a million, so by default it learns with configs/refine.py's. Ours
besides: episodes do not end on the simulator's success, which the paper's training reads, and the
first query of "contrastive" compares with the first frame.
"""

from ml_collections import ConfigDict

from lrm_jax.run.config import sibling


def get_config(arg: str = "") -> ConfigDict:
    """The paper's mode; "small_lr" with its learning rates, "small" a smoke test."""
    if arg not in ("", "small", "small_lr"):
        raise ValueError(f"argument {arg!r}: choose small or small_lr")
    small = arg == "small"
    config = sibling(__file__, "quickstart").get_config("small" if small else "")
    config.job, config.keep = "refine", 1.0
    config.policy.chunk = 5
    del config.policy.cosines
    config.policy.min_std, config.policy.init_std, config.policy.max_std = 0.08, 0.12, 0.16
    config.reward = ConfigDict(
        {
            "model": "lrm-nano", "signal": "progress", "transform": "hold", "interval": 2,
            "per_step": True,
        }
    )  # fmt: skip
    config.refine = ConfigDict(
        {
            "iterations": 2 if small else 30,
            "num_envs": 12,
            "num_chunks": 16,
            "critic_warmup": 0,
            "normalise_rewards": False,
            "ppo": {
                "epochs": 2, "minibatches": 8, "clip": 0.10, "dual_clip": 3.0, "huber": 10.0,
                "value_clip": 0.2, "value_weight": 1.0, "entropy": 5e-4, "discount": 0.99,
                "decay": 0.95, "bootstrap_truncated": True, "normalise_advantages": True,
                "lr": 2.5e-6 if arg == "small_lr" else 3e-5,
                "value_lr": 5e-5 if arg == "small_lr" else 1e-3,
                "beta1": 0.9, "beta2": 0.95, "eps": 1e-5, "grad_clip": 0.3,
                "joint_grad_clip": True, "kl_base": 0.0, "train_encoder": False,
            },
        }
    )  # fmt: skip
    return config
