"""A picture of plans: memory as stacked bars, time as a roofline."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmjax.fileio import open_atomic, write_errors

_COLORS = {
    "parameters": "#2f6da8",
    "optimizer": "#6fa3d2",
    "average": "#a9c9e6",
    "carry": "#8c96a0",
    "batch": "#c9ced3",
    "gradients": "#b5342c",
    "activations": "#e07b00",
    "logits": "#f2b661",
    "workspace": "#dfe3e6",
}


def write_plot(plans: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write an image of plans, each a bar of memory and a point under the roof.

    Raises:
      UserError: it cannot be written.
    """
    from matplotlib.figure import Figure

    timed = [plan for plan in plans if "roofline" in plan]
    figure = Figure(figsize=(9.0 if timed else 4.5, 4.0), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2 if timed else 1, squeeze=False)[0]
    _draw_memory(panels[0], [plan for plan in plans if "memory" in plan])
    if timed:
        _draw_roofline(panels[1], timed)
    with write_errors(path), open_atomic(path) as out:
        figure.savefig(out, format=path.suffix[1:])


def _draw_memory(panel: Any, plans: Sequence[Mapping[str, Any]]) -> None:
    labels = set()
    for number, plan in enumerate(plans):
        bottom = 0.0
        for name, size in plan["memory"].items():
            label = name if name not in labels else None
            labels.add(name)
            height = size / 1e9
            panel.bar(number, height, 0.6, bottom, color=_COLORS.get(name), label=label)
            bottom += height
    if plans and plans[0]["available_bytes"]:
        available = plans[0]["available_bytes"] / 1e9
        panel.axhline(available, color="black", linestyle="--", linewidth=1)
        panel.annotate("available", (-0.4, available), va="bottom", fontsize=8)
    panel.set(ylabel="GB of a device", xticks=range(len(plans)))
    panel.set_xlim(-0.5, max(len(plans), 2) - 0.5)
    panel.set_xticklabels([str(number + 1) for number in range(len(plans))])
    panel.legend(fontsize=8, frameon=False)


def _draw_roofline(panel: Any, plans: Sequence[Mapping[str, Any]]) -> None:
    """Draw each step's FLOPs a second over its FLOPs a byte of memory."""
    for number, plan in enumerate(plans):
        time = plan["roofline"]
        work = time["mfu"] * time["step_seconds"]  # seconds at the peak
        peak = plan["formula_flops"] / work
        bandwidth = plan["bytes"] / time["memory_seconds"]
        ridge = peak / bandwidth
        intensity = plan["formula_flops"] / plan["bytes"]
        if number == 0:
            ends = [ridge / 100, ridge, ridge * 100]
            roof = [min(peak, x * bandwidth) / 1e12 for x in ends]
            panel.loglog(ends, roof, color="black", linewidth=1)
        reached = plan["formula_flops"] / time["step_seconds"] / 1e12
        panel.loglog(intensity, reached, "o", color="#e07b00")
        panel.annotate(
            str(number + 1),
            (intensity, reached),
            textcoords="offset points",
            xytext=(5, 3),
        )
    panel.set(xlabel="FLOPs a byte of memory", ylabel="TFLOP/s of a device, at best")
