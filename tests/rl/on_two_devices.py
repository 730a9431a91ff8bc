"""Run as a program: refinement over a mesh of two devices; prints how often its programs were
compiled, from a state of its own and from one that was read again."""

import json
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling takes longest, and is not what is tested.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=2 "
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import lrm_jax  # noqa: F401 - before jax

# isort: split
import jax
import numpy as np

sys.path.append(str(Path(__file__).resolve().parent))
from pixel_point import SENTENCES, PixelPoint, draw
from test_refine import CONFIG, NETWORK, brightness

from lrm_jax.parallel.mesh import make_mesh
from lrm_jax.policies.networks import Policy, init_variables
from lrm_jax.policies.vocabulary import Vocabulary
from lrm_jax.rl.refine import learn, refine
from lrm_jax.rl.rollout import rollout_from

vocabulary = Vocabulary.of(SENTENCES)
policy = Policy(NETWORK, vocabulary.size, 2)
variables = init_variables(policy, jax.random.PRNGKey(0), vocabulary, SENTENCES)
environment, states = PixelPoint(), []


def compiled() -> dict[str, int]:
    return {"rollout": rollout_from._cache_size(), "learn": learn._cache_size()}


with jax.set_mesh(make_mesh("data=2")):
    run = environment, draw, policy, variables, brightness, CONFIG, jax.random.PRNGKey(3)
    refine(*run, on_iteration=lambda state, _: states.append(state))
    fresh = compiled()
    refine(*run, state=jax.tree.map(np.asarray, states[0]))
print(json.dumps({"fresh": fresh, "resumed": compiled()}))
