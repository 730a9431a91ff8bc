"""Where the time goes: seconds by category, with compilation told apart from running."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

COMPILING = "compiling"
OTHER = "other"
# What JAX does before a program can run: tracing, lowering, and XLA's compilation (which includes
# reading the persistent cache). All in `jax._src.dispatch`; the prefix covers the three.
_COMPILE_EVENTS = "/jax/core/compile/"


class Stopwatch:
    """Attributes wall time to named categories, each second to exactly one.

        watch = Stopwatch()
        with watch("rollout"):
            frames = watch.wait(rollout(state))   # JAX returns before the work is done: wait for it
            with watch("io"):                      # counts as io, not as rollout
                save(frames)
        watch.table()  # {"rollout": 3.1, "io": 0.2, "compiling": 5.0, "other": 0.1}

    Compilation inside a block counts as "compiling" and not for the block. Time outside all blocks
    since the stopwatch was made is "other". Blocks and compilation are those of the thread that
    made the stopwatch.

    Args:
      earlier: a table of an interrupted run to go on from.
    """

    def __init__(self, earlier: Mapping[str, float] | None = None):
        self._seconds: dict[str, float] = {k: float(v) for k, v in (earlier or {}).items()}
        self._stack: list[str] = [OTHER]
        self._since = time.perf_counter()
        self._thread = threading.get_ident()
        # Compile spans seen so far, disjoint and ascending. Tracing nests (a jitted function inside
        # another reports its own span first), so spans are merged instead of summed.
        self._spans: list[tuple[float, float]] = []
        self._listening = False
        self._listen()

    @contextlib.contextmanager
    def __call__(self, category: str) -> Iterator[Stopwatch]:
        """Attributes the time inside the block to `category`, less what inner blocks claim."""
        self._settle()
        self._stack.append(category)
        try:
            yield self
        finally:
            self._settle()
            self._stack.pop()

    def wait(self, value: Any) -> Any:
        """Waits until the arrays in the tree `value` are computed, and returns it."""
        import jax

        return jax.block_until_ready(value)

    def move(self, seconds: float, source: str, target: str) -> None:
        """Moves `seconds` from one category to another, for a split known by measurement elsewhere.

        Used where one compiled program does two things, e.g. physics and rendering in a rollout. At
        most what
        `source` holds is moved.
        """
        self._settle()
        seconds = min(max(seconds, 0.0), self._seconds.get(source, 0.0))
        self._add(source, -seconds)
        self._add(target, seconds)

    def table(self) -> dict[str, float]:
        """Seconds by category, largest first, "other" included; they sum to the stopwatch's age."""
        self._settle()
        # Clock differences may leave a category at -1e-6.
        rows = {k: max(v, 0.0) for k, v in self._seconds.items()}
        return dict(sorted(rows.items(), key=lambda kv: -kv[1]))

    def total(self) -> float:
        """Seconds since the stopwatch was made, plus those of `earlier`."""
        return sum(self.table().values())

    def close(self) -> None:
        """Stops listening to JAX. Compilation after this counts as the block it happens in."""
        if self._listening:
            import jax.monitoring

            jax.monitoring.unregister_event_time_span_listener(self._on_span)
            self._listening = False

    def _add(self, category: str, seconds: float) -> None:
        self._seconds[category] = self._seconds.get(category, 0.0) + seconds

    def _settle(self) -> None:
        """Gives the time since the last change to the category on top."""
        now = time.perf_counter()
        self._add(self._stack[-1], now - self._since)
        self._since = now

    def _listen(self) -> None:
        import jax.monitoring

        jax.monitoring.register_event_time_span_listener(self._on_span)
        self._listening = True

    def _on_span(self, event: str, start: float, end: float, **_: Any) -> None:
        if not event.startswith(_COMPILE_EVENTS) or threading.get_ident() != self._thread:
            return
        known = 0.0
        while self._spans and self._spans[-1][0] >= start:
            a, b = self._spans.pop()
            known += b - a
        if self._spans and self._spans[-1][1] > start:  # touching by less than the clock's step
            start = self._spans[-1][1]
        self._spans.append((start, max(start, end)))
        fresh = max(start, end) - start - known
        self._add(COMPILING, fresh)
        self._add(self._stack[-1], -fresh)
