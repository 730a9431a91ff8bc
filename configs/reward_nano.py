"""lrm-nano: a small Qwen3-VL from scratch on simulated episodes, judged on held-out colours.

    python -m lrm_jax.train --config=configs/reward_nano.py
    python -m lrm_jax.train --config=configs/reward_nano.py:compare

The second command goes on from the first one's model, mostly with pairs of frames: single frames
are judged well long before comparisons are. Its model is the one that the package ships.

    python -m lrm_jax.train --config=configs/reward_nano.py:suite

goes on from the second one's model with six tasks, three wordings each, and a camera and a light
that differ from episode to episode. Colours are held out of every task, two wordings of each, and
PlaceInBowl as a whole. PressButtons is left out: which of two buttons was pressed first is not to
be seen in a frame.

    python -m lrm_jax.train --config=configs/reward_nano.py:more

goes on from the third one's model with the same episodes: it asks where the thing of each colour is
besides, since pairs of colours that were never trained on were judged worse than others, and shows
blank pictures, which the third one's model took for finished tasks.

    python -m lrm_jax.train --config=configs/reward_nano.py:balance

goes on from the fourth one's model with the same episodes: every frame is drawn as often as any
other, not every episode (the longest task was judged worst), and true sentences outweigh wrong ones
as they do where episodes are judged (the fourth one's model doubts successes it has not seen). Its
weights are the mean of those that it began and ended with: the model `lrm-nano-suite` that ships.

The argument "small" is a smoke test of the same stages: `--config=configs/reward_nano.py:small`, or
"suite,small", "more,small" or "balance,small".
"""

from ml_collections import ConfigDict

from lrm_jax.reward_training.scene_heads import named_heads

TRAINING_MODES = {
    "success": 0.46, "retry": 0.10, "wrong_cube": 0.07, "wrong_plate": 0.07, "drop": 0.08,
    "miss": 0.06, "stall": 0.09, "near_miss": 0.07,
}  # fmt: skip
# Half successes, half failures of every kind.
EVALUATION_MODES = {
    "success": 0.5, "wrong_cube": 0.10, "wrong_plate": 0.08, "drop": 0.10, "miss": 0.08,
    "stall": 0.08, "near_miss": 0.06,
}  # fmt: skip
# What a task's demonstrator does not know (see `modes` of the environments) is left out.
SUITE = {
    "PutOnPlate": (),
    "StackCubes": ("wrong_plate",),
    "PushToRegion": ("miss", "retry"),
    "OpenDrawer": ("wrong_plate",),
    "LiftPeg": ("wrong_plate",),
    "PutInDrawerAndClose": ("wrong_plate",),
}
UNSEEN = {"PlaceInBowl": ("wrong_plate",)}
FURTHER = ("compare", "suite", "more", "balance")
VARIATIONS = {"wordings": "train", "camera_jitter": 0.015, "lighting": 0.15}


def get_config(arg: str = "") -> ConfigDict:
    """The full run, or one of `FURTHER` to go on; "small": a few episodes and steps."""
    words = set(filter(None, arg.split(",")))
    if words - {*FURTHER, "small"} or len(words - {"small"}) > 1:
        raise ValueError(f"argument {arg!r}: choose one of {', '.join(FURTHER)}, and small")
    small = "small" in words
    steps = (4, 4, 4) if small else (800, 500, 1100)
    scene = [
        "object_x", "object_y", "plate_x", "plate_y", "gripper_x", "gripper_height",
        "gripper_to_object", "object_held",
    ]  # fmt: skip
    # What lies left and right, in which colour: finding and naming before binding words to things.
    things = [
        f"{side}_{thing}_{what}"
        for side in ("left", "right") for thing in ("cube", "plate") for what in ("x", "colour")
    ]  # fmt: skip
    names = [head.name for head in named_heads()]
    if small:  # questions are most of what there is to compile
        scene, things, names = scene[:2], things[:2], names[:2]
    see = {name: 0.3 for name in scene + things} | {"progress": 0.5, "completion": 0.5}
    # Then which thing a word means: first alone, then in the sentence.
    find = {name: 0.3 for name in [*names, *scene]} | {"progress": 0.5, "completion": 0.5}
    judge = {"progress": 1.0, "completion": 1.0, "contrastive": 1.0} | {
        name: 0.15
        for name in (
            "object_x", "plate_x", "object_held", "object_on_plate", "gripper_to_object",
            "object_to_plate",
        )
    }  # fmt: skip
    config = ConfigDict(
        {
            "job": "reward",
            "env": {"name": "PutOnPlate", "settings": {"combos": "train"}, "size": 64},
            "collect": {
                "episodes": 16 if small else 3072, "modes": TRAINING_MODES, "stride": 2,
                "batch": 16 if small else 128, "seed": 100,
            },
            "more": (),
            "held_out": {"name": "PutOnPlate", "settings": {"combos": "held_out"}, "size": 64},
            "evaluate": {
                "episodes": 16 if small else 512, "modes": EVALUATION_MODES, "stride": 2,
                "batch": 16 if small else 128, "seed": 200,
            },
            "more_held_out": (),
            "unseen": (),
            "validation_episodes": 4 if small else 128,
            "mesh": "",
            # One for each command, so that the same one again finds the model it started from.
            "stage": "model",
            "training": {
                "optimiser": {"learning_rate": 1.5e-3, "warmup_steps": 100},
                "clips": {"wrong_sentences": 2, "rewinds": 0.2},
                "examples": {"max_offset": 0},
                "phases": (
                    {"name": "see", "steps": steps[0], "rows": 48, "frames_per_row": 1,
                     "pairs_per_row": 0, "heads": see},
                    {"name": "find", "steps": steps[1], "rows": 48, "frames_per_row": 1,
                     "pairs_per_row": 0, "heads": find},
                    {"name": "judge", "steps": steps[2], "rows": 32, "frames_per_row": 2,
                     "pairs_per_row": 1, "heads": judge},
                ),
                "smoothing": 0.05,
                "checkpoint_every": 4 if small else 200,
                "seed": 0,
            },
            "bars": (
                ("direction_accuracy", 0.85), ("completion_auc", 0.90),
                ("progress_within_0.2", 0.80), ("wrong_sentence_drop", 0.3),
            ),
        }
    )  # fmt: skip
    if words & {"suite", "more", "balance"}:
        _suite(config, small)
    if words & {"more", "balance"}:
        config.stage = "model_more"
        _more(config.training, names, small)
    if "balance" in words:
        config.stage = "model_balance"
        _balance(config.training)
    if "compare" in words:
        config.stage = "model_compare"
        training = config.training
        training.start = "runs/reward_nano/stages/model"
        training.optimiser.learning_rate = 1e-3
        # A judgement compares frames 4 apart; half of these pairs are closer than 5.
        training.examples.max_offset = 12
        training.phases = (
            {"name": "compare", "steps": 1600, "rows": 24, "frames_per_row": 4, "pairs_per_row": 4,
             "kinds": {"success": 2.0, "failure": 2.0, "wrong_sentence": 1.5, "rewind": 0.5},
             "heads": {
                 "progress": 0.5, "completion": 0.5, "contrastive": 1.0, "object_held": 0.1,
                 "gripper_height": 0.1, "object_to_plate": 0.1, "object_on_plate": 0.1,
             }},
        )  # fmt: skip
    return config


