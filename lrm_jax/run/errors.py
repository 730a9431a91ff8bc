"""The one exception that means "the user's input is wrong", as opposed to "the program is
wrong"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the user's input or configuration.

    The message is one line: what is wrong and how to mend it. The doors print it to stderr without
    a traceback and exit with status 2 (`lrm_jax.run.cli.run_app`).
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


def one_line(text: object) -> str:
    """`text` with every run of white space, line ends included, made a single space."""
    return " ".join(str(text).split())


def did_you_mean(name: str, valid: Iterable[str], limit: int = 12) -> str:
    """A clause that leads from a wrong `name` to the `valid` ones.

    Returns "did you mean 'lr'?" where something is close, else "valid: a, b, c" (at most `limit`).
    """
    valid = [str(v) for v in valid]
    close = difflib.get_close_matches(str(name), valid, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    if not valid:
        return "there is nothing to choose from here"
    shown = ", ".join(sorted(valid)[:limit])
    return f"valid: {shown}" + (", ..." if len(valid) > limit else "")
