"""Compile the training step of a config for a machine: a process of its own.

    python -m lmjax.plan.worker TOPOLOGY RESULT.json < CONFIG.json

The environment of such a process is set before jax is imported: `devices.environment`.
"""

import dataclasses
import json
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from lmjax.config.experiment import Config, parse
from lmjax.config.model import TransformerConfig
from lmjax.errors import UserError
from lmjax.parallel import sharding
from lmjax.plan import memory
from lmjax.plan.collectives import find_collectives
from lmjax.plan.devices import make_devices
from lmjax.plan.hlo import Module
from lmjax.plan.least import least_bytes
from lmjax.plan.products import count_kernels, product_flops
from lmjax.plan.target import Target, parse_target
from lmjax.plan.traffic import measure_work
from lmjax.training.compiled import Program, make_program

_HLO_DTYPES = {"bf16": "bfloat16", "f16": "bfloat16", "f32": "float32", "s8": "int8"}


def measure(config: Config, target: Target) -> dict[str, Any]:
    """Compile the training step of a config for a machine, and read what came out.

    Raises:
      UserError: the mesh or the kernels of the config do not suit the machine, or the
        compiler fails.
    """
    begin = time.perf_counter()
    mesh = sharding.make_mesh(config.mesh, make_devices(target))
    program = make_program(config, mesh)
    with jax.set_mesh(mesh):
        lowered = program.train_step.lower(program.batch_shapes())
        middle = time.perf_counter()
        result = describe_program(program)
        try:
            compiled = lowered.compile()
        except Exception as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise _save_failure(target, lowered, error) from error
            result |= _too_large(program, str(error))
            return result | {"compile_seconds": time.perf_counter() - begin}
    end = time.perf_counter()
    stats = compiled.memory_analysis()
    total = memory.total_bytes(stats)
    try:
        module = Module(compiled.as_text())
    except jax.errors.JaxRuntimeError as error:  # jaxlib is older than libtpu
        module, result["unread"] = None, _first_line(str(error))
    result |= {
        "total_bytes": total,
        "memory": memory.memory_groups(program, total=total, module=module),
        "compiler": memory.summarize(stats),
        "trace_seconds": middle - begin,
        "compile_seconds": end - middle,
    }
    if module is None:
        return result
    result |= {
        "collectives": [
            dataclasses.asdict(row) for row in find_collectives(module, mesh.shape)
        ],
        "flops": product_flops(module),
        "kernels": count_kernels(module),
        "num_unknown_loops": module.num_unknown_loops,
        "largest_square": _largest_square(module, config),
    }
    if target.chip is not None:
        peaks = {
            name: target.chip.flops[dtype]
            for name, dtype in _HLO_DTYPES.items()
            if dtype in target.chip.flops
        }
        work = measure_work(module, flops=peaks, bandwidth=target.chip.bandwidth)
        result |= dataclasses.asdict(work)
    return result


def describe_program(program: Program) -> dict[str, Any]:
    """Return what is known of a program before it is compiled."""
    config, model = program.config, program.model
    batch = program.batch_shapes()
    tokens = sum(batch[n].size for n in ("tokens", "source") if n in batch)
    return {
        "mesh": dict(program.mesh.shape),
        "num_params": sum(leaf.size for leaf in jax.tree.leaves(model.shapes)),
        "tokens": tokens,
        "formula_flops": program.flops_per_token * tokens / program.mesh.size,
        "attention_flops": _attention_flops(program),
        "least": least_bytes(program),
        "dtype": model.config.dtype,
        "remat": getattr(model.config, "remat", "none"),
        "attention": getattr(model.config, "attention", ""),
        "batch_size": config.batch_size,
        "num_microbatches": config.num_microbatches,
        "length": config.data.length,
    }


def _attention_flops(program: Program) -> float:
    """Return the FLOPs of one layer's attention forward, on a device's microbatch.

    Its kernels do not tell their own. Counted as the formula does: of causal rows half.
    """
    config, mesh = program.model.config, program.mesh.shape
    if not isinstance(config, TransformerConfig):
        return 0.0
    batch = program.batch_shapes()
    rows, length = batch["tokens"].shape
    pairs = length**2 / (2 if config.kind == "decoder" else 1)
    parts = mesh["data"] * mesh["fsdp"] * mesh["tensor"]
    rows /= parts * program.config.num_microbatches
    return float(4 * config.num_heads * config.head_dim * pairs * rows)


def _largest_square(module: Module, config: Config) -> float:
    """Return the bytes of the largest array with two dimensions of a row's length."""
    length = config.data.length
    return max(
        (
            shape.bytes
            for _, instruction, _ in module
            for shape in instruction.shapes
            if shape.dims.count(length) > 1
        ),
        default=0.0,
    )


def _too_large(program: Program, message: str) -> dict[str, Any]:
    total = memory.parse_needed(message)
    result: dict[str, Any] = {"refused": _first_line(message), "total_bytes": total}
    if total is not None:
        groups = memory.memory_groups(program, total=total, module=None)
        result["memory"] = groups
    return result


def _save_failure(target: Target, lowered: Any, error: Exception) -> UserError:
    directory = Path(tempfile.mkdtemp(prefix="lmjax-plan-"))
    (directory / "error.txt").write_text(str(error))
    (directory / "program.mlir").write_text(lowered.as_text())
    return UserError(
        f"--topology={target.name}: the compiler failed: {_first_line(str(error))} "
        f"(program and error are in {directory})"
    )


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "")[:400]


def main(arguments: list[str]) -> None:
    """Read a config, and write what was measured, or the user's mistake."""
    topology, path = arguments
    result: Mapping[str, Any]
    try:
        target = parse_target(topology)
        result = measure(parse(json.load(sys.stdin)), target)
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = {**result, "host_bytes": usage * 1024}
    except UserError as error:
        result = {"error": str(error)}
    Path(path).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
