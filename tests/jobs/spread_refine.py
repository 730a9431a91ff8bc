"""Run as a program: a refinement and its paired episodes on one device, or in several processes.

    python tests/jobs/spread_refine.py DEVICES MESH FOLDER COORDINATOR COUNT N

Prints {"rows", "iterations", "digests"} of the job `refine` on the toy world: a row and the refined
policy of each arm, the iterations of the one that learns from lrm-nano's scores.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling takes longest, and is not what is tested.
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count={int(sys.argv[1]) // int(sys.argv[5])} "
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import lrm_jax  # noqa: F401 - before jax

# isort: split
import jax
from ml_collections import ConfigDict

from lrm_jax.jobs import refine
from lrm_jax.jobs.base_policy import World
from lrm_jax.jobs.settings import EnvSettings
from lrm_jax.parallel.mesh import make_mesh, start_processes
from lrm_jax.policies import Policy, Vocabulary
from lrm_jax.run import manifest, metrics
from lrm_jax.run.workdir import Workdir

sys.path.append(str(Path(__file__).resolve().parents[1] / "rl"))
from pixel_point import SENTENCES, PixelPoint, draw

devices, mesh, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
coordinator, count, number = sys.argv[4], int(sys.argv[5]), int(sys.argv[6])
ENV = PixelPoint(radius=0.3)
JOB = {
    "job": "refine",
    "arms": ("vlm", "shuffled", "untrained", "oracle"),
    "mesh": mesh,
    "env": {"size": 32},
    "policy": {"chunk": 4, "waypoints": 0, "image_size": 32, "channels": 8, "blocks": 1,
               "keypoints": 4, "sentence_size": 16, "hidden": 32},
    "refine": {"iterations": 3, "num_envs": 8, "num_chunks": 5, "ppo": {"minibatches": 2}},
    "evaluation": {"episodes": 12, "batch": 8, "seed": 7},
}  # fmt: skip


def toy() -> None:
    """The job's world becomes a point among two dots, its clone an untrained policy."""
    vocabulary = Vocabulary.of(SENTENCES)
    ENV.sentences_in_use = lambda: SENTENCES
    EnvSettings.make = lambda self: ENV

    def make(env, policy, mesh=""):
        over = make_mesh(mesh) if mesh else None
        return World(ENV, draw, Policy(policy, vocabulary.size, 2), vocabulary, over)

    def clone(workdir, job, seed, world):
        stage = workdir.stage(f"base_policy_{seed}", {"seed": seed})
        stage.run(lambda folder: (folder / "empty").write_text(""), lambda folder: None)
        return stage, world.fresh(seed), {}

    World.make, refine.clone_stage = staticmethod(make), clone


if __name__ == "__main__":
    if count > 1:
        start_processes(coordinator, count, number)
    assert len(jax.devices()) == devices and jax.process_count() == count
    toy()
    with (
        Workdir(folder / "run") as workdir,
        manifest.recording(workdir.path, config=JOB, job="refine"),
    ):
        rows = refine.run(ConfigDict(JOB), workdir)["runs"]
        digests = {
            arm: hashlib.sha256(
                (workdir / "stages" / f"refine_{arm}_0" / "policy.safetensors").read_bytes()
            ).hexdigest()
            for arm in JOB["arms"]
        }
        iterations = metrics.read(workdir.path, "refine_vlm_0")
    print(json.dumps({"rows": rows, "iterations": iterations, "digests": digests}), flush=True)
