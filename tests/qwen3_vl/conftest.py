"""Small random Qwen3-VL checkpoints, written by transformers: the oracle of these tests."""

from __future__ import annotations

import jax
import pytest

from lrm_jax.benchmarks.parity_cases import Pair, hf_config, make_pair
from lrm_jax.qwen3_vl import generate

# Compiling dominates these tests, and LLVM's optimisation is not what they test.
QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture(scope="session", autouse=True)
def quick_compilation():
    originals = {}
    for name, static in {
        "logits": ("model",),
        "greedy": ("model", "slots", "stops", "pad"),
    }.items():
        originals[name] = function = getattr(generate, name)
        quick = jax.jit(function.__wrapped__, static_argnames=static, compiler_options=QUICK)
        setattr(generate, name, quick)
    yield
    for name, function in originals.items():
        setattr(generate, name, function)


@pytest.fixture(autouse=True)
def exact_matmuls():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="session")
def untied(tmp_path_factory) -> Pair:
    folder = tmp_path_factory.mktemp("untied")
    return make_pair(folder, hf_config(tie_word_embeddings=False))


@pytest.fixture(scope="session")
def tied(tmp_path_factory) -> Pair:
    folder = tmp_path_factory.mktemp("tied")
    return make_pair(folder, hf_config(tie_word_embeddings=True), seed=1)
