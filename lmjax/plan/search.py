"""Search for the fastest way to lay a run out on a machine, and for the largest batch.

Arithmetic orders all candidates; the best of them are compiled.
"""

import dataclasses
import itertools
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lmjax.config.experiment import Config, parse, to_dict
from lmjax.data import pipeline
from lmjax.errors import ConfigError, UserError
from lmjax.models.model import resolve
from lmjax.parallel.sharding import mesh_sizes
from lmjax.plan.analytic import estimate, measure_sizes
from lmjax.plan.compile import compile_step
from lmjax.plan.estimate import available_bytes, judge
from lmjax.plan.target import Target
from lmjax.progress import ProgressBar

NUM_COMPILED = 4
_MOST_ROWS = 1 << 14


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to lay a run out: the leaves to set, and what arithmetic says of it."""

    overrides: tuple[str, ...]
    config: Config
    bytes: float
    seconds: float


def search(
    config: Config, target: Target, *, tokens: float | None, price: float | None
) -> list[dict[str, Any]]:
    """Return the plans of the best candidates, those that fit and are fastest first.

    Each has its `overrides`. The batch stays as it is.

    Raises:
      UserError: the chip is not known, or nothing can be laid on the machine.
    """
    config = pipeline.resolve_vocabulary(config)
    available = _require_memory(target, flag="--search")
    candidates = list_candidates(config, target)
    # Arithmetic may be a fifth too high.
    fitting = [c for c in candidates if c.bytes < 1.2 * available]
    if not fitting:
        least = min(candidates, key=lambda c: c.bytes)
        raise UserError(
            f"--search: nothing fits {target.name}: of {len(candidates)} layouts the "
            f"smallest needs about {least.bytes / 1e9:.1f} GB a device of "
            f"{available / 1e9:.1f} ({' '.join(least.overrides)})"
        )
    best = _spread(sorted(fitting, key=lambda c: c.seconds), available)
    plans: list[dict[str, Any]] = []
    total = len(best)
    with ProgressBar("compiled", total=total) as progress:
        progress.print(
            f"{len(candidates)} layouts, {len(fitting)} of them may fit; compiling "
            f"the best {total}"
        )
        for number, candidate in enumerate(best):
            progress.update(number, " ".join(candidate.overrides))
            plan = _try(candidate, target, tokens=tokens, price=price)
            if plan is not None:
                plans.append(plan)
                progress.print(_describe(plan))
    if not plans:
        raise UserError(f"--search: none of the best {total} layouts compiles")
    return sorted(plans, key=_order)


def fit(
    config: Config, target: Target, *, tokens: float | None, price: float | None
) -> dict[str, Any]:
    """Return the plan of the largest batch that fits, with its `overrides`.

    Raises:
      UserError: the chip is not known, or not even the smallest batch fits.
    """
    config = pipeline.resolve_vocabulary(config)
    _require_memory(target, flag="--fit")
    mesh = _mesh_sizes(config, target)
    step = mesh["data"] * mesh["fsdp"] * config.num_microbatches
    found: dict[int, dict[str, Any]] = {}

    def fits(rows: int) -> bool:
        overrides = (f"batch_size={rows * step}", f"eval.batch_size={rows * step}")
        changed = parse(to_dict(config), overrides)
        measured = compile_step(changed, target)
        count = tokens or changed.num_steps * measured["tokens"]
        plan = judge(measured, target, tokens=count, price=price)
        found[rows] = {**plan, "overrides": list(overrides)}
        progress.print(_describe(found[rows]))
        return bool(plan["fits"])

    with ProgressBar("compiled", total=8) as progress:
        largest = largest_that(fits, most=_MOST_ROWS)
    if largest is None:
        raise UserError(
            f"--fit: not even one row a device fits {target.name}: "
            f"{_describe(found[1])}"
        )
    return found[largest]


def largest_that(holds: Callable[[int], bool], *, most: int) -> int | None:
    """Return the largest number for which something holds that ends to hold.

    Returns:
      None if it does not even hold of 1; at most `most`.
    """
    if not holds(1):
        return None
    low, high = 1, 2
    while high <= most and holds(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 8) and high <= most:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def list_candidates(config: Config, target: Target) -> list[Candidate]:
    """Return all layouts of a config that the machine takes.

    Raises:
      UserError: there are none.
    """
    sizes, found = measure_sizes(config, target), []
    source = to_dict(config)
    problem = ""
    for overrides in _choices(config, target):
        try:
            changed = parse(source, overrides)
        except ConfigError as error:
            problem = str(error)
            continue
        mesh = _mesh_sizes(changed, target)
        size, seconds = estimate(changed, mesh, sizes=sizes, target=target)
        found.append(
            Candidate(overrides=overrides, config=changed, bytes=size, seconds=seconds)
        )
    if not found:
        raise UserError(f"--search: no layout suits {target.name}: {problem}")
    return found


def _choices(config: Config, target: Target) -> Iterator[tuple[str, ...]]:
    """Yield the overrides of each layout."""
    model = type(config.model)
    remats = _values(model, "remat")
    kernels = _kernels(config, target)
    for fsdp, tensor in itertools.product(_divisors(target.num_devices), repeat=2):
        if target.num_devices % (fsdp * tensor) or tensor > target.devices_per_group:
            continue
        data = target.num_devices // (fsdp * tensor)
        if config.batch_size % (data * fsdp):
            continue
        mesh = {"data": data, "fsdp": fsdp, "tensor": tensor}
        rows = config.batch_size // (data * fsdp)
        eval_rows = -(-config.eval.batch_size // (data * fsdp)) * data * fsdp
        for num, remat, kernel in itertools.product(_divisors(rows), remats, kernels):
            leaves = [f"mesh.{axis}={size}" for axis, size in mesh.items()]
            leaves += [f"num_microbatches={num}", f"model.remat={remat}"]
            leaves += [f"model.attention={kernel}"]
            if eval_rows != config.eval.batch_size:
                leaves.append(f"eval.batch_size={eval_rows}")
            yield tuple(leaves)


def _kernels(config: Config, target: Target) -> list[str]:
    """Return the attention kernels that a machine runs."""
    names = []
    for name in _values(type(config.model), "attention"):
        own: Any = config.model
        model = dataclasses.replace(own, attention=name)
        try:
            resolved: Any = resolve(model, platform=target.platform)
        except ConfigError:
            continue
        if resolved.attention not in names:
            names.append(resolved.attention)
    return names


def _values(model: type, leaf: str) -> Sequence[str]:
    return typing.get_args(typing.get_type_hints(model)[leaf])


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _mesh_sizes(config: Config, target: Target) -> dict[str, int]:
    return mesh_sizes(config.mesh, target.num_devices)


def _require_memory(target: Target, *, flag: str) -> float:
    available = available_bytes(target)
    if not available:
        raise UserError(
            f"{flag}: needs a chip whose memory and speed are known, not "
            f"--topology={target.name}"
        )
    return available


def _spread(ordered: Sequence[Candidate], available: float) -> list[Candidate]:
    """Return the fastest candidates, and among them one that certainly has room."""
    best = [*ordered[:NUM_COMPILED]]
    if all(c.bytes > 0.8 * available for c in best):
        best += [c for c in ordered if c.bytes < 0.8 * available][:1]
    return best


def _try(
    candidate: Candidate,
    target: Target,
    *,
    tokens: float | None,
    price: float | None,
) -> dict[str, Any] | None:
    """Return the plan of a candidate, None if it does not compile."""
    try:
        measured = compile_step(candidate.config, target)
    except UserError:
        return None
    count = tokens or candidate.config.num_steps * measured["tokens"]
    plan = judge(measured, target, tokens=count, price=price)
    return {**plan, "overrides": list(candidate.overrides)}


def _order(plan: Mapping[str, Any]) -> tuple[bool, float]:
    seconds = plan.get("roofline", {}).get("step_seconds", math.inf)
    return not plan["fits"], seconds


def _describe(plan: Mapping[str, Any]) -> str:
    """Return a line on a plan: what it sets, what it needs, how fast it is."""
    size = plan["total_bytes"]
    needs = "" if size is None else f", {size / 1e9:.1f} GB"
    speed = plan.get("roofline", {}).get("tokens_per_second")
    fast = "" if speed is None else f", {speed:,.0f} tokens/s at best"
    fits = "fits" if plan["fits"] else "does not fit"
    return f"{' '.join(plan['overrides'])}: {fits}{needs}{fast}"
