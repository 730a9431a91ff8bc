"""Bars: lines at intervals where there is no terminal, tqdm where there is one."""

from __future__ import annotations

import io
import sys

import tqdm

from lrm_jax.run import progress


def test_lines(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    bar = progress.bar(range(30), desc="rollout", unit="step")
    for i in bar:
        clock[0] += 1.0
        bar.set_postfix(reward=i / 2)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "rollout: 10/30 step, 10.0 s, 20 s left reward=4.5",
        "rollout: 20/30 step, 20.0 s, 10 s left reward=9.5",
        "rollout: 30/30 step, 30.0 s reward=14.5",
        "rollout: 30/30 step, 30.0 s reward=14.5",
    ]


def test_by_hand_and_from_a_resumed_step(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.bar(total=10, desc="refine", initial=4) as bar:
        clock[0] += 11
        bar.update(2)
    err = capsys.readouterr().err
    assert err.splitlines()[0] == "refine: 6/10 it, 11.0 s, 22 s left"
    assert len(err.splitlines()) == 2


def test_an_iterator_without_length_and_an_early_end(capsys):
    for i in progress.bar(iter(range(9)), desc="read"):
        if i == 3:
            break
    assert capsys.readouterr().err.startswith("read: 3 it, ")


def test_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.bar(total=3, desc="score") as bar:
        assert isinstance(bar, tqdm.tqdm)
        bar.update(3)
        bar.set_postfix(loss=0.5)
        progress.note("a line")
    text = sys.stderr.getvalue()
    assert "a line\n" in text and "3/3" in text
