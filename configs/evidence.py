"""Whether refinement by a reward model helps: tasks x reward arms x seeds x paired episodes.

    python -m lrm_jax.train --config=configs/evidence.py            # everything, one report
    python -m lrm_jax.train --config=configs/evidence.py:core       # ours, oracle, three controls
    python -m lrm_jax.train --config=configs/evidence.py:pilot      # core, two seeds, 256 episodes
    python -m lrm_jax.train --config=configs/evidence.py:StackCubes+LiftPeg,vlm+oracle,0+1  # a part
    python -m lrm_jax.train --config=configs/evidence.py:seeds      # vlm alone, seeds 0 to 4
    python -m lrm_jax.train --config=configs/evidence.py:controls   # seed 0: controls and oracle

Four tasks on held-out colours with one reward model, which was not trained on PlaceInBowl. A part
is tasks, arms and seeds of the whole table. The last two are tables of job "refine", of the
quickstart's task and model. "small" is a smoke test of the first. What the whole table, "core", a
part or (of the same seeds) "pilot" has computed in a work folder, the others of these take over;
parts that were computed side by side are put together by moving their stages into one.
"""

from ml_collections import ConfigDict

from lrm_jax.run.config import sibling

OURS = {"model": "lrm-nano-suite", "signal": "progress+completion", "transform": "delta"}
TASKS = ("PutOnPlate", "StackCubes", "LiftPeg", "PlaceInBowl")
MODEL_CONTROLS = ("wrong_sentence", "shuffled", "untrained")
OTHERS = ("oracle", "constant", "time_ramp", "oracle_sparse")
CORE = ("vlm", "oracle", "constant", "wrong_sentence", "time_ramp")
STEPS = 80  # of an episode, of every task


def get_config(arg: str = "") -> ConfigDict:
    """The whole table, "core", "pilot", "small", "TASKS,ARMS,SEEDS", "seeds" or "controls"."""
    if "," in arg:
        return part(arg)
    if arg not in ("", "core", "pilot", "small", "seeds", "controls"):
        raise ValueError(
            f"argument {arg!r}: choose core, pilot, small, seeds, controls or TASKS,ARMS,SEEDS"
        )
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
    tasks = {}
    for name in TASKS:
        tasks[name] = {
            **config.env, "name": name,
            "settings": {**config.env.settings, "episode_length": STEPS},
        }  # fmt: skip
    # Within one epoch at the others' rate a clone of LiftPeg goes from a quarter of its trials to
    # nearly all, and nothing is left to refine.
    tasks["LiftPeg"]["clone"] = {**config.clone, "lr": 1e-3, "trial_every": 1}
    if small:
        tasks = {name: tasks[name] for name in ("PutOnPlate", "LiftPeg")}
    arms = {"vlm": {"reward": {"arm": "vlm", **OURS}}}
    arms |= {name: {"reward": {"arm": name, **OURS}} for name in MODEL_CONTROLS}
    arms |= {name: {"reward": {"arm": name}} for name in OTHERS}
    episodes = {"": 1024, "core": 1024, "pilot": 256, "small": 8}[arg]
    if not small:
        # One head at a time; and the paper's mode: its transform and its PPO, with as many
        # environments as the others so that all have the same number of control steps.
        for head in ("progress", "completion", "contrastive", "tri"):
            arms[head] = {"reward": {"arm": "vlm", **OURS, "signal": head}}
        paper = sibling(__file__, "refine_paper").get_config("")
        refine = paper.refine
        for shared in ("iterations", "num_envs", "num_chunks"):
            refine[shared] = config.refine[shared]
        arms["paper"] = {
            "reward": {"arm": "vlm", "model": OURS["model"], "signal": "progress",
                       "transform": "hold", "interval": 1, "per_step": True},
            "refine": refine,
        }  # fmt: skip
    if arg in ("core", "pilot"):
        arms = {name: arms[name] for name in CORE}
    return ConfigDict(
        {
            "job": "evidence",
            "tasks": tasks,
            "arms": arms,
            "seeds": (0, 1) if arg in ("pilot", "small") else (0, 1, 2, 3, 4),
            "keep": config.keep,
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


def part(arg: str) -> ConfigDict:
    """Some tasks, arms and seeds of the whole table: "StackCubes+LiftPeg,vlm+oracle,0+1"."""
    config = get_config("")
    pieces = [piece.split("+") for piece in arg.split(",")]
    if len(pieces) != 3:
        raise ValueError(f"argument {arg!r}: give TASKS,ARMS,SEEDS, with + between several")
    for kind, names in zip(("tasks", "arms"), pieces, strict=False):
        known = config[kind].to_dict()
        for name in names:
            if name not in known:
                raise ValueError(f"argument {arg!r}: {kind} are {', '.join(known)}; not {name!r}")
        config[kind] = {name: known[name] for name in names}
    if not all(seed.isdecimal() for seed in pieces[2]):
        raise ValueError(f"argument {arg!r}: seeds are whole numbers from 0 up")
    config.seeds = tuple(int(seed) for seed in pieces[2])
    if "oracle" not in config.arms:
        config.oracle = ""
    return config
