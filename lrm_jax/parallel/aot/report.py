"""Compiles a program for a TPU slice and says what it needs, as one JSON object."""

from __future__ import annotations

import re
import time
from typing import Any

import jax
from jax.sharding import Mesh

from lrm_jax.parallel import hlo, roofline, rules
from lrm_jax.parallel.aot import estimate, pixels, programs, refine
from lrm_jax.parallel.mesh import MeshConfig, make_mesh
from lrm_jax.qwen3_vl import Config
from lrm_jax.rewards.tokenizer import Tokenizer
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
    attention: str = "xla",
) -> dict[str, Any]:
    """What the program needs on each chip; "fits" is False, and compiled figures are absent, where
    the compiler finds it too large."""
    mesh = make_mesh(mesh_config, topology_devices(where))
    program = programs.build(name, config, mesh, shape, remat=remat, rank=rank, attention=attention)
    model_flops, executed = estimate.flops(name, config, shape, rank, remat)
    predicted = estimate.collective_bytes(name, program, config, shape, mesh, remat)
    report = _place(where, mesh) | {
        "rows": shape.rows,
        "tokens_per_row": shape.tokens,
        "images_per_row": shape.images,
        "image_side": shape.side,
        "rank": rank,
        "attention": attention,
        "remat": remat if name == "lora_train" else "none",
        "kept_whole": [str(f) for f in program.fallbacks],
        "model_flops": model_flops,
        "executed_flops": executed,
        "predicted_collective_bytes": {**predicted, "total": sum(predicted.values())},
    }
    compiled, facts = _compile(program, mesh)
    report |= facts
    if compiled is None:
        return report
    through = estimate.hbm_bytes(name, program, config, shape, mesh, _held(compiled))
    return report | compiled_figures(compiled, report, where, through)


def refine_report(
    config: Config,
    where: roofline.Slice,
    mesh_config: MeshConfig,
    environments: int,
    side: int,
    tokenizer: Tokenizer,
    *,
    rank: int = programs.RANK,
    attention: str = "xla",
) -> dict[str, Any]:
    """What each program of a refinement iteration needs on each chip, and what is held beside it:
    the reward model stays on the chips while the rollout and the update run."""
    mesh = make_mesh(mesh_config, topology_devices(where))
    budget = int(where.chip.hbm * refine.SCORING_SHARE)
    loop = refine.Loop.make(config, mesh, environments, side, tokenizer, budget, rank, attention)
    report = _place(where, mesh) | {
        "environments": environments,
        "image_side": side,
        "decisions": refine.CHUNKS,
        "control_steps": refine.CHUNK * refine.CHUNKS,
        "signal": refine.SIGNAL,
        "rank": rank,
        "attention": attention,
        "programs": {},
    }
    model_bytes = 0
    for name, program, tell in loop.programs():
        compiled, facts = _compile(program, mesh)
        report["programs"][name] = facts
        if compiled is None:
            return report | {"fits": False, "reason": f"{name} {facts['reason']}"}
        tell(compiled.output_shardings)
        if name == "score":
            model_bytes = rules.shard_bytes(
                placed := (program.base, program.adapters),
                jax.tree.map(lambda x: x.sharding, placed),
            )
            facts |= loop.estimate(program)
            facts["kept_whole"] = [str(f) for f in program.fallbacks]
            through = loop.hbm_bytes(program, _held(compiled))
            facts |= compiled_figures(compiled, facts, where, through)
        else:
            predicted = loop.batch_bytes(program) if name == "learn" else 0.0
            facts["predicted_collective_bytes"] = {"total": predicted}
            facts |= memory_figures(compiled, where) | communication(compiled, where)
    report["reward_model_bytes"] = model_bytes
    peaks = {
        name: facts["memory"]["peak_bytes"] + (0 if name == "score" else model_bytes)
        for name, facts in report["programs"].items()
    }
    peak = max(peaks.values())
    return report | {
        "peak_bytes": peaks,
        "fits": peak <= where.chip.hbm,
        "hbm_share": peak / where.chip.hbm,
        "compile_cpu_seconds": sum(
            facts["compile_cpu_seconds"] for facts in report["programs"].values()
        ),
    }


