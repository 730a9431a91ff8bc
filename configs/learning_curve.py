"""How lrm-nano's training on six tasks gains from more episodes, at the same number of steps.

    python -m lrm_jax.train --config=configs/learning_curve.py

The first phase of `configs/reward_nano.py:suite`, cut short, with 62, 248 and 992 episodes of each
task, judged on 48 held-out episodes of each. The argument "small" is a smoke test.
"""

from ml_collections import ConfigDict

from lrm_jax.run.config import sibling


def get_config(arg: str = "") -> ConfigDict:
    """The curve, or with "small" a smoke test of it."""
    if arg not in ("", "small"):
        raise ValueError(f"argument {arg!r}: choose small")
    small = arg == "small"
    reward = sibling(__file__, "reward_nano").get_config("suite,small" if small else "suite")
    if small:
        reward.more, reward.more_held_out = reward.more[:1], reward.more_held_out[:1]
    else:
        phase = reward.training.phases[0]
        reward.training.phases = ({**phase, "name": "curve", "steps": 300},)
        for evaluate in (reward.evaluate, *(t["collect"] for t in reward.more_held_out)):
            evaluate["episodes"] = evaluate["batch"] = 48
    reward.unseen = ()
    reward.stage = "model"
    mesh, reward.mesh = reward.mesh, ""
    return ConfigDict(
        {
            "job": "learning_curve", "mesh": mesh, "reward": reward,
            "sizes": (3, 6) if small else (62, 248, 992),
        }
    )  # fmt: skip
