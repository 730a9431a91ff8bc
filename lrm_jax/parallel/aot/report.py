"""Compiles a program for a TPU slice and says what it needs, as one JSON object."""

from __future__ import annotations

import re
import time
from typing import Any

import jax

from lrm_jax.parallel import hlo, roofline
from lrm_jax.parallel.aot import estimate, programs
from lrm_jax.parallel.mesh import MeshConfig, make_mesh
from lrm_jax.qwen3_vl import Config
from lrm_jax.run.errors import UserError, one_line


def topology_devices(where: roofline.Slice) -> list[Any]:
    """The devices of a slice that is not there; UserError if the compiler does not know it."""
    from jax.experimental import topologies

    name = f"{where.kind}:{'x'.join(map(str, where.dims))}"
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except Exception as error:  # jaxlib raises many types
        raise UserError(f"topology {name}: libtpu refuses it ({one_line(error)[:200]})") from error
    return list(found.devices)


def compile_report(
    name: str,
    config: Config,
    where: roofline.Slice,
    mesh_config: MeshConfig,
    shape: programs.Shape,
    *,
    remat: str = "full",
    rank: int = programs.RANK,
) -> dict[str, Any]:
    """What the program needs on each chip; "fits" is False, and compiled figures are absent, where
    the compiler finds it too large."""
    mesh = make_mesh(mesh_config, topology_devices(where))
    program = programs.build(name, config, mesh, shape, remat=remat, rank=rank)
    model_flops, executed = estimate.flops(name, config, shape, rank, remat)
    predicted = estimate.collective_bytes(name, program, config, shape, mesh)
    report: dict[str, Any] = {
        "mesh": dict(mesh.shape),
        "chips": where.chips,
        "hbm_bytes": where.chip.hbm,
        "rows": shape.rows,
        "tokens_per_row": shape.tokens,
        "images_per_row": shape.images,
        "image_side": shape.side,
        "rank": rank,
        "remat": remat if name == "lora_train" else "none",
        "kept_whole": [str(f) for f in program.fallbacks],
        "model_flops": model_flops,
        "executed_flops": executed,
        "predicted_collective_bytes": {**predicted, "total": sum(predicted.values())},
        "jax": jax.__version__,
    }
    start = time.perf_counter()
    lowered = program.lower(mesh)
    report["lower_seconds"] = time.perf_counter() - start
    start, work = time.perf_counter(), time.process_time()
    try:
        compiled = lowered.compile()
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needs = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", str(error))
        what = f"needs {needs[1]} of {needs[2]}" if needs else one_line(error)[:300]
        return report | {"fits": False, "reason": what}
    report["compile_seconds"] = time.perf_counter() - start
    report["compile_cpu_seconds"] = time.process_time() - work
    return report | compiled_figures(
        compiled, report, where, lambda held: estimate.hbm_bytes(
            name, program, config, shape, mesh, held
        )
    )  # fmt: skip


def compiled_figures(compiled: Any, report: dict[str, Any], where: roofline.Slice, through):
    """Memory, collectives, roofline of a compiled program; `through` estimates HBM traffic."""
    memory = compiled.memory_analysis()
    arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes
    shared, temporary = memory.alias_size_in_bytes, memory.temp_size_in_bytes
    code = memory.generated_code_size_in_bytes
    peak = arguments + outputs - shared + temporary + code
    found = hlo.collectives(compiled.as_text(), where.chips)
    received = sum(one.total for one in found)
    work = roofline.Work(
        report["model_flops"], report["executed_flops"], through(arguments + outputs), received
    )
    sources: dict[tuple[str, str], int] = {}
    for one in found:
        key = (one.kind, one.source)
        sources[key] = sources.get(key, 0) + one.total
    largest = sorted(sources.items(), key=lambda item: -item[1])[:12]
    return {
        "fits": peak <= where.chip.hbm,
        "memory": {
            "argument_bytes": arguments,
            "output_bytes": outputs,
            "aliased_bytes": shared,
            "temp_bytes": temporary,
            "code_bytes": code,
            "peak_bytes": peak,
            "hbm_share": peak / where.chip.hbm,
        },
        "collectives": hlo.by_kind(found),
        "collective_bytes": received,
        "collective_bytes_over_predicted": (
            received / max(report["predicted_collective_bytes"]["total"], 1.0)
        ),
        "largest_collectives": [
            {"kind": kind, "source": source, "bytes": size} for (kind, source), size in largest
        ],
        "hbm_traffic_bytes": work.hbm_bytes,
        "roofline": roofline.bound(work, where),
    }
