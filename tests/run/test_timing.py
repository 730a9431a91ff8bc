"""The stopwatch: each second counts once, compilation apart."""

from __future__ import annotations

import threading
import time

import jax
import jax.numpy as jnp
import pytest

from lrm_jax.run import timing
from lrm_jax.run.timing import Stopwatch


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def watch(clock):
    made = Stopwatch()
    yield made
    made.close()


def test_nested_blocks_are_exclusive(watch, clock):
    with watch("rollout"):
        clock[0] += 3
        with watch("io"):
            clock[0] += 1
            with watch("rollout"):
                clock[0] += 4
        clock[0] += 2
    clock[0] += 5
    assert watch.table() == {"rollout": 9, "other": 5, "io": 1}
    assert watch.total() == 15


def test_an_exception_and_a_look_from_inside(watch, clock):
    with pytest.raises(KeyError), watch("learning"):
        clock[0] += 2
        assert watch.table()["learning"] == 2
        raise KeyError
    clock[0] += 1
    assert watch.table() == {"learning": 2, "other": 1}


def test_goes_on_from_an_earlier_run(clock):
    watch = Stopwatch(earlier={"physics": 10.0})
    with watch("physics"):
        clock[0] += 1
    assert watch.table()["physics"] == 11
    watch.close()


def test_move(watch, clock):
    with watch("rollout"):
        clock[0] += 10
        watch.move(4, "rollout", "rendering")
    watch.move(100, "rendering", "physics")  # at most what is there
    assert watch.table() == {"rollout": 6, "physics": 4, "rendering": 0, "other": 0}


def _span(start, end, event="/jax/core/compile/x"):
    jax.monitoring.record_event_time_span(event, start, end)


def test_nested_compile_spans_count_once(watch, clock):
    with watch("learning"):
        clock[0] += 10
        _span(1.0, 2.0)
        _span(2.5, 3.0)
        _span(0.5, 4.0)  # encloses both, as tracing an outer function does
        _span(5.0, 6.0)
        _span(5.0, 7.0, "/jax/something/else")
    assert watch.table() == pytest.approx({"compiling": 4.5, "learning": 5.5, "other": 0})


def test_other_threads_do_not_count(watch, clock):
    with watch("learning"):
        clock[0] += 10
        thread = threading.Thread(target=_span, args=(1.0, 2.0))
        thread.start()
        thread.join()
    assert watch.table() == {"learning": 10, "other": 0}


def test_real_compilation_is_told_apart():
    """The sum is the wall time; the second call of a program compiles nothing."""

    @jax.jit
    def slow_to_compile(x):
        for i in range(60):
            x = jnp.sin(x @ x) * i
        return x

    x = jax.block_until_ready(jnp.ones((8, 8)))
    spans = []

    def listener(event, start, end, **_):
        if event.startswith("/jax/core/compile/"):
            spans.append((start, end))

    jax.monitoring.register_event_time_span_listener(listener)
    before = time.perf_counter()
    watch = Stopwatch()
    after = time.perf_counter()
    with watch("learning"):
        watch.wait(slow_to_compile(x))
    jax.monitoring.unregister_event_time_span_listener(listener)
    first = watch.table()
    with watch("again"):
        watch.wait(slow_to_compile(x))
    early = time.perf_counter()
    table = watch.table()
    late = time.perf_counter()
    watch.close()
    assert early - after <= sum(table.values()) <= late - before
    # At least the longest span (XLA's), at most from the first span's start to the last one's end.
    longest = max(end - start for start, end in spans)
    whole = max(end for _, end in spans) - min(start for start, _ in spans)
    assert longest <= first["compiling"] <= whole + 1e-6
    assert table["compiling"] == first["compiling"]
    assert all(seconds >= 0 for seconds in table.values())


def test_closed_watches_do_not_listen(watch, clock):
    watch.close()
    watch.close()
    with watch("learning"):
        clock[0] += 1
        _span(1.0, 2.0)
    assert "compiling" not in watch.table()
