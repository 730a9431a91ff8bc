"""Closed scores beside generated answers: argmax agreement, rightness, speed, on the same frames.

    python -m lrm_jax.benchmarks.fidelity --json=FILE --model=FOLDER [--adapter=HEAD=PATH ...]

Scripted episodes of held-out colours, half of them failures, whose truth the simulator knows. The
model must have learnt to write its answers (`configs/reward_nano.py:write` teaches lrm-nano): one
that only ranks them leaves unreadable text, which the figures then show.
"""

import time

import numpy as np
from absl import flags

from lrm_jax.benchmarks import peers
from lrm_jax.evaluation.fidelity import compare
from lrm_jax.jobs import simulated
from lrm_jax.jobs.collect import collection
from lrm_jax.jobs.door import adapter_folders
from lrm_jax.jobs.fidelity import answers
from lrm_jax.jobs.open_loop import INTERVAL, identity, truth
from lrm_jax.jobs.settings import CollectSettings, EnvSettings
from lrm_jax.labels import time_map
from lrm_jax.rewards.model import load_reward_model
from lrm_jax.run.cli import reject_arguments, run_app
from lrm_jax.run.progress import note

_JSON = flags.DEFINE_string("json", None, "File for the figures.", required=True)
_MODEL = flags.DEFINE_string("model", "lrm-nano", "lrm-nano, or a folder.")
_ADAPTER = flags.DEFINE_multi_string("adapter", [], "HEAD=PATH of a PEFT adapter.")
_EPISODES = flags.DEFINE_integer("episodes", 64, "Episodes to judge.", lower_bound=2)
_STRIDE = flags.DEFINE_integer("stride", 8, "Control steps between judged frames.", lower_bound=1)
_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 24, "Tokens of an answer.", lower_bound=1)
_SCAFFOLD = flags.DEFINE_bool("scaffold", True, "Start behind the head's scaffold.")
_SEED = flags.DEFINE_integer("seed", 300, "Seed of the episodes.")

MODES = {"success": 0.5, "wrong_cube": 0.1, "wrong_plate": 0.1, "drop": 0.1, "miss": 0.1,
         "stall": 0.1}  # fmt: skip


def main(argv: list[str]) -> None:
    """Measures and writes the figures."""
    reject_arguments(argv)
    model = load_reward_model(_MODEL.value, adapter_folders(_ADAPTER.value), calibrated=False)
    env = EnvSettings(settings={"combos": "held_out"}, size=64)
    asked = CollectSettings(
        episodes=_EPISODES.value, modes=MODES, stride=_STRIDE.value, batch=_EPISODES.value,
        seed=_SEED.value,
    )  # fmt: skip
    made = env.make()
    episodes = list(
        simulated.episodes(simulated.collect(made, collection(env, asked)), made, asked.stride)
    )
    scale = time_map(episodes)
    known = [truth(e, scale) for e in episodes]
    frames, tasks = np.stack([e.frames for e in episodes]), [e.task for e in episodes]
    interval = max(1, INTERVAL * 2 // _STRIDE.value)
    spent = {}

    def timed(name, run):
        run()  # compiles
        before = time.perf_counter()
        result = run()
        spent[name] = time.perf_counter() - before
        note(f"{name}: {spent[name]:.1f} s")
        return result

    closed = timed("closed", lambda: model.score(frames, tasks, interval=interval))
    said = timed(
        "generated",
        lambda: model.generate(
            frames, tasks, interval=interval, max_new_tokens=_NEW_TOKENS.value,
            scaffold=_SCAFFOLD.value,
        ),
    )  # fmt: skip
    both = answers(
        model.heads, closed, said, np.stack([t for t, _ in known]), np.stack([d for _, d in known]),
        interval,
    )  # fmt: skip
    values = {head.name: head.values for head in model.heads}
    examples = {
        name: [str(t) for t in texts[-1, -1] if t is not None] for name, texts in said.texts.items()
    }
    figures = {
        "benchmark": "fidelity",
        "model": identity(model),
        "episodes": len(episodes),
        "failures": sum(not e.success for e in episodes),
        "frames": int(frames.shape[0] * frames.shape[1]),
        "scaffold": _SCAFFOLD.value,
        "max_new_tokens": _NEW_TOKENS.value,
        "heads": {n: compare(a, values[n]) for n, a in both.items()},
        "unreadable_texts": said.unreadable,
        "texts": said.answers,
        "examples": examples,
        "seconds": spent,
        "generated_over_closed_seconds": spent["generated"] / spent["closed"],
        **peers.device_facts(),
    }
    peers.write(_JSON.value, figures)


if __name__ == "__main__":
    run_app(main)
