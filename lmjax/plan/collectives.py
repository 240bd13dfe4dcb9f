"""What the devices send each other in a compiled program, by the axes of the mesh."""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from lmjax.plan.hlo import Module

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """All collectives of one kind, dtype and mesh axis in one step.

    count: how often they run; bytes: that one device sends, by ring algorithms; whole:
    the size of the gathered, reduced or sent arrays; asynchronous: the share of bytes
    that are sent while the device computes.
    """

    kind: str
    axes: tuple[str, ...]
    dtype: str
    count: int
    bytes: float
    whole: float
    asynchronous: float


def find_collectives(module: Module, mesh: Mapping[str, int]) -> list[Collective]:
    """Return the collectives of a program, those that send most first.

    Args:
      module: of one device.
      mesh: the size of each axis.
    """
    sums: dict[tuple[str, tuple[str, ...], str], list[float]] = {}
    for found in _once_each(_find(module, mesh)):
        key = (found.kind, found.axes, found.dtype)
        total = sums.setdefault(key, [0, 0.0, 0.0, 0.0])
        for i, value in enumerate(
            (1, found.bytes, found.whole, found.bytes * found.asynchronous)
        ):
            total[i] += value * found.count
    rows = [
        Collective(
            kind=kind,
            axes=axes,
            dtype=dtype,
            count=int(count),
            bytes=sent,
            whole=whole,
            asynchronous=hidden / sent if sent else 0.0,
        )
        for (kind, axes, dtype), (count, sent, whole, hidden) in sums.items()
    ]
    return sorted(rows, key=lambda row: -row.bytes)


def _once_each(found: Sequence[tuple[tuple[str, ...], Collective]]) -> list[Collective]:
    """Return each collective once: a start, its steps and its end share a channel."""
    once: dict[tuple[str, ...], Collective] = {}
    for key, row in found:
        old = once.get(key, row)
        hidden = max(old.asynchronous, row.asynchronous)
        once[key] = dataclasses.replace(old, asynchronous=hidden)
    return list(once.values())


def _find(
    module: Module, mesh: Mapping[str, int]
) -> list[tuple[tuple[str, ...], Collective]]:
    wrapped = {
        instruction.attribute(name)
        for _, instruction, _ in module
        if instruction.opcode in ("async-start", "call-start")
        for name in ("calls", "to_apply", "called_computations")
    }
    rows: list[tuple[tuple[str, ...], Collective]] = []
    for computation, instruction, runs in module:
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        read = module.operand_shapes(computation, instruction)
        size, dtype = sum(s.bytes for s in read), read[0].dtype if read else "?"
        if kind == "all-reduce" and "all-reduce-scatter" in computation:
            kind = "reduce-scatter"  # as the TPU's compiler writes it
        members, axes = _group(instruction.attributes, mesh)
        if members < 2:
            continue
        hidden = (
            instruction.opcode.endswith("-start")
            or computation in wrapped
            # The steps of v5e, and the programs of the SparseCore of others.
            or computation.startswith(("async_collective_fusion", "called_computation"))
        )
        channel = instruction.attribute("channel_id") or instruction.name
        key: tuple[str, ...] = (kind, channel, str(runs))
        if kind == "collective-permute":
            key = (*key, instruction.name)
        whole = size * members if kind == "all-gather" else size
        row = Collective(
            kind=kind,
            axes=axes,
            dtype=dtype,
            count=runs,
            bytes=_sent(kind, size, members),
            whole=whole,
            asynchronous=float(hidden),
        )
        rows.append((key, row))
    return rows


def _sent(kind: str, size: float, members: int) -> float:
    """Return the bytes that a device sends of an operand of `size` bytes."""
    share = (members - 1) / members
    match kind:
        case "all-gather":
            return size * (members - 1)
        case "all-reduce":
            return 2 * size * share
        case "reduce-scatter" | "all-to-all" | "ragged-all-to-all":
            return size * share
    return size


def _group(attributes: str, mesh: Mapping[str, int]) -> tuple[int, tuple[str, ...]]:
    """Return how many devices take part, and over which axes of the mesh they lie."""
    pairs = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", attributes)
    if pairs:
        numbers = np.array(re.findall(r"(\d+),(\d+)", pairs[1]), int).reshape(-1, 2)
        axes = {axis for pair in numbers for axis in _axes(pair.tolist(), mesh)}
        return 2, tuple(axis for axis in mesh if axis in axes)
    first = _first_group(attributes, math.prod(mesh.values()))
    return len(first), _axes(first, mesh)


def _first_group(attributes: str, num_devices: int) -> Sequence[int]:
    """Return the first of an instruction's groups, in any of the ways to write them."""
    named = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes)
    if named:
        sizes = {a: int(n) for a, n in re.findall(r"'(\w+)'=(\d+)", named[1])}
        return _named_group(sizes, named[2])
    iota = re.search(
        r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    )
    if iota:
        dims = [int(d) for d in iota[3].split(",")]
        devices = np.arange(math.prod(dims)).reshape(dims)
        if iota[4]:
            devices = devices.transpose([int(d) for d in iota[4].split(",")])
        return [int(d) for d in devices.reshape(int(iota[1]), int(iota[2]))[0]]
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return [int(d) for d in listed[1].split(",")]
    return range(num_devices)  # {}: all


def _named_group(sizes: Mapping[str, int], text: str) -> list[int]:
    """Return the first group over named axes: whole ones, or parts `'a':(PRE)SIZE`."""
    devices = np.arange(math.prod(sizes.values())).reshape([*sizes.values()])
    taken = []
    for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", text):
        place = [*sizes].index(name)
        if not size:
            taken.append((place, slice(None)))
            continue
        step = sizes[name] // (int(before) * int(size))
        taken.append((place, slice(0, step * int(size), step)))
    index: list[int | slice] = [0] * len(sizes)
    for place, part in taken:
        index[place] = part
    return [int(d) for d in np.asarray(devices[tuple(index)]).reshape(-1)]


def _axes(devices: Sequence[int], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Return the axes along which some devices differ."""
    places = np.unravel_index(np.asarray(devices, int), [*mesh.values()])
    return tuple(
        axis for axis, place in zip(mesh, places, strict=True) if len({*place}) > 1
    )


def total_bytes(collectives: Sequence[Collective]) -> float:
    """Return the bytes that one device sends in a step."""
    return sum(row.bytes for row in collectives)


def bytes_by_axes(collectives: Sequence[Collective]) -> dict[tuple[str, ...], float]:
    """Return the bytes that one device sends over each set of axes."""
    sums: collections.Counter[tuple[str, ...]] = collections.Counter()
    for row in collectives:
        sums[row.axes] += row.bytes  # type: ignore[assignment]
    return dict(sums)
