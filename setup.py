"""Packaging of lrm_jax. Settings of tools (ruff, pytest) are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "lrm_jax/__init__.py").read_text())[1]
README = HERE / "README.md"

INSTALL = [
    "absl-py>=2.3",
    "av>=14",  # video in and out
    "chex>=0.1.90",
    "flax>=0.12.8,<0.14",
    "google-crc32c>=1.5",  # checksums of TFRecord
    "grain>=0.2.12",  # mixtures of data sets
    "h5py>=3.11",
    "jax>=0.10.2,<0.12",
    "jinja2>=3.1",  # chat templates and the report
    "matplotlib>=3.9",
    "ml_collections>=1.1",
    "ml_dtypes>=0.5",
    "mujoco>=4.0,<5",
    "mujoco-mjx>=3.17,<5",
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8,<0.14",
    "pillow>=11",
    "pyarrow>=18",  # scores.parquet, LeRobot data sets
    "pyyaml>=6",  # settings of published judges
    "safetensors>=0.5",
    "scipy>=1.14",
    "tensorboardX>=2.6.4",
    "tokenizers>=0.22",
    "tqdm>=4.66",
]

# importlib_resources: tensorflow-datasets needs it and does not say so.
TFDS = ["tensorflow-datasets>=4.9.8", "importlib_resources>=6", "array_record>=0.6"]

EXTRAS = {
    # What the tests compare with. torch is pinned because its other versions bring gigabytes of
    # libraries for GPUs that the tests do not use.
    "test": [
        "brax>=0.14.2,<0.15",  # the oracle of GAE and of action distributions
        "dashscope>=1.20",  # brings Qwen's vocabulary
        "hypothesis>=6.100",
        "pandas>=2.2,<3",  # newer ones break arch, which rliable needs
        "peft>=0.18",
        "pytest>=8",
        "pytest-xdist>=3.7",  # tests in two processes
        "rliable>=1.2",  # the oracle of aggregates over seeds and tasks
        "ruff>=0.12",
        "scikit-learn>=1.5",
        *TFDS,
        "tensorflow-cpu>=2.18",  # tensorflow-datasets writes with it
        "torch==2.13.0",
        "transformers>=5.0,<6",
    ],
    # transformers' processors, for checkpoints from the hub.
    "hf": ["transformers>=5.0,<6"],
    # RLDS data sets (Open X-Embodiment): read without TensorFlow.
    "tfds": TFDS,
    # To write them as well.
    "tfds_write": [*TFDS, "tensorflow-cpu>=2.18"],
    # Cloud TPU, and ahead-of-time compilation for TPUs on a machine without them.
    "tpu": ["jax[tpu]>=0.10.2,<0.12"],
    "cuda": ["jax[cuda12]>=0.10.2,<0.12"],
}

setup(
    name="lrm_jax",
    version=VERSION,
    description="A vision-language model as the reward of a robot policy, in one JAX program",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["lrm_jax", "lrm_jax.*"]),
    package_data={"lrm_jax": ["assets/**/*", "**/*.xml", "**/*.jinja", "**/*.html", "**/*.json"]},
    install_requires=INSTALL,
    extras_require=EXTRAS,
    zip_safe=False,
)
