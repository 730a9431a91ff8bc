"""What a compiled program sends between devices, read from the text of its optimised HLO.

A collective inside a loop counts once for each turn of the loop. XLA's TPU compiler spreads one
collective over a chain of fusions that run beside computation, inner loops included, each of which
shows it again under the same channel: a chain counts once, as often as its outermost link.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b(pred|[sufc]\d+\w*|bf16)\[([\d,<=]*)\]")
_HEADER = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s+\(.*\)\s*->.*\{\s*$")
_END = re.compile(r"\}\s*(,|$)")  # and not "}}", a line of a kernel's own description
_NAME = re.compile(r"^\s+(?:ROOT\s+)?%?([\w.\-]+)\s+=\s+")
_MESH_GROUPS = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^)]*(?:\([^)]*\))?\))?\s*\{([^}]*)\}"
)
_APPLIED = re.compile(r"\bto_apply=")  # of a call; other operations apply it to pairs of numbers
_CALLED = re.compile(r"\b(?:calls|body|called_computations|branch_computations|\w+_computation)=")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: its result's type as text, its operation, what stands behind."""

    name: str
    type: str
    operation: str
    rest: str
    is_root: bool = False

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest[: _closing(self.rest, 0)])


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program.

    kind: of `KINDS`. count: how often it runs. group: devices that take part with each other.
    received: bytes that one device receives from others each time it runs.
    """

    kind: str
    count: int
    group: int
    received: int
    source: str
    chain: str | None = None

    @property
    def total(self) -> int:
        return self.count * self.received


@dataclasses.dataclass(frozen=True)
class Module:
    """Computations by name, and the name of the one that is run."""

    computations: dict[str, list[Instruction]]
    entry: str


def parse(text: str) -> Module:
    """The computations of `compiled.as_text()`; ValueError if there is no entry."""
    computations: dict[str, list[Instruction]] = {}
    entry, body = None, None
    for line in text.splitlines():
        if body is None:
            if header := _HEADER.match(line):
                body = computations.setdefault(header[2], [])
                entry = header[2] if header[1] else entry
        elif _END.match(line):
            body = None
        elif instruction := _instruction(line):
            body.append(instruction)
    if entry is None:
        raise ValueError("no ENTRY computation: this is no text of an HLO module")
    return Module(computations, entry)


def collectives(text: str, devices: int) -> list[Collective]:
    """Every collective of an HLO module compiled for `devices` devices."""
    module = parse(text)
    single, chains = [], {}
    for found in _of_scope(module, module.entry, devices, 1):
        if found.group <= 1:
            continue
        if found.chain is None:
            single.append(found)
        elif found.chain not in chains or found.count < chains[found.chain].count:
            chains[found.chain] = found
    return [*single, *chains.values()]


def by_kind(found: list[Collective]) -> dict[str, dict[str, int]]:
    """For each kind that occurs: how many run, and the bytes that one device receives."""
    out: dict[str, dict[str, int]] = {}
    for one in found:
        entry = out.setdefault(one.kind, {"count": 0, "bytes": 0})
        entry["count"] += one.count
        entry["bytes"] += one.total
    return out


def loops(text: str) -> list[tuple[str, int | None]]:
    """(operation's name in the source, turns) of every loop; None where they are not constant."""
    module = parse(text)
    return [
        (_source(i.rest), _turns(module, body, i))
        for body in module.computations.values()
        for i in body
        if i.operation == "while"
    ]


def type_bytes(text: str) -> int:
    """Bytes of the arrays in a type, `(f32[2,3]{1,0}, s32[])` say; layouts are not padded."""
    total = 0
    for kind, dims in _ARRAY.findall(text):
        count = math.prod(int(d.lstrip("<=")) for d in dims.split(",") if d)
        bits = _BITS.get(kind) or int(re.sub(r"^\D+(\d+).*", r"\1", kind))
        total += count * bits // 8
    return total


def _instruction(line: str) -> Instruction | None:
    if not (name := _NAME.match(line)):
        return None
    rest = line[name.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    operation, bracket, rest = rest.partition("(")
    root = line.lstrip().startswith("ROOT")
    return Instruction(name[1], kind, operation, bracket + rest, root) if bracket else None


def _closing(text: str, start: int) -> int:
    depth = 0
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return at
    return len(text) - 1


def _of_scope(module: Module, name: str, devices: int, times: int) -> Iterator[Collective]:
    """Collectives of a computation that runs `times` times, calls and inner loops included."""
    for owner, instruction in _flat(module, name, ()):
        if instruction.operation == "while":
            body = re.search(r"\bbody=%?([\w.\-]+)", instruction.rest)[1]
            turns = _turns(module, owner, instruction)
            yield from _of_scope(module, body, devices, times * (1 if turns is None else turns))
            continue
        kind = instruction.operation.removesuffix("-start")
        if kind not in KINDS:
            continue
        group = _group(instruction.rest, devices)
        chain = re.search(r"channel_id=(\d+).*chain_id=", instruction.rest)
        yield Collective(
            kind,
            times,
            group,
            _received(kind, instruction, group),
            _source(instruction.rest),
            chain and chain[1],
        )


def _flat(
    module: Module, name: str, callers: tuple[str, ...]
) -> Iterator[tuple[list[Instruction], Instruction]]:
    """Instructions of a computation and of what it calls, each with the computation that it stands
    in; loops unopened."""
    owner = module.computations.get(name, [])
    for instruction in owner:
        if instruction.operation == "while":
            yield owner, instruction
            continue
        if instruction.operation == "fusion" and "all-reduce-scatter" in instruction.rest:
            # The TPU's reduce-scatter: a fusion of an all-reduce and of the slice that is kept.
            inner = module.computations[re.search(r"calls=%?([\w.\-]+)", instruction.rest)[1]]
            for one in inner:
                if one.operation == "all-reduce":
                    kept = dataclasses.replace(one, operation="reduce-scatter")
                    yield inner, dataclasses.replace(kept, type=instruction.type)
            continue
        yield owner, instruction
        pattern = _APPLIED if instruction.operation == "call" else _CALLED
        for match in pattern.finditer(instruction.rest):
            where = instruction.rest[match.end() :]
            listed = where[1 : where.index("}")] if where.startswith("{") else where
            names = re.findall(r"%?([\w.\-]+)", listed)
            for called in names if where.startswith("{") else names[:1]:
                if called not in callers:
                    yield from _flat(module, called, (*callers, name))


def _turns(module: Module, owner: list[Instruction], loop: Instruction) -> int | None:
    """How often a loop's body runs: as XLA noted it, or from its counter (start, step, end), where
    start and step are 0 and 1 unless they show as constants."""
    if known := re.search(r'known_trip_count"?:\s*\{"n":"?(\d+)', loop.rest):
        return int(known[1])
    condition = _called(module, loop, "condition")
    ends = [v for one in condition if (v := _constant(one)) is not None]
    counter = [
        int(re.search(r"index=(\d+)", one.rest)[1])
        for one in condition
        if one.operation == "get-tuple-element"
    ]
    if len(ends) != 1 or len(counter) != 1:
        return None
    start, step = 0, 1
    here = {one.name: one for one in owner}
    initial = here.get(loop.operands[0])
    if initial is not None and initial.operation == "tuple":
        first = here.get(initial.operands[counter[0]])
        start = _constant(first) or 0
    body = _called(module, loop, "body")
    inside = {one.name: one for one in body}
    root = next((one for one in body if one.is_root and one.operation == "tuple"), None)
    after = inside.get(root.operands[counter[0]]) if root else None
    if after is not None and after.operation == "add":
        steps = [_constant(inside.get(operand)) for operand in after.operands]
        step = next((v for v in steps if v), 1)
    return max(0, -(-(ends[0] - start) // step))


def _called(module: Module, instruction: Instruction, attribute: str) -> list[Instruction]:
    name = re.search(rf"\b{attribute}=%?([\w.\-]+)", instruction.rest)[1]
    return module.computations.get(name, [])


def _constant(instruction: Instruction | None) -> int | None:
    if instruction is None or instruction.operation != "constant":
        return None
    value = re.match(r"\((\d+)\)", instruction.rest)
    return int(value[1]) if value else None


def _group(rest: str, devices: int) -> int:
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", rest):
        return 2 if pairs[1] else 1
    if mesh := _MESH_GROUPS.search(rest):
        sizes = {k: int(v) for k, v in re.findall(r"'([\w.]+)'=(\d+)", mesh[1])}
        parts = re.findall(r"'([\w.]+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part) if part else sizes[axis] for axis, part in parts)
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", rest):
        return int(iota[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(listed[1].split(","))
    if re.search(r"replica_groups=(?!\{\})", rest):
        raise ValueError(f"replica groups of an unknown form: {rest[:300]}")
    return devices  # none are named: all


def _received(kind: str, instruction: Instruction, group: int) -> int:
    """Bytes that one device gets from the others, if none gets a byte twice that it could add up or
    keep (rings reach this)."""
    text = instruction.type
    if instruction.operation in ("all-gather-start", "collective-permute-start"):
        # The type of a start is (operands, results, ...): the results are the second half of the
        # arrays, or one of a pair.
        inner = text[1 : _closing(text, 0)]
        parts = _top_level(inner)
        text = parts[1] if len(parts) > 1 else text
    size = type_bytes(text)
    if kind == "reduce-scatter":
        return size * (group - 1)
    if kind == "collective-permute":
        return size
    return size * (group - 1) // group * (2 if kind == "all-reduce" else 1)


def _top_level(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def _source(rest: str) -> str:
    found = re.search(r'op_name="([^"]*)"', rest)
    return found[1] if found else ""
