"""metrics.jsonl and TensorBoard events: no line lost, none twice."""

from __future__ import annotations

import json

import numpy as np
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter  # noqa: F401 - the format read below

from lrm_jax.run import metrics
from lrm_jax.run.metrics import MetricsWriter


def _events(folder):
    """All events under `folder`: TFRecords of (length, crc, data, crc)."""
    found = []
    for path in sorted(folder.rglob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def test_lines_and_events(tmp_path):
    with MetricsWriter(tmp_path, "refine") as writer:
        writer.write(1, {"loss": np.float32(0.5), "n": 3, "bad": float("nan"), "stage": "x"})
        # Readable while the run goes on.
        assert metrics.read(tmp_path) == [
            {"series": "refine", "step": 1, "loss": 0.5, "n": 3, "bad": None, "stage": "x"}
        ]
    scalars = {
        value.tag: (event.step, value.simple_value)
        for event in _events(tmp_path / "tensorboard" / "refine")
        for value in event.summary.value
    }
    assert scalars == {"refine/loss": (1, 0.5), "refine/n": (1, 3.0)}


def test_resume_leaves_no_duplicates(tmp_path):
    with MetricsWriter(tmp_path, "sft", tensorboard=False) as other:
        other.write(5, {"loss": 1.0})
    with MetricsWriter(tmp_path, "refine") as writer:
        for step in range(6):
            writer.write(step, {"loss": float(step)})
    with open(tmp_path / metrics.FILE, "a") as f:
        f.write('{"series": "refine", "step": 6, "lo')  # killed in the middle of a line
    assert len(metrics.read(tmp_path)) == 7
    with MetricsWriter(tmp_path, "refine", resume_step=3) as writer:
        for step in range(4, 8):
            writer.write(step, {"loss": -float(step)})
    lines = [json.loads(x) for x in (tmp_path / metrics.FILE).read_text().splitlines()]
    assert lines == metrics.read(tmp_path)
    refine = metrics.read(tmp_path, "refine")
    assert [e["step"] for e in refine] == list(range(8))
    assert [e["loss"] for e in refine] == [0, 1, 2, 3, -4, -5, -6, -7]
    assert metrics.read(tmp_path, "sft") == [{"series": "sft", "step": 5, "loss": 1.0}]
    # TensorBoard drops the events of earlier files from this step on.
    starts = [e.step for e in _events(tmp_path) if e.HasField("session_log")]
    assert starts == [4]


def test_a_series_started_anew_drops_its_old_lines(tmp_path):
    for value in (1.0, 2.0):
        with MetricsWriter(tmp_path, "refine") as writer:
            writer.write(0, {"loss": value})
    assert metrics.read(tmp_path) == [{"series": "refine", "step": 0, "loss": 2.0}]
    values = [v.simple_value for e in _events(tmp_path) for v in e.summary.value]
    assert values == [2.0]


def test_no_file(tmp_path):
    assert metrics.read(tmp_path) == []
