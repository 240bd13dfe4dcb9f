"""The memory of one device in a step, by what it is for.

The sizes of the state and of the batch are exact, and so is the sum, which is the
compiler's. What is between them is told apart by size: gradients and logits by
arithmetic, kept activations by what the loops over layers hand on; workspace is the
rest.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from lmjax.plan.hlo import Module
from lmjax.plan.least import gradient_bytes, state_bytes
from lmjax.training.compiled import Program
from lmjax.types import named_axes, named_leaves


def total_bytes(stats: Any) -> float:
    """Return the bytes that a device needs for what a program reads and makes.

    Args:
      stats: the compiler's `memory_analysis`.
    """
    made = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return float(stats.argument_size_in_bytes + stats.temp_size_in_bytes + made)


def memory_groups(
    program: Program, *, total: float, module: Module | None
) -> dict[str, float]:
    """Return the bytes of one device by group; they add up to `total`.

    Args:
      program: the experiment on its mesh.
      total: that the compiler needs.
      module: the compiled step; without it activations are part of the workspace.
    """
    groups = {name: size for name, size in state_bytes(program).items() if size}
    left = max(total - sum(groups.values()), 0.0)
    estimates = {
        "gradients": gradient_bytes(program),
        "activations": 0.0 if module is None else kept_bytes(program, module),
        "logits": logits_bytes(program),
    }
    # The compiler may reuse the memory of one for another.
    for name, size in estimates.items():
        groups[name] = min(size, left)
        left -= groups[name]
    groups["workspace"] = left
    return groups


def kept_bytes(program: Program, module: Module) -> float:
    """Return the bytes of activations that the loops over layers keep.

    They are the arrays of a loop that are stacked over the layers, as parameters are,
    but of the shape of none. Where layers are unrolled, there are no such loops.
    """
    axes = named_axes(program.model.axes)
    leaves = named_leaves(program.state_shapes.params)
    stacked = {n: leaf for n, leaf in leaves.items() if axes[n][0] == "layers"}
    depths = {leaf.shape[0] for leaf in stacked.values()}
    known = {
        tuple(sorted(shape))
        for leaf in stacked.values()
        for shape in (leaf.shape, leaf.sharding.shard_shape(leaf.shape))
    }
    most: dict[int, float] = {}
    for _, loop, _ in module:
        if loop.opcode != "while":
            continue
        for depth in depths:
            size = sum(
                shape.bytes
                for shape in loop.shapes
                if shape.dims[:1] == (depth,)
                and len(shape.dims) > 2
                and tuple(sorted(shape.dims)) not in known
                and not shape.on_chip
            )
            most[depth] = max(most.get(depth, 0.0), size)
    return sum(most.values())


def logits_bytes(program: Program) -> float:
    """Return the bytes of the logits that a device holds at once, in float32."""
    batch, config, mesh = program.batch_shapes(), program.config, program.mesh.shape
    if "targets" not in batch:
        return 0.0
    parts = math.prod(mesh.values()) * config.num_microbatches
    size = batch["targets"].size * program.model.config.vocab_size * 4 / parts
    budget = getattr(config.task, "logits_gigabytes", 0.0) * 1e9
    return size / math.ceil(size / budget) if budget else size


def parse_needed(message: str) -> float | None:
    """Return the bytes that a program needs, by the TPU compiler's refusal of it."""
    found = re.search(r"Used ([\d.]+)([KMGT]) of", message) or re.search(
        r"\(([\d.]+)([KMGT])\) exceeds", message
    )
    if not found:
        return None
    return float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1)


def summarize(stats: Any) -> Mapping[str, float]:
    """Return the numbers of the compiler's `memory_analysis`."""
    names = ("argument", "output", "alias", "temp", "generated_code")
    found = {name: float(getattr(stats, f"{name}_size_in_bytes")) for name in names}
    peak = getattr(stats, "peak_memory_in_bytes", None)
    return found if peak is None else {**found, "peak": float(peak)}
