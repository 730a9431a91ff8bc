"""Writes a file of heads with the released prompts:
`python -m lrm_jax.jobs.convert_heads --out=lrm_heads.json CHECKOUT`.

CHECKOUT is a clone of the released LRM code (third_party/README.md); it is read, not executed. Use
the file with `--heads_file=lrm_heads.json`, or `load_reward_model(..., heads="lrm_heads.json")`.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from lrm_jax.jobs import door
from lrm_jax.run import cli
from lrm_jax.run.errors import UserError


def main(argv: list[str]) -> None:
    """Converts one checkout."""
    from lrm_jax.rewards import released
    from lrm_jax.rewards.heads import write_heads

    if len(argv) != 2:
        raise UserError("give one folder: a checkout of the released LRM code")
    values, checkout = flags.FLAGS, Path(argv[1])
    heads = released.released_heads(
        checkout, goal=values.goal, initial=values.initial,
        functions=door.named(values.function, "function", "progress=compute_reward"),
    )  # fmt: skip
    judges = released.released_judges(checkout) if values.judges else {}
    write_heads(values.out, heads, {"judges": judges} if judges else None)
    print(f"{values.out}: {', '.join((*(h.name for h in heads), *judges))}")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "The file to write.", required=True)
    flags.DEFINE_bool("goal", False, "The progress prompt shows a picture of the finished task.")
    flags.DEFINE_bool("initial", True, "The progress prompt shows the episode's first picture.")
    flags.DEFINE_bool("judges", True, "Also the prompts of the other judges.")
    flags.DEFINE_multi_string(
        "function", [], "HEAD=NAME, the function that builds a head's prompt; may repeat."
    )
    cli.run_app(main)
