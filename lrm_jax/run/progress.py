"""Progress bars for terminals and plain lines for logs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

LINE_EVERY_SECONDS = 10.0


def bar(
    iterable: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    desc: str = "",
    unit: str = "it",
    initial: int = 0,
) -> Any:
    """A progress bar on stderr: iterate over it, or call `update(n)` inside a `with`.

    On a terminal it is a tqdm bar. Elsewhere (a log file, CI) it prints a line at most every ten
    seconds and one at the end. Both have `update(n)`, `set_postfix(**values)` and `close()`.

    Args:
      iterable: what to iterate over; may be None when `update` is called by hand.
      total: number of steps, taken from `len(iterable)` if not given.
      desc: what is being done, a few words.
      unit: what a step is, e.g. "episode".
      initial: steps already done by an earlier run.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable) + initial  # type: ignore[arg-type]
    if sys.stderr.isatty():
        import tqdm

        return tqdm.tqdm(
            iterable,
            total=total,
            desc=desc,
            unit=unit,
            initial=initial,
            dynamic_ncols=True,
            smoothing=0.1,
        )
    return LineBar(iterable, total=total, desc=desc, unit=unit, initial=initial)


def note(message: str) -> None:
    """Prints one line on stderr without tearing a bar that may be on screen."""
    if sys.stderr.isatty():
        import tqdm

        tqdm.tqdm.write(message, file=sys.stderr)
    else:
        print(message, file=sys.stderr, flush=True)


class LineBar:
    """The bar for streams that are not terminals; see `bar`."""

    def __init__(self, iterable, *, total, desc, unit, initial=0, every=LINE_EVERY_SECONDS):
        self._iterable = iterable
        self.total, self.desc, self.unit, self.n = total, desc or "progress", unit, initial
        self._initial = initial
        self._every = every
        self._start = self._last = time.monotonic()
        self._postfix = ""
        self._closed = False

    def __iter__(self) -> Iterator[Any]:
        assert self._iterable is not None, "this bar was made without an iterable"
        try:
            for item in self._iterable:
                yield item
                self.update(1)
        finally:
            self.close()

    def __enter__(self) -> LineBar:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        """Counts `n` more steps."""
        self.n += n
        if time.monotonic() - self._last >= self._every:
            self._print()

    def set_postfix(self, **values: Any) -> None:
        """Shows `values` behind the count; numbers to three significant digits."""
        shown = {k: f"{v:.3g}" if isinstance(v, float) else str(v) for k, v in values.items()}
        self._postfix = "".join(f" {k}={v}" for k, v in shown.items())

    def set_description(self, desc: str) -> None:
        """Changes what the bar says is being done."""
        self.desc = desc

    def close(self) -> None:
        """Prints the last line; further calls do nothing."""
        if not self._closed:
            self._closed = True
            self._print()

    def _print(self) -> None:
        self._last = time.monotonic()
        seconds = self._last - self._start
        done = self.n - self._initial
        rate = done / seconds if seconds > 0 else 0.0
        of = f"/{self.total}" if self.total is not None else ""
        left = ""
        if self.total is not None and 0 < done and self.n < self.total:
            left = f", {(self.total - self.n) / rate:.0f} s left"
        note(f"{self.desc}: {self.n}{of} {self.unit}, {seconds:.1f} s{left}{self._postfix}")
