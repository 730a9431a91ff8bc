"""Adapters between PEFT and here: what PEFT trained gives the same logits, and back."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.numpy

from lrm_jax import lora, qwen3_vl
from lrm_jax.qwen3_vl import generate
from lrm_jax.qwen3_vl.batching import pack

from .conftest import ADAPTERS, BATCH, REAL, relative, torch_logits

# Float32 sums of a hundred terms err by about 1e-6 of their scale, and seven layers of each side
# add a few of those. A wrong scale, rank or layer shows at 1e-2 (the adapters move the logits by
# more than 0.02).
LOGITS = 1e-5


@pytest.fixture(scope="module")
def ours(base, trained):
    return qwen3_vl.from_pretrained(base.folder, adapters=trained.folders)


@pytest.mark.parametrize("name", ADAPTERS)
def test_logits_of_each_adapter(ours, trained, name):
    got = ours.logits(**BATCH, adapter=name)
    assert relative(got[REAL], trained.logits[name][REAL]) < LOGITS
