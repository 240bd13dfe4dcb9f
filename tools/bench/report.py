"""Runs in pairs, their statistics, and what they ran on."""

import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers")


def time_pairs(
    ours: Callable[[], Any], other: Callable[[], Any] | None, *, pairs: int
) -> tuple[list[float], list[float]]:
    """Return the seconds of each run of both, in turns; each runs once before."""
    for run in filter(None, (ours, other)):
        run()
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(pairs):
        # Whatever slows the machine down does not meet the same one each time.
        order = [(0, ours), (1, other)]
        for side, run in order if number % 2 else reversed(order):
            if run is not None:
                start = time.perf_counter()
                run()
                seconds[side].append(time.perf_counter() - start)
    return seconds


def compare(ours: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Return how many times faster ours is, pair by pair: median and spread."""
    row = {"seconds": statistics.median(ours)}
    if other:
        ratios = [b / a for a, b in zip(ours, other, strict=True)]
        row["reference_seconds"] = statistics.median(other)
        row["ratio"] = statistics.median(ratios)
        row["ratio_low"], row["ratio_high"] = min(ratios), max(ratios)
    return row


def machine() -> dict[str, Any]:
    """Return the processor, the devices of jax and the versions of packages."""
    import jax

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "devices": [device.device_kind for device in jax.devices()],
        "python": platform.python_version(),
        "versions": versions,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()


def print_rows(rows: Sequence[dict[str, Any]], *, file: Any = None) -> None:
    """Print rows of results as a table, one column for each field that any has."""
    file = sys.stdout if file is None else file
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = [names, *([_format(row.get(name)) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        line = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        print("  ".join(line), file=file)


def _format(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
