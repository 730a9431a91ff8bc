"""Whether refinement by a reward model helps: tasks x reward arms x seeds x paired episodes.

    python -m lrm_jax.train --config=configs/evidence.py            # everything, one report
    python -m lrm_jax.train --config=configs/evidence.py:core   # ours, paper, oracle, controls
    python -m lrm_jax.train --config=configs/evidence.py:pilot      # all, two seeds, 256 episodes
    python -m lrm_jax.train --config=configs/evidence.py:seeds      # vlm alone, seeds 0 to 4
    python -m lrm_jax.train --config=configs/evidence.py:controls   # seed 0: controls and oracle

The last two are tables of job "refine". "small" is a smoke test of the first.
"""

from ml_collections import ConfigDict

from lrm_jax.run.config import sibling

OURS = {"model": "lrm-nano", "signal": "progress+completion", "transform": "delta"}
MODEL_CONTROLS = ("wrong_sentence", "shuffled", "untrained")
OTHERS = ("constant", "time_ramp", "oracle", "oracle_sparse")


def get_config(arg: str = "") -> ConfigDict:
    """The whole table, "core", "pilot", "small", or the older "seeds" and "controls"."""
    if arg not in ("", "core", "pilot", "small", "seeds", "controls"):
        raise ValueError(f"argument {arg!r}: choose core, pilot, small, seeds or controls")
    small = arg == "small"
    config = sibling(__file__, "quickstart").get_config("small" if small else "")
    if arg in ("seeds", "controls"):
        config.job = "refine"
        if arg == "seeds":
            config.seeds = (0, 1, 2, 3, 4)
        else:
            config.arms = (
                "oracle", "oracle_sparse", "constant", "time_ramp", *MODEL_CONTROLS
            )  # fmt: skip
        return config
    tasks = {"PutOnPlate": config.env}
    arms = {"vlm": {"reward": {"arm": "vlm", **OURS}}}
    arms |= {name: {"reward": {"arm": name, **OURS}} for name in MODEL_CONTROLS}
    arms |= {name: {"reward": {"arm": name}} for name in OTHERS}
    episodes = {"": 1024, "core": 1024, "pilot": 256, "small": 8}[arg]
    if not small:
        # One head at a time; and the paper's mode: its transform and its PPO, with as many
        # environments as the others so that all have the same number of control steps.
        for head in () if arg == "core" else ("progress", "completion", "contrastive", "tri"):
            arms[head] = {"reward": {"arm": "vlm", **OURS, "signal": head}}
        paper = sibling(__file__, "refine_paper").get_config("")
        refine = paper.refine
        refine.num_envs, refine.num_chunks = config.refine.num_envs, config.refine.num_chunks
        arms["paper"] = {
            "reward": {"arm": "vlm", "model": "lrm-nano", "signal": "progress", "transform": "hold",
                       "interval": 1, "per_step": True},
            "refine": refine,
        }  # fmt: skip
    return ConfigDict(
        {
            "job": "evidence",
            "tasks": tasks,
            "arms": arms,
            "seeds": (0, 1) if arg in ("pilot", "small") else (0, 1, 2, 3, 4),
            "oracle": "oracle",
            "mesh": "",
            # All arms judge the same frames. Signals of several heads ask more about each: the
            # report's budget table says how much.
            "equal_budget": "frames",
            "demonstrations": config.demonstrations,
            "policy": config.policy,
            "clone": config.clone,
            "refine": config.refine,
            "evaluation": {**config.evaluation, "episodes": episodes},
        }
    )
