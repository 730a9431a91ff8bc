"""Scores videos: `python -m lrm_jax.score --task="put the cube on the plate" --out=DIR VIDEO`.

An input is a video file, a folder of images, or a `.npy`/`.npz` array uint8 [T, H, W, 3].
"""

from __future__ import annotations

from absl import flags

from lrm_jax.jobs import door
from lrm_jax.run import cli
from lrm_jax.run.errors import UserError

_TASK = flags.DEFINE_string("task", None, "The sentence that the robot was told.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder for the results.", required=True)
_MODEL = flags.DEFINE_string("model", "lrm-nano", "A reward model's name or folder.")
_ADAPTER = flags.DEFINE_multi_string("adapter", [], "HEAD=FOLDER of a LoRA adapter; may repeat.")
_HEADS = flags.DEFINE_list(
    "heads", None, "Which to ask of progress, completion, contrastive (default: all)."
)
_HEADS_FILE = flags.DEFINE_string("heads_file", None, door.HEADS_FILE)
_GOAL = flags.DEFINE_string(
    "goal", None, "Picture of the finished task, for heads that show <image:goal>."
)
_INTERVAL = flags.DEFINE_integer(
    "interval", 1, "Frames between the two that contrastive compares.", lower_bound=1
)
_DECODE = flags.DEFINE_enum(
    "decode", "closed", ["closed", "generate"],
    "closed: the answers' probabilities from one forward. generate: the model writes, and the text "
    "is read.",
)  # fmt: skip
_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", None, "With --decode=generate: tokens of an answer (default: 512, 32).", 1
)
_SCAFFOLD = flags.DEFINE_bool(
    "scaffold", False, "With --decode=generate: the model goes on behind the answer's JSON key."
)
_MAX_PIXELS = flags.DEFINE_integer(
    "max_pixels", None, "Make larger frames smaller (default: as the checkpoint says).", 1
)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the model.")
_IDENTITY = flags.DEFINE_bool(
    "allow_identity_adapter", False, "Accept an adapter that changes nothing."
)
_JUDGE = flags.DEFINE_string(
    "judge",
    None,
    "A published judge in place of the three heads: topreward, roboreward, robometer.",
)
_PROMPTS = flags.DEFINE_string(
    "prompts", None, "With --judge: file with its wording (see third_party/README.md)."
)
# What says nothing to a judge, and would be ignored.
_ONLY_HEADS = ("heads", "heads_file", "goal", "interval", "decode", "max_new_tokens", "scaffold",
               "max_pixels", "allow_identity_adapter")  # fmt: skip


def main(argv: list[str]) -> None:
    """Scores every input on the command line."""
    if len(argv) < 2:
        raise UserError("there is nothing to score: give a video, a folder of images or an array")
    if _JUDGE.value is not None:
        return _judge(argv[1:])
    if _PROMPTS.value is not None:
        raise UserError("--prompts is a judge's wording: give --judge too, or --heads_file")
    adapters = door.adapter_folders(_ADAPTER.value)
    from lrm_jax.jobs import score
    from lrm_jax.rewards.model import load_reward_model

    model = load_reward_model(
        _MODEL.value, adapters, _DTYPE.value, allow_identity_adapter=_IDENTITY.value,
        heads=_HEADS_FILE.value, max_pixels=_MAX_PIXELS.value,
    )  # fmt: skip
    done = score.score_inputs(
        model, argv[1:], _TASK.value, _OUT.value, heads=_HEADS.value, interval=_INTERVAL.value,
        goal=_GOAL.value, decode=_DECODE.value, max_new_tokens=_NEW_TOKENS.value,
        scaffold=_SCAFFOLD.value,
    )  # fmt: skip
    if _DECODE.value == "generate":
        print(
            f"{done['unreadable']} of {done['answers']} generated answers could not be read; they "
            "are invalid, not scores"
        )
    _say_done(done)


def _judge(inputs: list[str]) -> None:
    for name in _ONLY_HEADS:
        if flags.FLAGS[name].present:
            raise UserError(f"--{name} belongs to the three heads and changes nothing with --judge")
    if len(_ADAPTER.value) > 1:
        raise UserError("--adapter: a judge takes one, a PEFT folder")
    from lrm_jax.jobs import judge as job
    from lrm_jax.rewards.judges import load_judge

    judge = load_judge(
        _JUDGE.value, _MODEL.value, adapter=(_ADAPTER.value or [None])[0], prompts=_PROMPTS.value,
        dtype=_DTYPE.value,
    )  # fmt: skip
    done = job.judge_inputs(judge, _MODEL.value, inputs, _TASK.value, _OUT.value)
    _say_done(done)


def _say_done(done: dict) -> None:
    print(
        f"{done['frames']} frames of {done['inputs']} inputs in {done['seconds']:.1f} s: "
        f"{done['frames_per_second']:.1f} frames/s. Results in {_OUT.value}"
    )


if __name__ == "__main__":
    cli.run_app(main)
