"""The texts that a Python function builds, read from its source and never executed.

Prompts of published code are put together from constants, f-strings and lists that depend on which
images there are. `Reader` follows the few statements that do this; whatever else a function
computes is unknown to it, and a text with something unknown in it is unknown.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrm_jax.run.errors import UserError

TASK = "<task>"  # what stands for the sentence in the texts that are read


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image that a function was given: initial, previous, current or goal."""

    kind: str


class _Unknown:
    pass


UNKNOWN = _Unknown()


@dataclasses.dataclass(frozen=True)
class Function:
    """A function of a checkout: its file, its syntax tree, the texts that its module defines."""

    path: Path
    node: ast.FunctionDef
    constants: Mapping[str, str]

    @property
    def where(self) -> str:
        return f"{self.path}:{self.node.lineno} {self.node.name}"


def modules(checkout: Path) -> Iterator[tuple[Path, ast.Module]]:
    """The Python files below a folder; UserError if there are none, or one cannot be parsed."""
    files = [p for p in sorted(checkout.rglob("*.py")) if p.is_file()]
    if not files:
        raise UserError(f"{checkout}: no Python file here; give a checkout of the released code")
    for path in files:
        try:
            yield path, ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{path}: not Python source that can be read ({error})") from error


def constants(module: ast.Module) -> dict[str, str]:
    """The module's names for texts."""
    found: dict[str, str] = {}
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = Reader(found, {}).value(node.value)
            if isinstance(value, str):
                found[node.targets[0].id] = value
    return found


def functions(checkout: Path) -> Iterator[Function]:
    """All functions of a checkout."""
    for path, module in modules(checkout):
        texts = constants(module)
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef):
                yield Function(path, node, texts)


def picture_kind(name: str) -> str | None:
    """What a parameter called `name` shows, None if it is no image."""
    if "goal" in name:
        return "goal"
    if "initial" in name:
        return "initial"
    if name.endswith("_a"):
        return "previous"
    if name.endswith("_b") or "image" in name or "observation" in name:
        return "current"
    return None


def read(function: Function, pictures: Sequence[str]) -> dict[str, Any]:
    """The function's variables after a call with these pictures: texts, lists, `Picture`s.

    A parameter whose name holds "task" or "instruction" is the sentence, `TASK`; one that
    `picture_kind` knows is that image, or None if it is not among `pictures`; others have their
    defaults.
    """
    arguments = function.node.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    positional = len(names) - len(arguments.kwonlyargs)
    defaults = dict(zip(names[positional - len(arguments.defaults) :], arguments.defaults))  # noqa: B905
    defaults |= {
        a.arg: d for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d
    }
    reader = Reader(function.constants, {})
    for name in names:
        kind = picture_kind(name)
        if "task" in name or "instruction" in name:
            reader.known[name] = TASK
        elif kind is not None:
            reader.known[name] = Picture(kind) if kind in pictures else None
        elif name in defaults:
            reader.known[name] = reader.value(defaults[name])
    reader.run(function.node.body)
    return reader.known


class Reader:
    """Follows assignments, `+=`, `.append` and `if`s whose condition is known."""

    def __init__(self, constants: Mapping[str, str], known: dict[str, Any]):
        self.constants, self.known = constants, known

    def run(self, body: Sequence[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.known[node.targets[0].id] = self.value(node.value)
            elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
                both = self.known.get(node.target.id, UNKNOWN), self.value(node.value)
                self.known[node.target.id] = self._sum(node.op, *both)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                self._append(node.value)
            elif isinstance(node, ast.If):
                test = self._truth(node.test)
                if test is not UNKNOWN:
                    self.run(node.body if test else node.orelse)
            elif isinstance(node, (ast.With, ast.Try)):
                self.run(node.body)

    def value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self.known.get(node.id, self.constants.get(node.id, UNKNOWN))
        if isinstance(node, ast.List):
            return [self.value(e) for e in node.elts]
        if isinstance(node, ast.JoinedStr):
            parts = [self.value(v) for v in node.values]
            return "".join(parts) if all(isinstance(p, str) for p in parts) else UNKNOWN
        if isinstance(node, ast.FormattedValue):
            return self.value(node.value)
        if isinstance(node, ast.BinOp):
            return self._sum(node.op, self.value(node.left), self.value(node.right))
        if isinstance(node, ast.Call):
            return self._call(node)
        return UNKNOWN

    def _call(self, node: ast.Call) -> Any:
        arguments = [self.value(a) for a in node.args]
        if isinstance(node.func, ast.Attribute):
            owner = self.value(node.func.value)
            if isinstance(owner, str):
                return self._of_text(owner, node, arguments)
        # Whatever converts an image gives that image.
        if len(arguments) == 1 and (arguments[0] is None or isinstance(arguments[0], Picture)):
            return arguments[0]
        return UNKNOWN

    def _of_text(self, owner: str, node: ast.Call, arguments: list[Any]) -> Any:
        name = node.func.attr
        named = {k.arg: self.value(k.value) for k in node.keywords}
        plain = all(isinstance(a, str) for a in (*arguments, *named.values()))
        if name == "join" and len(arguments) == 1 and isinstance(arguments[0], list):
            whole = all(isinstance(part, str) for part in arguments[0])
            return owner.join(arguments[0]) if whole else UNKNOWN
        if plain and name in ("strip", "replace", "format") and None not in named:
            try:
                return getattr(owner, name)(*arguments, **named)
            except (TypeError, ValueError, LookupError, AttributeError):
                return UNKNOWN
        return UNKNOWN

    def _sum(self, operation: ast.operator, left: Any, right: Any) -> Any:
        for kind in (str, list):
            if isinstance(left, kind) and isinstance(right, kind):
                return left + right if isinstance(operation, ast.Add) else UNKNOWN
        return UNKNOWN

    def _append(self, node: ast.Call) -> None:
        if (
            isinstance(node.func, ast.Attribute)
            and node.func.attr == "append"
            and len(node.args) == 1
            and isinstance(owner := self.value(node.func.value), list)
        ):
            owner.append(self.value(node.args[0]))

    def _truth(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            left, right = self.value(node.left), self.value(node.comparators[0])
            if left is UNKNOWN or right is UNKNOWN:
                return UNKNOWN
            if isinstance(node.ops[0], (ast.Is, ast.Eq)):
                return left == right
            if isinstance(node.ops[0], (ast.IsNot, ast.NotEq)):
                return left != right
            return UNKNOWN
        found = self.value(node)
        return UNKNOWN if found is UNKNOWN else bool(found)
