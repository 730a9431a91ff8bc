"""Checks a reward model: `python -m lrm_jax.doctor --model=lrm-nano`.

Prints a table and writes doctor.json. Exit status 0 if no check finds a fault, 1 if one does.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from lrm_jax.jobs import door
from lrm_jax.run import atomic, cli

_MODEL = flags.DEFINE_string("model", "lrm-nano", "A reward model's name or folder.")
_ADAPTER = flags.DEFINE_multi_string("adapter", [], "HEAD=FOLDER of a LoRA adapter; may repeat.")
_HEADS_FILE = flags.DEFINE_string("heads_file", None, door.HEADS_FILE)
_JSON = flags.DEFINE_string("json", "doctor.json", "File for the findings.")
_FRAMES = flags.DEFINE_string(
    "frames", None, "A video in which the task is done at the end (default: one of lrm-nano's)."
)
_TASK = flags.DEFINE_string("task", None, "What the robot was told in --frames.")
_WRONG = flags.DEFINE_string("wrong_task", None, "A sentence that was not done in --frames.")
_IDENTITY = flags.DEFINE_bool(
    "allow_identity_adapter", False, "Load an adapter that changes nothing (it is then reported)."
)


def main(argv: list[str]) -> None:
    """Runs every check."""
    cli.reject_arguments(argv)
    from lrm_jax.episodes.video import read_video
    from lrm_jax.jobs import doctor
    from lrm_jax.rewards.model import load_reward_model

    if _FRAMES.value:
        frames = read_video(_FRAMES.value).frames
        sample = doctor.need_sample(frames, _TASK.value, _WRONG.value)
    else:
        sample = doctor.read_sample()
    path = Path(_JSON.value)
    with atomic.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    models = [
        load_reward_model(
            _MODEL.value, door.adapter_folders(_ADAPTER.value), dtype,
            allow_identity_adapter=_IDENTITY.value, heads=_HEADS_FILE.value,
        )
        for dtype in ("float32", "bfloat16")
    ]  # fmt: skip
    found = doctor.examine_model(models[0], sample, models[1])
    print(doctor.table(found))
    atomic.write_json(path, doctor.as_json(found, models[0].facts))
    if not doctor.healthy(found):
        sys.exit(cli.FAILED)


if __name__ == "__main__":
    cli.run_app(main)
