"""A picture of every task: the demonstrator's first and last frame, and the sentence.

    python -m lrm_jax.jobs.contact_sheet --out=FILE.png

Episodes are played in MuJoCo's C engine and drawn by `lrm_jax.render`; the first that succeeds is
shown. With --varied, distractors, light, camera and wordings vary.
"""

import io
from pathlib import Path

import jax
import numpy as np
from absl import flags
from PIL import Image, ImageDraw

from lrm_jax import envs
from lrm_jax.envs import c_engine
from lrm_jax.render import render
from lrm_jax.run import atomic, cli
from lrm_jax.run.errors import UserError

_OUT = flags.DEFINE_string("out", None, "The PNG to write.", required=True)
_TASKS = flags.DEFINE_list("tasks", None, "Tasks to show (default: all on the table).")
_SIZE = flags.DEFINE_integer("size", 160, "Side of a frame in pixels.", lower_bound=16)
_SEED = flags.DEFINE_integer("seed", 0, "Which episodes.")
_VARIED = flags.DEFINE_bool("varied", False, "Let distractors, light, camera and wordings vary.")

VARIED = {"distractors": 3, "lighting": 0.3, "camera_jitter": 0.02, "wordings": "all"}
_TRIES, _MARGIN, _LINE = 4, 6, 14  # episodes played for one that succeeds; pixels


def draw_task(name: str, size: int, seed: int, varied: bool) -> tuple[str, np.ndarray]:
    """A task's sentence, and its first and last frame in an episode that succeeds, uint8
    [2,size,size,3].

    Raises:
      UserError: no such task, or none of the demonstrator's episodes from this seed succeeds.
    """
    settings = {"combos": "all", **(VARIED if varied else {})}
    env = envs.make(name, **settings)
    first = last = None
    keys = jax.random.split(jax.random.key(seed), _TRIES)
    for last in c_engine.play(env, keys, np.zeros(_TRIES, np.int32)):
        first = last if first is None else first
    done = np.flatnonzero(np.asarray(last.metrics["success"]) > 0.5)
    if not len(done):
        raise UserError(f"{name}: no demonstration succeeds with --seed={seed}: try another")

    @jax.jit
    def draw(state):
        model, data = env.scene(state)
        return render(model, data, env.camera, size, size)

    chosen = [jax.tree.map(lambda x: x[done[0]], state) for state in (first, last)]
    sentence = env.instructions[int(first.info["task_id"][done[0]])]
    return sentence, np.stack([np.asarray(draw(state)) for state in chosen])


def sheet(rows: list[tuple[str, str, np.ndarray]], columns: int = 2) -> Image.Image:
    """The picture of (task, sentence, frames uint8 [2,S,S,3]), ``columns`` tasks in a row."""
    size = rows[0][2].shape[1]
    wide, high = 2 * size + 3 * _MARGIN, size + 2 * _LINE + 2 * _MARGIN
    lines = -(-len(rows) // columns)
    image = Image.new("RGB", (columns * wide, lines * high), "white")
    write = ImageDraw.Draw(image)
    for i, (name, sentence, pair) in enumerate(rows):
        x, y = (i % columns) * wide + _MARGIN, (i // columns) * high + _MARGIN
        write.text((x, y), name, fill=(0, 0, 0))
        write.text((x, y + _LINE), sentence, fill=(90, 90, 90))
        for k, frame in enumerate(pair):
            image.paste(Image.fromarray(frame), (x + k * (size + _MARGIN), y + 2 * _LINE))
    return image


def main(argv: list[str]) -> None:
    """Writes the sheet."""
    cli.reject_arguments(argv)
    names = _TASKS.value or [n for n in envs.names() if not n.startswith("playground:")]
    rows = [(n, *draw_task(n, _SIZE.value, _SEED.value, _VARIED.value)) for n in names]
    stored = io.BytesIO()
    sheet(rows).save(stored, "PNG", optimize=True)
    out = Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(out, stored.getvalue())
    print(f"{out}: {len(rows)} tasks")


if __name__ == "__main__":
    cli.run_app(main)
