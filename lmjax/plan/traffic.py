"""The bytes of main memory that a compiled program reads and writes, and its time.

A fusion reads its operands and writes its result, nothing in between; of an array that
it only cuts a slice from, or writes a slice into, only the slice counts.
"""

import collections
import dataclasses
from collections.abc import Mapping

from lmjax.plan.hlo import Instruction, Module, Shape
from lmjax.plan.products import instruction_flops

# These give names to memory, or hold instructions that are counted themselves.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call",
    "conditional", "after-all", "partition-id", "replica-id", "iota", "opt-barrier",
    "async-start", "async-update", "async-done", "copy-done", "add-dependency",
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice")
_RENAMES = ("bitcast", "reshape", "convert", "copy", "transpose", "tuple")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Bytes of main memory that a step moves, and seconds that its parts take at best.

    seconds: of each instruction the longer of its products at peak and its bytes at
    full bandwidth, summed up; without collectives and attention kernels.
    """

    bytes: float
    seconds: float


def measure_work(
    module: Module, *, flops: Mapping[str, float], bandwidth: float
) -> Work:
    """Return what a step costs a device.

    Args:
      module: its program.
      flops: its peak a second by the dtype of HLO ("bf16", "f32").
      bandwidth: bytes a second of its main memory.
    """
    total = seconds = 0.0
    for name, instructions in module.computations.items():
        runs = module.runs[name]
        if not runs or name in module.fused:
            continue
        for instruction in instructions:
            if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
                continue
            size = _bytes_moved(module, name, instruction)
            total += runs * size
            busy = sum(
                amount / flops[dtype]
                for dtype, amount in instruction_flops(
                    module, name, instruction
                ).items()
                if dtype in flops
            )
            seconds += runs * max(busy, size / bandwidth)
    return Work(bytes=total, seconds=seconds)


def _bytes_moved(module: Module, computation: str, instruction: Instruction) -> float:
    known = module.types[computation]
    operands = [known[n].shapes for n in instruction.operands if n in known]
    sizes = [sum(_main(s) for s in shapes) for shapes in operands]
    result = sum(_main(shape) for shape in instruction.shapes)
    if instruction.opcode in _SLICES or instruction.opcode == "gather":
        return 2 * result
    if instruction.opcode == "dynamic-update-slice":
        return 2 * sizes[1] if len(sizes) > 1 else result
    if instruction.opcode != "fusion":
        return sum(sizes) + result
    inner = module.computations.get(instruction.attribute("calls"), [])
    return _fusion_bytes(inner, sizes, result)


def _fusion_bytes(inner: list[Instruction], sizes: list[float], result: float) -> float:
    users = collections.defaultdict(list)
    for instruction in inner:
        for operand in instruction.operands:
            users[operand].append(instruction)
    known = {i.name: i for i in inner}
    updates = [i for i in inner if i.opcode == "dynamic-update-slice"]
    total = 0.0
    for instruction in inner:
        if instruction.opcode != "parameter":
            continue
        number = int(instruction.arguments or 0)
        size = sizes[number] if number < len(sizes) else 0.0
        uses = users[instruction.name]
        if uses and all(
            use.opcode == "dynamic-slice" or _is_updated(use, instruction.name)
            for use in uses
        ):
            read = sum(i.bytes for i in uses if i.opcode == "dynamic-slice")
            size = min(size, read)
        total += size
    if updates and _roots_are(updates, inner):
        result = sum(
            known[i.operands[1]].bytes for i in updates if i.operands[1] in known
        )
    return total + result


def _is_updated(instruction: Instruction, name: str) -> bool:
    return (
        instruction.opcode == "dynamic-update-slice" and instruction.operands[0] == name
    )


def _roots_are(updates: list[Instruction], inner: list[Instruction]) -> bool:
    """Return whether a fusion's result is arrays with slices written into them."""
    known = {i.name: i for i in inner}
    root = next((i for i in inner if i.is_root), None)
    names = {update.name for update in updates}
    while root is not None and root.opcode in _RENAMES and root.name not in names:
        root = known.get(root.operands[0]) if root.operands else None
    return root is not None and root.name in names


def _main(shape: Shape) -> float:
    return 0.0 if shape.on_chip else shape.bytes
