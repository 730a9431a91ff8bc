"""Typed configuration: what is accepted, what is refused and in which words."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict, FrozenConfigDict, config_dict

from lrm_jax.run import config
from lrm_jax.run.errors import UserError


@dataclasses.dataclass(frozen=True)
class Optimizer:
    lr: float = config.field(3e-4, gt=0, le=1)
    kind: Literal["adam", "sgd"] = "adam"
    betas: tuple[float, float] = config.field((0.9, 0.999), ge=0, lt=1)


@dataclasses.dataclass(frozen=True)
class Job:
    steps: int = config.field(ge=1)
    name: str = "run"
    heads: tuple[str, ...] = config.field(("progress",), choices=("progress", "completion"))
    optimizer: Optimizer = Optimizer()
    second: Optimizer | None = None
    warm: bool = False
    clip: float | None = None
    either: int | str = 0
    extra: dict[str, float] = config.field(default_factory=dict)
    anything: Any = None

    def validate(self):
        if self.warm and self.steps < 10:
            raise UserError("warm needs steps >= 10")


def test_builds_nested_from_a_config_dict():
    given_config = ConfigDict(
        {"steps": 5, "optimizer": {"lr": 1, "betas": [0, 0.5]}, "second": {"kind": "sgd"}}
    )
    built = config.build(Job, given_config)
    assert built == Job(
        steps=5,
        optimizer=Optimizer(lr=1.0, betas=(0.0, 0.5)),
        second=Optimizer(kind="sgd"),
    )
    assert isinstance(built.optimizer.lr, float)
    assert config.build(Job, FrozenConfigDict(given_config)) == built
    assert config.build(Job, config.to_dict(built)) == built
    assert config.build(Job, built) is built


def test_references_and_placeholders_are_resolved():
    c = ConfigDict({"steps": 4, "clip": config_dict.placeholder(float)})
    c.either = c.get_ref("steps")
    assert config.build(Job, c) == Job(steps=4, either=4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "missing key config.steps"),
        ({"steps": 1, "stepz": 2}, "unknown key config.stepz: did you mean 'steps'?"),
        ({"steps": 1, "optimizer": {"lrr": 1}}, "unknown key config.optimizer.lrr: did you mean"),
        ({"steps": 0}, "config.steps is 0: must be at least 1"),
        ({"steps": 1.0}, "config.steps is 1.0 (float): must be int"),
        ({"steps": True}, "config.steps is True (bool): must be int"),
        ({"steps": "1"}, "config.steps is '1' (str): must be int"),
        ({"steps": None}, "config.steps is None (NoneType): must be int"),
        ({"steps": 1, "name": 3}, "config.name is 3 (int): must be str"),
        ({"steps": 1, "warm": 1}, "config.warm is 1 (int): must be bool"),
        ({"steps": 1, "optimizer": {"lr": 0.0}}, "config.optimizer.lr is 0.0: must be more than 0"),
        ({"steps": 1, "optimizer": {"lr": 2}}, "config.optimizer.lr is 2.0: must be at most 1"),
        ({"steps": 1, "optimizer": {"lr": math.nan}}, "config.optimizer.lr is not a number"),
        (
            {"steps": 1, "optimizer": {"kind": "adm"}},
            "config.optimizer.kind is 'adm': did you mean",
        ),
        ({"steps": 1, "optimizer": {"betas": (0.9,)}}, "config.optimizer.betas has 1 elements"),
        ({"steps": 1, "optimizer": {"betas": (0.9, 1)}}, "must be less than 1"),
        ({"steps": 1, "optimizer": {"betas": (0.9, "x")}}, "config.optimizer.betas[1] is 'x'"),
        ({"steps": 1, "optimizer": 3}, "config.optimizer must be a group of settings"),
        ({"steps": 1, "heads": "progress"}, "config.heads is 'progress' (str)"),
        ({"steps": 1, "heads": ("progres",)}, "did you mean 'progress'?"),
        ({"steps": 1, "either": 1.5}, "config.either is 1.5 (float): must be int | str"),
        ({"steps": 1, "extra": {"a": "b"}}, "config.extra.a is 'b'"),
        ({"steps": 1, "extra": 3}, "config.extra is 3"),
        ({"steps": 5, "warm": True}, "config: warm needs steps >= 10"),
    ],
)
def test_refuses(values, message):
    with pytest.raises(UserError) as error:
        config.build(Job, values)
    assert message in str(error.value)
    with pytest.raises(UserError):
        config.build(Job, ConfigDict(values))


def test_nested_validation_names_the_key():
    @dataclasses.dataclass(frozen=True)
    class Part:
        a: int = 0

        def __post_init__(self):
            if self.a == 7:
                raise ValueError("seven is taken")

    @dataclasses.dataclass(frozen=True)
    class Whole:
        part: Part = Part()

    # Local classes cannot be resolved from string annotations, so give them as they are.
    Whole.__annotations__["part"] = Part
    with pytest.raises(UserError, match=r"^job\.part: seven is taken$"):
        config.build(Whole, {"part": {"a": 7}}, key="job")


jobs = st.builds(
    Job,
    steps=st.integers(10, 10**12),
    name=st.text(max_size=8),
    heads=st.lists(st.sampled_from(["progress", "completion"]), max_size=3).map(tuple),
    optimizer=st.builds(
        Optimizer,
        lr=st.floats(1e-9, 1),
        kind=st.sampled_from(["adam", "sgd"]),
        betas=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
    ),
    second=st.none() | st.builds(Optimizer),
    warm=st.booleans(),
    clip=st.none() | st.floats(-1e9, 1e9),
    either=st.integers() | st.text(max_size=4),
    extra=st.dictionaries(st.text("abc", min_size=1, max_size=3), st.floats(-1, 1), max_size=3),
)


@given(jobs)
def test_round_trip(job):
    plain = config.to_dict(job)
    assert config.build(Job, plain) == job
    assert config.fingerprint(config.build(Job, ConfigDict(plain))) == config.fingerprint(job)


@given(jobs, jobs)
def test_fingerprints_tell_configs_apart(a, b):
    # repr tells -0.0 from 0.0, as the fingerprint does.
    assert (config.fingerprint(a) == config.fingerprint(b)) == (repr(a) == repr(b))


def test_fingerprint_is_the_same_in_every_process_and_order():
    value = {"b": 1, "a": [1, 2.5, None, "é", True]}
    here = config.fingerprint(value)
    assert here == config.fingerprint(ConfigDict({"a": [1, 2.5, None, "é", True], "b": 1}))
    code = f"from lrm_jax.run import config; print(config.fingerprint({value!r}))"
    command = [sys.executable, "-c", code]
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path), "PYTHONUTF8": "1"}
    there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here
    assert len(here) == 16


def test_fingerprint_of_arrays_counts_their_content():
    a = np.arange(6, dtype=np.float32)
    b = a.copy()
    assert config.fingerprint(a) == config.fingerprint(b)
    b[3] += 1
    assert config.fingerprint(a) != config.fingerprint(b)
    assert config.fingerprint(a) != config.fingerprint(a.reshape(2, 3))
    with pytest.raises(TypeError, match="no plain form"):
        config.fingerprint(object())


def test_differences_name_the_keys():
    old = {"a": 1, "b": {"c": 2, "d": 3}, "e": 0}
    new = {"a": 1, "b": {"c": 5, "d": 3}, "f": 0}
    assert config.differences(old, new) == ["b.c: 2 -> 5", "e: gone", "f: new"]
