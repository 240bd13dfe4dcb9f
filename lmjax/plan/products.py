"""The FLOPs of matrix products in a compiled program, by the dtype they read."""

import collections
import math
import re

from lmjax.plan.hlo import Instruction, Module, Shape


def product_flops(module: Module) -> dict[str, float]:
    """Return the FLOPs of the products of one device, by the dtype of operands.

    A product of two dtypes is one of the wider. Kernels that do not tell what they
    compute (attention's) are not in it: `count_kernels`.
    """
    sums: dict[str, float] = collections.defaultdict(float)
    for computation, instruction, runs in module:
        for dtype, flops in _own_flops(module, computation, instruction).items():
            sums[dtype] += runs * flops
    return dict(sums)


def instruction_flops(
    module: Module, computation: str, instruction: Instruction
) -> dict[str, float]:
    """Return the FLOPs of one run of an instruction; a fusion's are those inside."""
    sums = collections.defaultdict(float, _own_flops(module, computation, instruction))
    if instruction.opcode == "fusion":
        name = instruction.attribute("calls")
        for inner in module.computations.get(name, []):
            for dtype, flops in instruction_flops(module, name, inner).items():
                sums[dtype] += flops
    return dict(sums)


def _own_flops(
    module: Module, computation: str, instruction: Instruction
) -> dict[str, float]:
    if instruction.opcode not in ("dot", "convolution"):
        return {}
    known = module.types[computation]
    read = [known[n].shapes[0] for n in instruction.operands[:2] if n in known]
    if len(read) < 2:
        return {}
    count = _dot_flops if instruction.opcode == "dot" else _convolution_flops
    widest = max(read, key=lambda shape: shape.bytes / max(shape.size, 1))
    return {widest.dtype: count(instruction, *read)}


def count_kernels(module: Module) -> dict[str, int]:
    """Return the calls of attention kernels in a step, by "forward" and "backward"."""
    sums: collections.Counter[str] = collections.Counter()
    for _, instruction, runs in module:
        if instruction.opcode.removesuffix("-start") != "custom-call":
            continue
        target = instruction.attribute("custom_call_target").strip('"')
        if "fmha" in target:
            sums["backward" if "Backward" in target else "forward"] += runs
        elif target == "tpu_custom_call":
            backward = "transpose(" in instruction.source
            sums["backward" if backward else "forward"] += runs
    return dict(sums)


def _dot_flops(instruction: Instruction, lhs: Shape, rhs: Shape) -> float:
    contracted = instruction.attribute("lhs_contracting_dims")
    depth = math.prod(lhs.dims[int(i)] for i in contracted.split(",") if i)
    return 2.0 * instruction.shapes[0].size * depth


def _convolution_flops(instruction: Instruction, lhs: Shape, rhs: Shape) -> float:
    """Return the FLOPs of a convolution, which on TPUs may be any matrix product.

    A batch of products is one whose window slides over the batch, dilated or padded so
    that each output meets one element of the kernel.
    """
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if not found:
        return 0.0
    labels, out_labels = found[2], found[3]
    out = instruction.shapes[0]
    window = instruction.attribute("window")
    slides = "lhs_dilate" in instruction.attributes or "pad=" in instruction.attributes
    depth = 1
    for size, label in zip(rhs.dims, labels, strict=True):
        if label == "o":
            continue
        batch = (
            label != "i"
            and (slides or "rhs_dilate" in window)
            and out.dims[out_labels.index(label)] > 1
        )
        depth *= 1 if batch else size
    return 2.0 * out.size * depth
