"""The plot of a search: the best value so far, and each leaf against the metric."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from optuna import Study
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from .report import STATES
from .study import Sweep, get_trials

BLUE, ORANGE, RED, GREY = "#2f6da8", "#e07b00", "#b5342c", "#8c96a0"
COLUMNS = 4  # panels in a row, at most


def write_plot(study: Study, sweep: Sweep, path: Path) -> None:
    """Write an image with a panel over all trials and a panel for each leaf."""
    trials, leaves = get_trials(study), list(sweep.space)
    rows = math.ceil(len(leaves) / COLUMNS)
    columns = math.ceil(len(leaves) / rows)
    cells = [*leaves, *["."] * (rows * columns - len(leaves))]
    grid = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    figure = Figure(
        figsize=(max(2.6 * columns, 6.5), 3.0 + 2.3 * rows),
        dpi=150,
        layout="constrained",
    )
    panels = figure.subplot_mosaic(
        [[""] * columns, *grid], height_ratios=[1.25] + [1] * rows
    )
    history, lower = panels.pop(""), sweep.mode == "min"
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    best = (np.minimum if lower else np.maximum).accumulate([t.value for t in complete])
    history.step(
        [*(t.number for t in complete), trials[-1].number],  # to the right edge
        [*best, best[-1]],
        where="post",
        color=ORANGE,
        label="best so far",
        zorder=1,
    )
    history.xaxis.set_major_locator(MaxNLocator(integer=True))
    history.set(xlabel="trial", ylabel=sweep.metric)
    limits = _limits([t.value for t in trials if t.value is not None], lower=lower)
    worst = limits[1] if lower else limits[0]
    points = []  # the y and the style of each trial
    for trial in trials:
        y, style = trial.value, STATES[trial.state]
        if y is not None and not limits[0] <= y <= limits[1]:
            y, style = worst, "off the scale"
        is_best = trial.number == study.best_trial.number
        points.append((worst if y is None else y, "_best" if is_best else style))
    _scatter(history, [t.number for t in trials], points, lower=lower)
    above = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": 5}
    history.legend(frameon=False, fontsize=8, **above)
    for i, (leaf, panel) in enumerate(panels.items()):
        x = [t.params.get(leaf) for t in trials]
        distribution = sweep.space[leaf]
        if isinstance(distribution, CategoricalDistribution):
            x = [None if v is None else distribution.choices.index(v) for v in x]
        _set_scale(panel, distribution)
        _scatter(panel, x, points, lower=lower)
        panel.set(xlabel=leaf, ylabel="" if i % columns else sweep.metric)
        panel.tick_params(labelleft=not i % columns)
    for panel in (history, *panels.values()):
        panel.set_ylim(limits)
        panel.grid(color="#e6e9ec", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8, color=GREY)
    figure.savefig(path)


def _limits(values: Sequence[float], *, lower: bool) -> tuple[float, float]:
    """Return a range of the metric that a few hopeless trials do not stretch."""
    losses = np.sort(np.array(values) if lower else -np.array(values))
    best = losses[0]
    typical = np.median(losses) - best or np.ptp(losses) or abs(best) or 1.0
    worst = min(losses[-1], best + 4 * typical)
    margin = 0.08 * (worst - best or typical)
    low, high = best - margin, worst + margin
    return (float(low), float(high)) if lower else (float(-high), float(-low))


def _set_scale(axes: Axes, distribution: Any) -> None:
    """Set the x axis to the range of a distribution, with some margin."""
    if isinstance(distribution, CategoricalDistribution):
        axes.set_xticks(range(len(distribution.choices)), distribution.choices)
        axes.set_xlim(-0.5, len(distribution.choices) - 0.5)
        return
    low, high = distribution.low, distribution.high
    if distribution.log:
        axes.set_xscale("log")
        within = (1.0,) if high / low >= 1000 else (1.0, 2.0, 5.0)
        axes.xaxis.set_major_locator(LogLocator(subs=within, numticks=7))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        margin = (high / low) ** 0.04
        axes.set_xlim(low / margin, high * margin)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=isinstance(low, int)))
        axes.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))


def _scatter(
    axes: Axes, x: Sequence[Any], points: list[tuple[float, str]], *, lower: bool
) -> None:
    """Draw the trials that have an x; those without a value are at the worse edge."""
    styles: dict[str, dict[str, Any]] = {
        "complete": {"marker": "o", "color": BLUE, "alpha": 0.85, "s": 22},
        "pruned": {"marker": "o", "edgecolor": BLUE, "facecolor": "none", "s": 22},
        "off the scale": {"marker": "^" if lower else "v", "color": GREY, "s": 24},
        "failed": {"marker": "x", "color": RED, "s": 24},
        "_best": {"marker": "*", "color": ORANGE, "s": 120, "zorder": 3},  # no label
    }
    for name, style in styles.items():
        pairs = zip(x, points, strict=True)
        chosen = [(at, y) for at, (y, its) in pairs if its == name and at is not None]
        if chosen:
            axes.scatter(*zip(*chosen, strict=True), label=name, clip_on=False, **style)
