"""Run as a program with eight CPU devices: measures what test_eight_devices.py asserts.

python tests/parallel/eight_devices.py FOLDER   (prints one JSON object on its last line)
"""

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import json
import tracemalloc
from pathlib import Path

import lrm_jax  # noqa: F401 - before jax

# isort: split
import jax
import numpy as np
import optax

from lrm_jax.parallel import hlo, rules
from lrm_jax.parallel.aot import estimate, programs
from lrm_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from lrm_jax.qwen3_vl import names, reference, save_pretrained, sharding, shards, weights
from lrm_jax.run.checkpoints import Checkpoints

sys.path.insert(0, str(Path(__file__).parent))
import iteration
import loaded
import tiny
import trained

MESHES = ("fsdp=8", "data=2,fsdp=2,tensor=2", "fsdp=4,tensor=2")
WHOLE = "data=2,fsdp=2,tensor=2"  # where gradients of the base are compared too
QUICK = {"xla_backend_optimization_level": 0}  # compiling takes longest, and is not what is tested


def place(mesh, adapters, base):
    homes = (
        rules.plan(adapters, sharding.LORA, mesh).shardings,
        rules.plan(base, sharding.PARAMS, mesh).shardings,
    )
    rows = jax.tree.map(lambda x: jax.device_put(x, batch_sharding(mesh)), tiny.rows())
    tables = jax.tree.map(lambda x: jax.device_put(x, replicated(mesh)), tiny.tables())
    return jax.device_put((adapters, base), homes), tables, rows


def networks() -> dict:
    """The errors of every mesh against one device, and the collectives of each program."""
    adapters, base = tiny.adapters(), tiny.base()
    train = tiny.loss_and_gradients

    def quick(function, *arguments):
        return jax.jit(function).lower(*arguments).compile(compiler_options=QUICK)

    with jax.default_matmul_precision("highest"):
        plain = adapters, base, tiny.tables(), tiny.rows()
        loss, grads = quick(train(whole=True), *plain)(*plain)
        out = {}
        for text in MESHES:
            mesh, whole = make_mesh(text), text == WHOLE
            (a, b), tables, rows = place(mesh, adapters, base)
            with jax.set_mesh(mesh):
                compiled = quick(train(whole), a, b, tables, rows)
            got = compiled(a, b, tables, rows)
            found = hlo.collectives(compiled.as_text(), 8)
            out[text] = {
                "loss": tiny.relative(got[0], loss),
                "adapter_gradients": tiny.relative(got[1][0], grads[0]),
                "collectives": hlo.by_kind(found),
                "bytes": rules.shard_bytes(base, jax.tree.map(lambda x: x.sharding, b)),
            }
            if whole:
                out[text]["base_gradients"] = tiny.relative(got[1][1], grads[1])
                out[text]["loops"] = [turns for _, turns in hlo.loops(compiled.as_text())]
                with jax.set_mesh(mesh):
                    found = quick(tiny.answers, a, b, tables, rows)(a, b, tables, rows)
                answered = quick(tiny.answers, *plain)(*plain)
                out[text]["answers"] = tiny.relative(found, answered)
        out["size"] = sum(x.nbytes for x in jax.tree.leaves(base))
    return out


