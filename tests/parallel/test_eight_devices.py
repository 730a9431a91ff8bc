"""Eight CPU devices in a process of their own: the sharded network, loading and checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow
MESHES = ("fsdp=8", "data=2,fsdp=2,tensor=2", "fsdp=4,tensor=2")

# Sharding changes the order in which sums are taken, and nothing else. A sum of K float32 products
# in another order differs by about sqrt(K) units in the last place (6e-8); the longest here has
# K = 192, and about 50 follow one another forward, twice that backward: 50 * 14 * 6e-8 = 4e-5.
FORWARD, BACKWARD = 4e-5, 8e-5


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("eight")
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "LRM_JAX_CACHE": "off"}
    done = subprocess.run(
        [sys.executable, str(HERE / "eight_devices.py"), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == 8
    return found | {"folder": folder}


@pytest.mark.parametrize("mesh", MESHES)
def test_the_network_gives_what_one_device_gives(measured, mesh):
    errors = measured["networks"][mesh]
    assert errors["loss"] < FORWARD
    assert errors["adapter_gradients"] < BACKWARD
    if mesh == "data=2,fsdp=2,tensor=2":
        assert errors["answers"] < FORWARD
        assert errors["base_gradients"] < BACKWARD


@pytest.mark.parametrize("mesh", MESHES)
def test_parameters_are_cut_and_gathered(measured, mesh):
    """A device holds its share (norms, biases and positions are copied), and the program
    gathers: it would not if the compiler had copied the parameters beforehand."""
    found = measured["networks"][mesh]
    parts = 4 if mesh.startswith("data=2") else 8
    copied = 40_000
    assert found["bytes"] < measured["networks"]["size"] / parts + copied
    assert found["collectives"]["all-gather"]["count"] > 20
    assert "all-reduce" in found["collectives"] or "reduce-scatter" in found["collectives"]


def test_the_loops_of_the_layers_are_counted(measured):
    """Three scanned decoder layers and a segment of two vision blocks, forward and backward."""
    turns = measured["networks"]["data=2,fsdp=2,tensor=2"]["loops"]
    assert None not in turns
    assert turns.count(3) >= 2 and turns.count(2) >= 2


def test_loading_reads_each_byte_once(measured):
    """Equality with the plain path is asserted where it is measured. Only the patch embedding,
    whose file has more axes than the leaf, is read whole for each of its shards."""
    found = measured["loading"]
    patch = 3 * 2 * 4 * 4 * 48 * 4
    for label in ("cut", "cut both ways", "by layers"):
        assert found["size"] <= found[label] <= found["size"] + 7 * patch, label


def test_loading_holds_less_than_a_shard(measured):
    """A stacked leaf of 32 MB in eight shards of 4 MB, each put together layer by layer."""
    found = measured["loading"]
    assert found["leaf"] == 32 << 20
    assert found["peak"] < found["leaf"] / 8
    # Without a mesh too: a layer as the file has it, and as the tree has it.
    assert found["peak_whole"] < found["leaf"] / 4


def test_checkpoints_move_between_meshes(measured):
    """Values and shardings are compared where they are restored."""
    found = measured["checkpoints"]
    assert found["restored"] == [["fsdp=8", 3], ["tensor=4,fsdp=2", 3], ["fsdp=1", 3]]
    assert "tensor" in found["moment"] and "fsdp" in found["moment"]
    assert found["base"] == str(measured["folder"] / "base")


def test_an_iteration_is_what_one_device_plays_and_scores(measured):
    """Environments never meet, so the rollout has no collective."""
    found = measured["iteration"]
    assert found["frames_differ"] > 50 and found["scores_differ"] > 100 * FORWARD
    assert found["rollout"] < FORWARD
    assert found["scores"] < FORWARD
    assert "('data', 'fsdp')" in found["frames"]
    assert sum(kind["bytes"] for kind in found["collectives"].values()) == 0
    assert "3 environments do not divide into the 4 parts" in found["refused"]


def test_hand_calculation_counts_the_passes_of_scoring(measured):
    """Parameters are gathered for every micro-batch. Here the compiler lifts the output layer's
    gather out of that loop, which costs memory; upwards the bound is that of the next test."""
    found = measured["iteration"]["predictions"]
    passes = [n for n in found["passes"].values() if n > 1]
    assert passes and set(passes) <= set(found["loops"])
    assert 0.7 * found["by_hand"] <= found["compiled"] <= 2.2 * found["by_hand"]


def test_hand_calculation_predicts_the_gathers(measured):
    """The CPU's compiler computes in float32 what is bfloat16 here, so it gathers up to twice the
    bytes; it must gather all that the rules cut, and nothing of another order."""
    found = measured["predictions"]
    by_hand = sum(found["by_hand"].values())
    compiled = sum(kind["bytes"] for kind in found["compiled"].values())
    assert by_hand <= compiled <= 2.2 * by_hand


def test_loaded_models_say_on_a_mesh_what_they_say_on_one_device(measured):
    """Three rows, three videos: numbers that the mesh does not divide."""
    found = measured["loaded"]
    assert found["logits"] < FORWARD and found["tokens"]
    assert found["held"] < 0.5  # a quarter or an eighth of each kernel, and what is copied
    # Probabilities of softmaxes over logits of about 30 units: 30 * FORWARD at the very most.
    assert found["scores"] < 30 * FORWARD
    assert found["valid"] and found["texts"] and found["shape"] == [3, 5]


def test_adapters_learn_on_a_mesh_what_they_learn_on_one_device(measured):
    """The rate warms up from 0, so the first update that changes a factor is the second: the third
    loss is of what was learnt."""
    found = measured["trained"]
    assert found["many_cut"] and not found["one_cut"]
    # Adam's first real step moves every factor that has a gradient by about the rate, 0.01.
    assert found["many_moved"] > 0.005
    assert len(found["one"]) == len(found["many"]) == 3
    for one, many in zip(found["one"], found["many"], strict=True):
        assert abs(many - one) < FORWARD * one


def test_loaded_adapters_say_on_a_mesh_what_they_say_on_one_device(measured):
    found = measured["loaded"]
    assert found["adapted"] < FORWARD and found["adapter_moves"] > 0.01
    assert found["adapted_scores"] < 30 * FORWARD
    assert found["whole"] == []  # no kernel and no factor lies on every device
