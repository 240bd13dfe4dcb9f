"""Read the text of a compiled program: its instructions, and how often each runs.

The cost analysis of the compiler counts the body of a loop once; here it counts as
often as the loop runs.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32,
    "u32": 32, "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64,
    "c64": 64, "c128": 128, "f8e4m3fn": 8, "f8e5m2": 8, "f8e4m3": 8, "f8e8m0fnu": 8,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,<=]*)\](\{[^}]*\})?")
_CALLS = re.compile(
    r"\b(calls|to_apply|body|condition|branch_computations|called_computations|"
    r"async_computation|true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
_HEADER = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s.*\{\s*$")
_START = re.compile(r"^\s+(ROOT\s+)?%?([\w.\-]+) = ")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array of an instruction's result or operand."""

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool = False  # in memory beside the TPU's cores, not in its main memory

    @property
    def size(self) -> int:
        """The number of its elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Its size in memory."""
        return self.size * BITS.get(self.dtype, 0) / 8


def shapes(text: str) -> list[Shape]:
    """Return the arrays that a type consists of, those in tuples too."""
    return [
        Shape(
            dtype,
            tuple(int(d.lstrip("<=")) for d in dims.split(",") if d),
            on_chip="S(1)" in layout,
        )
        for dtype, dims, layout in _ARRAY.findall(text)
        if dtype in BITS
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line of a computation."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    arguments: str  # the text in the brackets: names, or the value of a constant
    attributes: str  # the text after them
    is_root: bool

    @functools.cached_property
    def shapes(self) -> list[Shape]:
        """The arrays of its result."""
        return shapes(self.type)

    @property
    def bytes(self) -> float:
        """The size of its result."""
        return sum(shape.bytes for shape in self.shapes)

    @property
    def source(self) -> str:
        """What it was in the program, such as "jit(step)/transpose(jvp())/dot"."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    def attribute(self, name: str) -> str:
        """Return the value of an attribute, "" if it is not given."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
        return found[1].strip("{}%") if found else ""


class Module:
    """A compiled program.

    Attributes:
      computations: by name, their instructions in the order that they are run in.
      entry: the name of the computation that the program begins with.
      runs: how often each computation is run in one run of the program.
      num_unknown_loops: loops whose number of turns the text does not tell; their
        bodies count once.
    """

    def __init__(self, text: str) -> None:
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        self._read(text)
        self.num_unknown_loops = 0
        self.runs = self._count_runs()

    def __iter__(self) -> Iterator[tuple[str, Instruction, int]]:
        """Yield each instruction that is run, its computation, and how often."""
        for name, instructions in self.computations.items():
            if runs := self.runs[name]:
                for instruction in instructions:
                    yield name, instruction, runs

    @functools.cached_property
    def types(self) -> dict[str, dict[str, Instruction]]:
        """The instructions of each computation by their names."""
        return {
            name: {instruction.name: instruction for instruction in instructions}
            for name, instructions in self.computations.items()
        }

    @functools.cached_property
    def fused(self) -> set[str]:
        """The computations that are part of one instruction, such as a fusion."""
        whole = ("while", "conditional", "call", "async-start", "call-start")
        called = {
            callee
            for instructions in self.computations.values()
            for instruction in instructions
            if instruction.opcode not in whole
            for _, names in _CALLS.findall(instruction.attributes)
            for callee in re.findall(r"[\w.\-]+", names)
        }
        # What is called by a part of an instruction is one, too; callers come later.
        for name in reversed(self.computations):
            if name in called:
                for instruction in self.computations[name]:
                    for _, names in _CALLS.findall(instruction.attributes):
                        called |= {*re.findall(r"[\w.\-]+", names)}
        return called

    def operand_shapes(self, computation: str, instruction: Instruction) -> list[Shape]:
        """Return the arrays that an instruction reads."""
        known = self.types[computation]
        return [
            shape
            for name in instruction.operands
            if name in known
            for shape in known[name].shapes
        ] or shapes(instruction.arguments)

    def _read(self, text: str) -> None:
        current: list[Instruction] | None = None
        # A kernel's own JSON goes over several lines.
        text = re.sub(
            r"kernel_metadata=\{\n.*?\n\}", "kernel_metadata={}", text, flags=re.S
        )
        for line in text.splitlines():
            if line.startswith("}"):
                current = None
            elif current is None:
                header = None if line[:1].isspace() else _HEADER.match(line)
                if header and header[2] != "HloModule":
                    current = self.computations[header[2]] = []
                    self.entry = header[2] if header[1] else self.entry
            elif instruction := _parse(line):
                current.append(instruction)

    def _count_runs(self) -> collections.Counter[str]:
        """Return how often each computation runs; callers stand after the called."""
        runs: collections.Counter[str] = collections.Counter({self.entry: 1})
        for name in reversed(self.computations):
            if not runs[name]:
                continue
            for instruction in self.computations[name]:
                turns = 1
                if instruction.opcode == "while":
                    found = self._count_turns(instruction)
                    self.num_unknown_loops += found is None
                    turns = found or 1
                for key, called in _CALLS.findall(instruction.attributes):
                    times = turns if key in ("body", "condition") else 1
                    for callee in re.findall(r"[\w.\-]+", called):
                        if callee in self.computations:
                            runs[callee] += runs[name] * times
        return runs

    def _count_turns(self, loop: Instruction) -> int | None:
        """Return how often a loop runs: as is written, or by its counter."""
        known = re.search(r'known_trip_count[^\d]*?"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations.get(loop.attribute("condition"), [])
        body = self.computations.get(loop.attribute("body"), [])
        compared = _compared(condition)
        if compared is None:
            return None
        index, limit = compared
        step = _step(body, index)
        return max(1, -(-limit // step)) if step else None


def _parse(line: str) -> Instruction | None:
    start = _START.match(line)
    if not start:
        return None
    rest = line[start.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    type_, rest = rest[:end], rest[end:].lstrip()
    call = re.match(r"([\w\-]+)\(", rest)
    if not call:
        return None
    end = _closing(rest, call.end() - 1)
    arguments = rest[call.end() : end]
    return Instruction(
        name=start[2],
        type=type_,
        opcode=call[1],
        operands=tuple(re.findall(r"%([\w.\-]+)", arguments)),
        arguments=arguments,
        attributes=rest[end + 1 :],
        is_root=bool(start[1]),
    )


def _closing(text: str, start: int) -> int:
    """Return the place of the bracket that closes the one at `start`."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return start + found.start()
    return len(text)


def _constants(instructions: list[Instruction]) -> dict[str, int]:
    return {
        i.name: int(i.arguments)
        for i in instructions
        if i.opcode == "constant" and re.fullmatch(r"-?\d+", i.arguments)
    }


def _compared(condition: list[Instruction]) -> tuple[int, int] | None:
    """Return which element of a loop's tuple is compared with what number."""
    constants, known = _constants(condition), {i.name: i for i in condition}
    for instruction in reversed(condition):
        if instruction.opcode == "compare" or (
            instruction.opcode == "fusion" and instruction.is_root
        ):
            limit = [constants[n] for n in instruction.operands if n in constants]
            element = [
                known[name].attribute("index")
                for name in instruction.operands
                if name in known and known[name].opcode == "get-tuple-element"
            ]
            if limit and element:
                return int(element[0]), limit[0]
    return None


def _step(body: list[Instruction], index: int) -> int | None:
    """Return how far the counter goes in one turn; unrolled loops go by several."""
    constants, known = _constants(body), {i.name: i for i in body}
    root = next((i for i in body if i.is_root), None)
    if root is None or root.opcode != "tuple" or index >= len(root.operands):
        return None
    name, step = root.operands[index], 0
    for _ in range(16):
        instruction = known.get(name)
        if instruction is None or instruction.opcode not in ("copy", "add"):
            break
        if instruction.opcode == "add":
            step += sum(constants.get(o, 0) for o in instruction.operands)
        name = next((o for o in instruction.operands if o not in constants), "")
    return step or 1