def render_report(
    where: roofline.Slice, mesh_config: MeshConfig, environments: int, side: int
) -> dict[str, Any]:
    """What drawing one image of each environment needs on each chip; the compiler's own counts of
    operations and bytes are of one image."""
    mesh = make_mesh(mesh_config, topology_devices(where))
    report = _place(where, mesh) | {
        "environments": environments,
        "image_side": side,
        "task": pixels.TASK,
    }
    compiled, facts = _compile(pixels.program(mesh, environments, side), mesh)
    report |= facts
    if compiled is None:
        return report
    here = environments / (mesh.shape["data"] * mesh.shape["fsdp"])
    counted = compiled.cost_analysis() or {}
    found = {
        name: counted[key] / here
        for name, key in (("flops_per_image", "flops"), ("bytes_per_image", "bytes accessed"))
        if key in counted
    }
    if "bytes_per_image" in found:  # a bound: arithmetic runs on vector units without a public peak
        found["images_per_second_by_hbm"] = where.chip.hbm_rate / found["bytes_per_image"]
    return report | found | memory_figures(compiled, where) | communication(compiled, where)


def _place(where: roofline.Slice, mesh: Mesh) -> dict[str, Any]:
    return {
        "mesh": dict(mesh.shape),
        "chips": where.chips,
        "hbm_bytes": where.chip.hbm,
        "jax": jax.__version__,
    }


def _compile(program: programs.Program, mesh: Mesh) -> tuple[Any, dict[str, Any]]:
    """The compiled program and how long that took; None, and "fits" False, if it is too large."""
    start = time.perf_counter()
    lowered = program.lower(mesh)
    facts: dict[str, Any] = {"lower_seconds": time.perf_counter() - start}
    start, work = time.perf_counter(), time.process_time()
    try:
        compiled = lowered.compile()
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needs = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", str(error))
        what = f"needs {needs[1]} of {needs[2]}" if needs else one_line(error)[:300]
        return None, facts | {"fits": False, "reason": what}
    facts["compile_seconds"] = time.perf_counter() - start
    facts["compile_cpu_seconds"] = time.process_time() - work
    return compiled, facts


def _held(compiled: Any) -> int:
    memory = compiled.memory_analysis()
    return memory.argument_size_in_bytes + memory.output_size_in_bytes


def compiled_figures(
    compiled: Any, report: dict[str, Any], where: roofline.Slice, hbm_bytes: float
) -> dict[str, Any]:
    """Memory, collectives and roofline of a compiled program for which `report` holds FLOPs and
    predicted collectives; `hbm_bytes`: what goes through HBM, at least."""
    found = memory_figures(compiled, where) | communication(compiled, where)
    received = found["collective_bytes"]
    work = roofline.Work(report["model_flops"], report["executed_flops"], hbm_bytes, received)
    return found | {
        "collective_bytes_over_predicted": (
            received / max(report["predicted_collective_bytes"]["total"], 1.0)
        ),
        "hbm_traffic_bytes": hbm_bytes,
        "roofline": roofline.bound(work, where),
    }


def memory_figures(compiled: Any, where: roofline.Slice) -> dict[str, Any]:
    """Bytes in HBM as the compiler plans them."""
    memory = compiled.memory_analysis()
    arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes
    shared, temporary = memory.alias_size_in_bytes, memory.temp_size_in_bytes
    code = memory.generated_code_size_in_bytes
    peak = arguments + outputs - shared + temporary + code
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
    }


def communication(compiled: Any, where: roofline.Slice) -> dict[str, Any]:
    """Collectives by kind, and the largest by where they come from."""
    found = hlo.collectives(compiled.as_text(), where.chips)
    sources: dict[tuple[str, str], int] = {}
    for one in found:
        key = (one.kind, one.source)
        sources[key] = sources.get(key, 0) + one.total
    largest = sorted(sources.items(), key=lambda item: -item[1])[:12]
    return {
        "collectives": hlo.by_kind(found),
        "collective_bytes": sum(one.total for one in found),
        "largest_collectives": [
            {"kind": kind, "source": source, "bytes": size} for (kind, source), size in largest
        ],
    }
