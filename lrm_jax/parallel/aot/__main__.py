"""Compiles a program for TPUs that are not there and says what it would need on each chip.

    python -m lrm_jax.parallel.aot --model=qwen3-vl-8b --topology=v5e:4x4 --program=lora_train \\
        --json=FILE [--mesh=fsdp=16] [--batch=64]

Needs libtpu, the extra `lrm_jax[tpu]`, and no TPU.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

from absl import flags

from lrm_jax.run import atomic
from lrm_jax.run.cli import reject_arguments, run_app
from lrm_jax.run.errors import UserError, did_you_mean

# Named here and not imported: whatever imports JAX must come after the environment is set.
PROGRAMS = ("lora_train", "score", "refine", "render")
ROWS_PER_CHIP = {"lora_train": 8, "score": 16, "refine": 8, "render": 64}

_MODEL = flags.DEFINE_string("model", "qwen3-vl-8b", "qwen3-vl-2b, -4b, -8b or -32b.")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "Chip and shape of the slice.")
_PROGRAM = flags.DEFINE_string("program", "lora_train", f"One of {', '.join(PROGRAMS)}.")
_JSON = flags.DEFINE_string("json", None, "File for the figures.", required=True)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", "", "refine: folder of the model's tokenizer.json; Qwen's own if not given."
)
_MESH = flags.DEFINE_string("mesh", "", "Sizes of axes: data=2,fsdp=-1,tensor=2 (-1: the rest).")
_BATCH = flags.DEFINE_integer(
    "batch", None, "Rows of a step, or environments, over all chips.", lower_bound=1
)
_TOKENS = flags.DEFINE_integer("tokens", 320, "Tokens of a row, images included.", lower_bound=1)
_IMAGES = flags.DEFINE_integer("images", 2, "Images of a row.", lower_bound=1)
_SIDE = flags.DEFINE_integer("image", 256, "Sides of an image in pixels.", lower_bound=1)
_RANK = flags.DEFINE_integer("rank", 64, "Rank of the adapters.", lower_bound=1)
_ATTENTION = flags.DEFINE_enum("attention", "xla", ["xla", "splash"], "What attends.")
_REMAT = flags.DEFINE_enum("remat", "full", ["none", "dots", "full"], "What training recomputes.")


def main(argv: list[str]) -> None:
    reject_arguments(argv)
    name = _PROGRAM.value
    if name not in PROGRAMS:
        raise UserError(f"--program: {name!r} is unknown; {did_you_mean(name, PROGRAMS)}")
    if _TOKENIZER.value and not (Path(_TOKENIZER.value) / "tokenizer.json").is_file():
        raise UserError(f"--tokenizer: there is no tokenizer.json in {_TOKENIZER.value}")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("libtpu is not installed: pip install 'lrm_jax[tpu]' (no TPU is needed)")
    if "jax" in sys.modules:
        raise RuntimeError("JAX was imported before the environment for libtpu was set")
    from lrm_jax.parallel import roofline

    try:
        where = roofline.Slice.parse(_TOPOLOGY.value)
    except UserError as error:
        raise UserError(f"--topology: {error}") from error
    path = Path(_JSON.value)
    with atomic.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    # libtpu would otherwise ask a metadata server, for minutes, which slice this machine is in, and
    # refuse a second process, though none of them uses a TPU.
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": where.accelerator_type,
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "JAX_ENABLE_COMPILATION_CACHE": "0",  # it cannot read what was compiled without a device
    }
    from lrm_jax.parallel.aot import programs, report
    from lrm_jax.parallel.mesh import MeshConfig
    from lrm_jax.qwen3_vl import sizes

    config = sizes.by_name(_MODEL.value)
    rows, mesh = _BATCH.value or ROWS_PER_CHIP[name] * where.chips, MeshConfig.parse(_MESH.value)
    if name == "render":
        figures = report.render_report(where, mesh, rows, _SIDE.value)
    elif name == "refine":
        from lrm_jax.benchmarks import peers
        from lrm_jax.rewards.tokenizer import Tokenizer

        folder = _TOKENIZER.value
        tokenizer = Tokenizer.from_folder(folder) if folder else peers.qwen_tokenizer()
        figures = report.refine_report(
            config,
            where,
            mesh,
            rows,
            _SIDE.value,
            tokenizer,
            rank=_RANK.value,
            attention=_ATTENTION.value,
        )
    else:
        shape = programs.Shape(rows, tokens=_TOKENS.value, images=_IMAGES.value, side=_SIDE.value)
        figures = report.compile_report(
            name,
            config,
            where,
            mesh,
            shape,
            remat=_REMAT.value,
            rank=_RANK.value,
            attention=_ATTENTION.value,
        )
    asked = {"topology": _TOPOLOGY.value, "program": name}
    if name != "render":
        asked = {"model": _MODEL.value} | asked
    atomic.write_json(path, asked | figures)
    print(json.dumps(asked | figures, indent=2))


if __name__ == "__main__":
    run_app(main)
