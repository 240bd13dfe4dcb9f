"""A picture of a comparison: what each model loses over its size, and its speed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmjax.fileio import open_atomic, write_errors

_SPEEDS = {"prefill": "#2f6da8", "decode": "#e07b00"}


def write_plot(found: Mapping[str, Any], path: Path) -> None:
    """Write an image of what `compare` returns.

    Raises:
      UserError: it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.0), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2)
    _draw_quality(panels[0], found)
    _draw_speed(panels[1], found["models"])
    with write_errors(path), open_atomic(path) as out:
        figure.savefig(out, format=path.suffix[1:])


def headline(found: Mapping[str, Any]) -> str:
    """Return the metric that all models can be compared by: the loss, if they have it.

    Language models of several tokenizers have bits a byte.
    """
    first, *others = found["models"]
    shared = [
        name
        for name in first["metrics"]
        if all(name in model["differences"] for model in others)
    ]
    return "loss" if "loss" in shared else shared[0]


def _draw_quality(panel: Any, found: Mapping[str, Any]) -> None:
    name = headline(found)
    for model in found["models"]:
        metric = model["metrics"][name]
        megabytes, value = model["bytes_on_disk"] / 1e6, metric["value"]
        errors = None
        if metric["low"] is not None:
            errors = [[value - metric["low"]], [metric["high"] - value]]
        panel.errorbar(megabytes, value, yerr=errors, fmt="o", capsize=3)
        panel.annotate(
            Path(model["workdir"]).name,
            (megabytes, value),
            textcoords="offset points",
            xytext=(6, 4),
            fontsize=8,
        )
    panel.set(xlabel="MB on disk", ylabel=name.replace("_", " "))
    panel.set_xlim(left=0)
    panel.margins(x=0.25)


def _draw_speed(panel: Any, models: Any) -> None:
    rows = range(len(models))
    for shift, (name, color) in zip((-0.2, 0.2), _SPEEDS.items(), strict=True):
        values = [model[f"{name}_tokens_per_second"] or 0 for model in models]
        if any(values):
            places = [row + shift for row in rows]
            panel.barh(places, values, 0.38, color=color, label=name)
    panel.set_yticks(rows, [Path(model["workdir"]).name for model in models])
    panel.invert_yaxis()
    panel.set(xlabel="tokens a second", xscale="log")
    panel.legend(fontsize=8, frameon=False)
