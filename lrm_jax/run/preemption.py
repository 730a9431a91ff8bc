"""SIGTERM: what a platform sends before it takes a machine away, and how a run ends because of it.

A door that gets it stops at once with exit status `STATUS`, unless it is in a loop that asked to
finish its step and to save first (`finish_first`). Either way the same command resumes.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

STATUS = 128 + signal.SIGTERM  # what a shell reports for a process that SIGTERM ended


class Terminated(BaseException):
    """SIGTERM arrived. Not an Exception, as KeyboardInterrupt is none."""


def install() -> None:
    """SIGTERM raises `Terminated` in the main thread from now on."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _raise)


class Notice:
    """Whether the run should stop; made by `finish_first`."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self, *_: Any) -> None:
        """What SIGTERM does."""
        self._asked = True

    def reached(self, step: int) -> bool:
        """Whether to stop after step number `step`.

        With several processes each calls it after every step, and all stop after the same one,
        whichever of them SIGTERM came to.
        """
        import jax

        if jax.process_count() == 1:
            return self._asked
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def finish_first() -> Iterator[Notice]:
    """Within the block SIGTERM only marks the notice; on leaving it without another exception a
    marked one raises `Terminated`.

    Outside the main thread SIGTERM stays what it was. With several processes JAX's own handler
    (`jax.distributed.initialize` installs it) hears the signal.
    """
    import jax

    notice = Notice()
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield notice
        return
    before = signal.signal(signal.SIGTERM, notice.ask)
    try:
        yield notice
    finally:
        # None stands for a handler that was not installed from Python.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
    if notice.reached(0):
        raise Terminated


def _raise(*_: Any) -> None:
    raise Terminated