def loading(folder: Path) -> dict:
    """Sharded loading against the plain one: equality, bytes read, peak of Python's memory."""
    plain = weights.read_params(folder, tiny.CONFIG)
    read = {"bytes": 0}
    original = weights._Tensors.read_part

    def counted(self, name, index):
        part = original(self, name, index)
        read["bytes"] += part.nbytes
        return part

    weights._Tensors.read_part = counted
    out = {"size": sum(x.nbytes for x in jax.tree.leaves(plain))}
    for label, mesh, staging in (
        ("cut", make_mesh("fsdp=8"), shards.STAGING_BYTES),
        ("cut both ways", make_mesh("data=2,fsdp=2,tensor=2"), shards.STAGING_BYTES),
        ("by layers", make_mesh("data=4,fsdp=2"), 0),
    ):
        shards.STAGING_BYTES = staging
        read["bytes"] = 0
        homes = rules.plan(plain, sharding.PARAMS, mesh).shardings
        got = weights.read_params(folder, tiny.CONFIG, shardings=homes)
        jax.tree.map(np.testing.assert_array_equal, got, plain)
        assert all(jax.tree.leaves(jax.tree.map(lambda x, s: x.sharding == s, got, homes)))
        out[label] = read["bytes"]
    shards.STAGING_BYTES = 256 << 20
    # The peak, on a leaf that is large beside everything else: 16 layers of 2 MB, cut in eight.
    leaf = names.Leaf(("x", "kernel"), tuple(f"t{i}" for i in range(16)), (512, 1024), True)
    home = rules.plan({"x": np.empty((16, 1024, 512))}, [("x", ("fsdp", "tensor"))], mesh)
    rng = np.random.default_rng(0)
    files = {n: rng.normal(size=(512, 1024)).astype(np.float32) for n in leaf.names}

    def slices(name, index):
        return files[name][index].copy()

    shards.STAGING_BYTES = 0
    tracemalloc.start()
    got = shards.assemble(leaf, np.dtype(np.float32), home.shardings["x"], slices)
    out["peak"] = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    expected = np.stack([files[n].T for n in leaf.names])
    np.testing.assert_array_equal(got, expected)
    tracemalloc.start()
    got = shards.assemble(leaf, np.dtype(np.float32), None, slices)  # whole, without a mesh
    out["peak_whole"] = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(got, expected)
    out["leaf"] = expected.nbytes
    return out


def checkpoints(folder: Path, base_folder: Path) -> dict:
    """Adapters and optimiser saved on one mesh, restored on others, base by reference."""
    adapters = tiny.adapters()
    optimiser = optax.adamw(1e-3)
    state = {"adapters": adapters, "optimiser": optimiser.init(adapters)}
    state = optimiser.update(adapters, state["optimiser"], adapters)
    state = {"adapters": adapters, "optimiser": state[1]}

    def home(mesh):
        own = rules.plan(adapters, sharding.LORA, mesh).shardings
        moments = rules.follow(state["optimiser"], adapters, own, mesh)
        return {"adapters": own, "optimiser": moments}

    first = make_mesh("data=2,fsdp=2,tensor=2")
    metadata = {"base": reference.of(base_folder)}
    with Checkpoints(folder, "tiny") as store:
        store.save(3, jax.device_put(state, home(first)), metadata)
    moment = home(first)["optimiser"][0].mu["language_model"]["layers"]["self_attn"]["q_proj"]["b"]
    out = {"moment": str(moment.spec), "restored": []}
    for text, devices in (("fsdp=8", 8), ("tensor=4,fsdp=2", 8), ("fsdp=1", 1)):
        mesh = make_mesh(text, jax.devices()[:devices])
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state)
        like = jax.device_put(zeros, home(mesh))
        with Checkpoints(folder, "tiny") as store:
            found = store.latest_valid(like)
        jax.tree.map(np.testing.assert_array_equal, found.state, state)
        for leaf, wanted in zip(
            jax.tree.leaves(found.state), jax.tree.leaves(home(mesh)), strict=True
        ):
            assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), (leaf.sharding, wanted)
        out["restored"].append([text, found.step])
    out["base"] = str(reference.check(found.metadata["base"]))
    return out


def predictions() -> dict:
    """Bytes between devices for a tiny score program: by hand, and in the compiled program."""
    mesh = make_mesh("fsdp=8")
    shape = programs.Shape(rows=8, tokens=20, images=2, side=16)
    program = programs.build("score", tiny.CONFIG, mesh, shape, rank=tiny.RANK)
    compiled = program.lower(mesh).compile(compiler_options=QUICK)
    found = hlo.collectives(compiled.as_text(), 8)
    by_hand = estimate.collective_bytes("score", program, tiny.CONFIG, shape, mesh)
    return {"by_hand": by_hand, "compiled": hlo.by_kind(found)}


def main() -> None:
    folder = Path(sys.argv[1])
    save_pretrained(folder / "base", tiny.CONFIG, tiny.base())
    print(
        json.dumps(
            {
                "devices": jax.device_count(),
                "networks": networks(),
                "loading": loading(folder / "base"),
                "checkpoints": checkpoints(folder / "checkpoints", folder / "base"),
                "predictions": predictions(),
                "iteration": iteration.measured(QUICK),
                "loaded": loaded.measured(folder / "base"),
                "trained": trained.measured(folder / "trained"),
            }
        )
    )


if __name__ == "__main__":
    main()
