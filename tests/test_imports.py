"""The import graph goes one way: along the road the data travels (WORKSPACE.md)."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "lrm_jax"

# A part may import itself and what stands before it.
ROAD = (
    "run", "parallel", "lora", "qwen3_vl", "episodes", "envs", "render", "labels", "rewards",
    "reward_training", "policies", "rl", "evaluation", "report", "jobs", "benchmarks",
)  # fmt: skip
# Modules directly under lrm_jax/ that are started by users, not imported; they see everything.
DOORS = ("train", "score", "evaluate", "doctor")
# A door inside a part: the modules at or below this name see everything, like the doors above.
INNER_DOORS = ("parallel.aot",)
# Files only, importable from everywhere; imports nothing.
DATA = ("assets",)
# Stricter than the order: what a part may import at most.
ONLY = {
    "run": (),
    "parallel": ("run",),
    "lora": ("run", "parallel"),
    "qwen3_vl": ("run", "parallel", "lora"),
    "episodes": ("run",),
    "envs": ("run", "episodes"),
    "render": ("run",),
    "labels": ("run", "episodes"),
    "evaluation.metrics": ("run",),
    "evaluation.stats": ("run",),
}


def imported_modules(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything of lrm_jax that a file uses, wherever in the file.

    Found are `import`, `from ... import` (relative ones resolved), imports inside functions,
    attribute access through the lazy package (`lrm_jax.envs.make`), and
    `import_module("lrm_jax....")`; of an f-string the constant part before the first placeholder
    counts.
    """
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            for name in node.names:
                yield node.lineno, f"{base}.{name.name}"
        elif isinstance(node, ast.Attribute):
            dotted = _dotted(node)
            if dotted.startswith("lrm_jax."):
                yield node.lineno, dotted
        elif isinstance(node, ast.Call) and node.args:
            called = _dotted(node.func).rpartition(".")[2]
            if called in ("import_module", "__import__"):
                yield node.lineno, _constant_start(node.args[0])


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return ""


def _constant_start(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    return str(node.value) if isinstance(node, ast.Constant) else ""


def violations(package: Path) -> list[str]:
    """What the files under `package` (a folder named lrm_jax) import against the direction."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        parts = parts[:-1] if is_package else parts
        if len(parts) == 1:  # the package's own __init__: lazy names, and the platform before all
            continue
        part = parts[1]
        for line, name in imported_modules(
            path.read_text(encoding="utf-8"), ".".join(parts), is_package
        ):
            target = name.split(".")
            if target[0] != "lrm_jax" or len(target) < 2 or target[1].startswith("__"):
                continue
            problem = _problem(part, ".".join(parts[1:]), target[1], ".".join(target[1:]))
            if problem:
                found.append(f"{path.relative_to(package.parent)}:{line}: {name}: {problem}")
    return found


def _problem(part: str, module: str, target: str, name: str) -> str | None:
    if _inside(name, INNER_DOORS) and not _inside(module, INNER_DOORS):
        return f"{name} is a door"
    if part in DOORS or _inside(module, INNER_DOORS):
        return f"{target} is a door" if target in DOORS else None
    if part not in (*ROAD, *DATA):
        return f"{part} has no place on the road: add it to ROAD or DOORS"
    if target == part or target in DATA:
        return None
    if target not in ROAD:
        return f"{target} is a door or unknown"
    for name in (module, part):
        if name in ONLY:
            return None if target in ONLY[name] else f"{name} imports only {ONLY[name] or 'itself'}"
    if part in DATA or ROAD.index(target) > ROAD.index(part):
        return f"{part} stands before {target}"
    return None


def _inside(module: str, doors: tuple[str, ...]) -> bool:
    return any(module == door or module.startswith(f"{door}.") for door in doors)


def test_the_package_keeps_the_direction():
    assert violations(PACKAGE) == []


def test_every_folder_is_a_package():
    """A folder of modules without __init__.py would be left out of an installed lrm_jax."""
    lacking = {p.parent for p in PACKAGE.rglob("*.py") if not (p.parent / "__init__.py").exists()}
    assert lacking == set()


@pytest.mark.parametrize(
    ("file", "code", "caught"),
    [
        ("envs/a.py", "import lrm_jax.rewards", True),
        ("envs/a.py", "from lrm_jax.rewards import heads", True),
        ("envs/a.py", "from lrm_jax import rewards", True),
        ("envs/a.py", "import lrm_jax\nx = lrm_jax.rewards.heads", True),
        ("envs/a.py", "from ..rewards import heads", True),
        ("envs/a.py", "from .. import rewards", True),
        ("envs/__init__.py", "from ..rewards import heads", True),
        ("envs/__init__.py", "from .rewards import heads", False),
        ("envs/a.py", "def f():\n    from lrm_jax.rl import ppo", True),
        ("envs/a.py", "if TYPE_CHECKING:\n    from lrm_jax.rl import ppo", True),
        ("envs/a.py", "importlib.import_module('lrm_jax.rl')", True),
        ("envs/a.py", "importlib.import_module(f'lrm_jax.rl.{x}')", True),
        ("envs/a.py", "from lrm_jax import train", True),
        ("envs/a.py", "from lrm_jax import no_such_part", True),
        ("envs/a.py", "from lrm_jax.run import config\nfrom .. import episodes", False),
        ("envs/a.py", "import lrm_jax\nx = lrm_jax.__version__\nimport rewards", False),
        ("envs/deep/a.py", "from ..b import c", False),
        ("envs/deep/a.py", "from ...rewards import c", True),
        ("qwen3_vl/a.py", "from lrm_jax import episodes", True),
        ("labels/a.py", "from lrm_jax import envs", True),
        ("run/a.py", "from lrm_jax import parallel", True),
        ("rewards/a.py", "from lrm_jax.labels import keyframes", False),
        ("evaluation/metrics.py", "from lrm_jax.rewards import heads", True),
        ("evaluation/closed_loop.py", "from lrm_jax.rewards import heads", False),
        ("rewards/a.py", "from lrm_jax.assets import folder", False),
        ("assets/__init__.py", "from lrm_jax import rewards", True),
        ("new_part/a.py", "from lrm_jax import run", True),
        ("parallel/aot/a.py", "from lrm_jax import rewards", False),
        ("parallel/aot/__init__.py", "from lrm_jax import rewards", False),
        ("parallel/aot/a.py", "from lrm_jax import train", True),
        ("parallel/mesh.py", "from lrm_jax import qwen3_vl", True),
        ("parallel/a.py", "from lrm_jax.parallel.aot import programs", True),
        ("lora/a.py", "from lrm_jax.parallel.aot import programs", True),
        ("score.py", "from lrm_jax import report", False),
        ("score.py", "from lrm_jax import train", True),
        ("__init__.py", "from lrm_jax import rl", False),
    ],
)  # fmt: skip
def test_the_checker_sees_a_planted_violation(tmp_path, file, code, caught):
    path = tmp_path / "lrm_jax" / file
    path.parent.mkdir(parents=True)
    path.write_text(textwrap.dedent(code))
    assert bool(violations(tmp_path / "lrm_jax")) == caught
