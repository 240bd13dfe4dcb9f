"""The plot of a sweep: the best so far, and each leaf against the metric."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from optuna import Study
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState
from sweep_report import STATES
from sweep_study import Sweep

BLUE, ORANGE, RED, GREY = "#2f6da8", "#e07b00", "#b5342c", "#8c96a0"
COLUMNS = 4  # panels in a row, at most


def write_plot(study: Study, sweep: Sweep, path: Path) -> None:
    """Draw the best so far over the trials, and each leaf against the metric."""
    trials = study.get_trials(deepcopy=False)
    rows = math.ceil(len(sweep.space) / COLUMNS)
    columns = math.ceil(len(sweep.space) / rows)
    figure = Figure(figsize=(max(2.6 * columns, 6.5), 3.0 + 2.3 * rows), dpi=150)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08)
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=[1.25] + [1] * rows)
    limits = _limits(trials, sweep)
    top = figure.add_subplot(grid[0, :])
    _draw_history(top, trials, sweep, limits)
    for i, (leaf, distribution) in enumerate(sweep.space.items()):
        panel = figure.add_subplot(grid[1 + i // columns, i % columns])
        _draw_leaf(panel, leaf, distribution, trials, sweep, limits)
        if i % columns:
            panel.tick_params(labelleft=False)
        else:
            panel.set_ylabel(sweep.metric)
    figure.savefig(path)


def _limits(trials: Sequence[FrozenTrial], sweep: Sweep) -> tuple[float, float]:
    """Return a range of the metric that a few hopeless trials do not stretch."""
    values = np.array([trial.value for trial in trials if trial.value is not None])
    sign = 1.0 if sweep.mode == "min" else -1.0
    losses = np.sort(sign * values)
    best = losses[0]
    typical = np.median(losses) - best or np.ptp(losses) or abs(best) or 1.0
    worst = min(losses[-1], best + 4 * typical)
    margin = 0.08 * (worst - best or typical)
    low, high = sorted((sign * (best - margin), sign * (worst + margin)))
    return float(low), float(high)


def _draw_history(
    axes: Axes,
    trials: Sequence[FrozenTrial],
    sweep: Sweep,
    limits: tuple[float, float],
) -> None:
    numbers = [float(trial.number) for trial in trials]
    _scatter(axes, numbers, trials, sweep, limits)
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    better = np.minimum if sweep.mode == "min" else np.maximum
    best = better.accumulate([trial.value for trial in complete])
    # To the right edge: the last best holds.
    steps = [*(trial.number for trial in complete), trials[-1].number]
    axes.step(
        steps,
        [*best, best[-1]],
        where="post",
        color=ORANGE,
        label="best so far",
        zorder=1,
    )
    axes.set_xlabel("trial")
    axes.set_ylabel(sweep.metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    above = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": 5}
    axes.legend(frameon=False, fontsize=8, **above)


def _draw_leaf(
    axes: Axes,
    leaf: str,
    distribution: BaseDistribution,
    trials: Sequence[FrozenTrial],
    sweep: Sweep,
    limits: tuple[float, float],
) -> None:
    """Draw one leaf's values against the metric."""
    trials = [trial for trial in trials if leaf in trial.params]
    x: list[float] = [trial.params[leaf] for trial in trials]
    if isinstance(distribution, CategoricalDistribution):
        choices = distribution.choices
        x = [choices.index(value) for value in x]
        axes.set_xticks(range(len(choices)), [str(choice) for choice in choices])
        axes.set_xlim(-0.5, len(choices) - 0.5)
    elif distribution.log:
        axes.set_xscale("log")
        ratio = distribution.high / distribution.low
        margin = ratio**0.04
        within = (1.0,) if ratio >= 1000 else (1.0, 2.0, 5.0)
        axes.xaxis.set_major_locator(LogLocator(subs=within, numticks=7))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(distribution.low / margin, distribution.high * margin)
    else:
        margin = 0.04 * (distribution.high - distribution.low)
        axes.set_xlim(distribution.low - margin, distribution.high + margin)
        whole = isinstance(distribution, IntDistribution)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=whole))
    _scatter(axes, x, trials, sweep, limits)
    axes.set_xlabel(leaf)


def _scatter(
    axes: Axes,
    x: Sequence[float],
    trials: Sequence[FrozenTrial],
    sweep: Sweep,
    limits: tuple[float, float],
) -> None:
    """Draw the trials; what is out of range, or has no value, at the worse edge."""
    low, high = limits
    worse = high if sweep.mode == "min" else low
    outward = "^" if sweep.mode == "min" else "v"
    sign = 1.0 if sweep.mode == "min" else -1.0
    kinds: dict[str, list[tuple[float, float]]] = {}
    for at, trial in zip(x, trials, strict=True):
        y = worse if trial.value is None else trial.value
        kind = STATES[trial.state]
        if trial.value is not None and not low <= y <= high:
            kind, y = "off the scale", worse
        kinds.setdefault(kind, []).append((at, y))
    best = min(kinds["complete"], key=lambda point: sign * point[1])
    kinds["complete"].remove(best)
    looks = {
        "complete": {"marker": "o", "color": BLUE, "alpha": 0.85, "s": 22},
        "pruned": {"marker": "o", "edgecolor": BLUE, "facecolor": "none", "s": 22},
        "off the scale": {"marker": outward, "color": GREY, "s": 24},
        "failed": {"marker": "x", "color": RED, "s": 24},
    }
    for kind, look in looks.items():
        if points := kinds.get(kind):
            axes.scatter(*zip(*points, strict=True), label=kind, clip_on=False, **look)
    axes.scatter(*best, marker="*", color=ORANGE, s=120, zorder=3, clip_on=False)
    axes.set_ylim(low, high)
    axes.grid(color="#e6e9ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, color=GREY)