def _suite(config: ConfigDict, small: bool) -> None:
    """The tasks, and one phase that judges."""

    def task(name: str, combos: str, modes: dict, episodes: int, seed: int, without) -> dict:
        known = {mode: share for mode, share in modes.items() if mode not in without}
        return {
            "env": {"name": name, "settings": {"combos": combos, **VARIATIONS}, "size": 64},
            "collect": {"episodes": episodes, "modes": known, "stride": 2,
                        "batch": 8 if small else 128, "seed": seed},
        }  # fmt: skip

    train = [
        task(name, "train", TRAINING_MODES, 8 if small else 1024, 300 + i, without)
        for i, (name, without) in enumerate(SUITE.items())
    ]
    judged = [
        task(name, "held_out", EVALUATION_MODES, 8 if small else 192, 400 + i, without)
        for i, (name, without) in enumerate(SUITE.items())
    ]
    config.env, config.collect, config.more = train[0]["env"], train[0]["collect"], train[1:]
    config.held_out, config.evaluate = judged[0]["env"], judged[0]["collect"]
    config.more_held_out = judged[1:]
    config.unseen = [
        task(name, "all", EVALUATION_MODES, 8 if small else 256, 500 + i, without)
        for i, (name, without) in enumerate(UNSEEN.items())
    ]
    config.validation_episodes = 2 if small else 32
    config.stage = "model_suite"
    training = config.training
    training.start = "lrm-nano"
    # Both save memory traffic, which costs a CPU more than the recomputation does.
    training.remat = "dots"
    config.mesh = "data=2"
    training.checkpoint_every = 4 if small else 100
    training.optimiser.learning_rate = 1e-3
    training.phases = (
        {"name": "suite", "steps": 4 if small else 1900, "rows": 16, "frames_per_row": 4,
         "pairs_per_row": 4,
         "kinds": {"success": 2.0, "failure": 2.0, "wrong_sentence": 1.5, "rewind": 0.5},
         "heads": {
             "progress": 0.7, "completion": 0.7, "contrastive": 1.0, "object_x": 0.1,
             "plate_x": 0.1, "object_y": 0.1, "object_held": 0.1, "gripper_to_object": 0.1,
             "object_to_plate": 0.1,
         }},
    )  # fmt: skip
    config.bars = (
        ("progress_mae", 0.08), ("progress_within_0.1", 0.75), ("progress_within_0.2", 0.93),
        ("direction_accuracy", 0.80), ("completion_balanced_accuracy", 0.92),
        ("completion_auc", 0.97), ("completion_false_triggers", 0.1), ("wrong_sentence_drop", 0.5),
    )  # fmt: skip


def _more(training: ConfigDict, names: list[str], small: bool) -> None:
    """The phase after the suite's."""
    training.start = "runs/reward_nano/stages/model_suite"
    training.seed = 1  # other draws from the same episodes
    training.blanks = 0.1
    training.optimiser.learning_rate = 7e-4
    training.phases = (
        {"name": "more", "steps": 4 if small else 1600, "rows": 24, "frames_per_row": 2,
         "pairs_per_row": 2,
         "kinds": {
             "success": 2.0, "failure": 1.5, "wrong_sentence": 1.5, "rewind": 0.5, "blank": 0.1,
         },
         "heads": {
             "progress": 0.7, "completion": 0.7, "contrastive": 1.0, "object_x": 0.15,
             "plate_x": 0.15, "object_held": 0.1, "object_to_plate": 0.1,
         } | {name: 0.1 for name in names}},
    )  # fmt: skip


def _balance(training: ConfigDict) -> None:
    """The phase after that one: other shares in the draw."""
    training.start = "runs/reward_nano/stages/model_more"
    training.seed, training.start_share = 2, 0.5
    phase = training.phases[0]
    training.phases = ({
        **phase, "name": "balance", "draw": "frames",
        "kinds": {
            "success": 2.5, "failure": 1.5, "wrong_sentence": 1.0, "rewind": 0.4, "blank": 0.1,
        },
    },)  # fmt: skip
