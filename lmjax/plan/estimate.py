"""Say whether a compiled step fits, how long it takes and what training costs."""

import os
from collections.abc import Mapping
from typing import Any

from lmjax.plan.target import Target

ASSUMPTIONS = (
    "each part of the step takes as long as its products at the chip's peak or its "
    "bytes at the memory's full bandwidth, whichever is longer",
    "attention kernels reach the peak, and a backward pass costs 2.5 forward ones",
    "collectives send at the full bandwidth of all links; asynchronous ones are hidden "
    "as far as there is work",
    "so this is the least time: real steps often take 1.2 to 2 times as long",
)


def available_bytes(target: Target, env: Mapping[str, str] = os.environ) -> float:
    """Return the memory of a device that programs may use; 0 if that is not known.

    On GPUs jax takes three quarters, unless XLA_PYTHON_CLIENT_MEM_FRACTION says else.
    """
    if target.chip is None:
        return 0.0
    if target.platform == "tpu":
        return float(target.chip.memory)
    try:
        share = float(env.get("XLA_PYTHON_CLIENT_MEM_FRACTION", ""))
    except ValueError:
        share = 0.75
    return share * target.chip.memory


def judge(
    measured: Mapping[str, Any],
    target: Target,
    *,
    tokens: float,
    price: float | None = None,
) -> dict[str, Any]:
    """Return a plan: what was measured, and what follows from it.

    Args:
      measured: of `compile_step`.
      target: the machine.
      tokens: to train on.
      price: dollars for an hour of one chip.
    """
    available, total = available_bytes(target), measured["total_bytes"]
    refused = "refused" in measured
    plan = {
        "topology": target.name,
        "num_devices": target.num_devices,
        **measured,
        "available_bytes": available or None,
        "fits": not refused and (not available or total <= available),
    }
    plan["margin_bytes"] = available - total if available and total else None
    if refused or "unread" in measured:
        return plan
    plan["sent_bytes"] = sum(row["bytes"] for row in measured["collectives"])
    plan["least_bytes"] = sum(measured["least"].values())
    plan["flops_over_formula"] = (
        sum(measured["flops"].values()) / measured["formula_flops"]
    )
    if target.chip is None:
        return plan
    roofline = estimate_step(measured, target)
    plan["roofline"] = roofline
    seconds = tokens / measured["tokens"] * roofline["step_seconds"]
    plan["training"] = {"tokens": tokens, "seconds": seconds}
    if price is not None:
        plan["training"]["dollars"] = seconds / 3600 * price * target.num_chips
    return plan


def estimate_step(measured: Mapping[str, Any], target: Target) -> dict[str, float]:
    """Return the least seconds of a step, what they are made of, and the MFU."""
    chip = target.chip
    assert chip is not None
    peak = chip.flops.get(measured["dtype"], chip.flops["bfloat16"])
    kernels = measured["kernels"]
    attention = measured["attention_flops"] * (
        kernels.get("forward", 0) + 2.5 * kernels.get("backward", 0)
    )
    dtypes = {"f32": chip.flops.get("float32", peak)}
    products = sum(
        flops / dtypes.get(dtype, peak) for dtype, flops in measured["flops"].items()
    )
    kernel_seconds = attention / peak
    computing = measured["seconds"] + kernel_seconds
    waiting = hidden = 0.0
    for row in measured["collectives"]:
        seconds = send_seconds(row, target, measured["mesh"])
        hidden += seconds * row["asynchronous"]
        waiting += seconds * (1 - row["asynchronous"])
    step = computing + waiting + max(0.0, hidden - computing)
    return {
        "product_seconds": products + kernel_seconds,
        "memory_seconds": measured["bytes"] / chip.bandwidth,
        "compute_seconds": computing,
        "send_seconds": waiting + hidden,
        "exposed_send_seconds": step - computing,
        "step_seconds": step,
        "tokens_per_second": measured["tokens"] / step,
        "mfu": measured["formula_flops"] / peak / step,
    }


def send_seconds(
    row: Mapping[str, Any], target: Target, mesh: Mapping[str, int]
) -> float:
    """Return the seconds that a collective's bytes take over the links.

    Where it spans several nodes or slices, each device sends its share of what goes
    between them, at the speed of the network.
    """
    chip = target.chip
    assert chip is not None
    seconds = row["bytes"] / chip.link_bandwidth
    members, inside = 1, _devices_inside(row["axes"], target, mesh)
    for axis in row["axes"]:
        members *= mesh[axis]
    if members > inside and chip.network_bandwidth:
        share = row["bytes"] / inside
        seconds = max(seconds, share / chip.network_bandwidth)
    return seconds


def _devices_inside(
    axes: tuple[str, ...], target: Target, mesh: Mapping[str, int]
) -> int:
    """Return how many members of a collective one node or slice holds.

    The innermost axes of the mesh lie within it.
    """
    left, inside = target.devices_per_group, 1
    for axis in reversed([*mesh]):
        own = min(mesh[axis], left)
        inside *= own if axis in axes else 1
        left //= own
    return inside
