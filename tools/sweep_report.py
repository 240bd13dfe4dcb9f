"""What a sweep has found: the table of trials, the plot, and the best as a command."""

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna import Study
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sweep_space import flags, short
from sweep_study import Sweep

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
    TrialState.WAITING: "unfinished",
}


def best_trial(study: Study) -> FrozenTrial | None:
    """Return the best of the trials that were completed, if there is one."""
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    return study.best_trial if complete else None


def describe(study: Study, number: int, sweep: Sweep) -> str:
    """Return one line about a trial that has ended."""
    trial, best = study.get_trials(deepcopy=False)[number], best_trial(study)
    said = f"trial {number}: {_state(trial)}, {_minutes(trial)} min"
    if error := trial.user_attrs.get("error"):
        return f"{said}: {error}"
    said += f", {sweep.metric} {_value(trial)}"
    if best is None or best.number == number:
        return said + ", the best so far" * (best is not None)
    return f"{said} (best: {_value(best)}, trial {best.number})"


def write_table(study: Study, sweep: Sweep) -> None:
    """Print a row for each trial, the best marked."""
    last = [leaf.split(".")[-1] for leaf in sweep.space]
    names = last if len({*last}) == len(last) else [*sweep.space]
    table = Table("trial", *names, sweep.metric, "state", "minutes", "")
    for column in table.columns[: len(names) + 2]:
        column.justify = "right"
    best = best_trial(study)
    for trial in study.get_trials(deepcopy=False):
        is_best = best is not None and trial.number == best.number
        cells = [short(trial.params.get(leaf, "-")) for leaf in sweep.space]
        cells = [str(trial.number), *cells, _value(trial), _state(trial)]
        cells += [_minutes(trial), "best" * is_best]
        # As texts, in which brackets are no markup.
        table.add_row(*map(Text, cells), style="bold green" if is_best else None)
    console = Console()
    if not console.is_terminal:  # a file has no edge
        wide = console.options.update(width=1000)
        console.width = console.measure(table, options=wide).maximum
    console.print(table)


def _value(trial: FrozenTrial) -> str:
    return "-" if trial.value is None else f"{trial.value:.5g}"


def _minutes(trial: FrozenTrial) -> str:
    return f"{trial.user_attrs.get('seconds', 0.0) / 60:.1f}"


def _state(trial: FrozenTrial) -> str:
    pruned = trial.state == TrialState.PRUNED
    return STATES[trial.state] + (f" at {trial.last_step}" if pruned else "")


def write_best(study: Study, sweep: Sweep) -> dict[str, Any]:
    """Write the best trial to best.json, and return it."""
    trial = study.best_trial
    command = [*sweep.shown_command, *flags(trial.params)]
    command += [f"--workdir={sweep.workdir / 'best'}"]
    best = {
        "trial": trial.number,
        "metric": sweep.metric,
        "value": trial.value,
        "config": trial.params,
        "workdir": str(sweep.directory(trial.number)),
        "command": shlex.join(command),
    }
    path = sweep.workdir / "best.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(best, indent=2) + "\n")
    part.replace(path)
    return best


BLUE, ORANGE, RED, GREY = "#2f6da8", "#e07b00", "#b5342c", "#8c96a0"
COLUMNS = 4  # panels in a row


def write_plot(study: Study, sweep: Sweep, path: Path) -> None:
    """Draw the best so far over the trials, and each leaf against the metric."""
    trials = study.get_trials(deepcopy=False)
    columns = min(len(sweep.space), COLUMNS)
    rows = math.ceil(len(sweep.space) / COLUMNS)
    figure = Figure(figsize=(max(2.6 * columns, 6.5), 3.0 + 2.3 * rows), dpi=150)
    figure.set_layout_engine("constrained")
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=[1.25] + [1] * rows)
    limits = _limits(trials, sweep)
    top = figure.add_subplot(grid[0, :])
    _draw_history(top, trials, sweep, limits)
    for i, (leaf, distribution) in enumerate(sweep.space.items()):
        panel = figure.add_subplot(grid[1 + i // COLUMNS, i % COLUMNS])
        _draw_leaf(panel, leaf, distribution, trials, sweep, limits)
        if i % COLUMNS:
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
    axes.step(steps, [*best, best[-1]], where="post", color=ORANGE, label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel(sweep.metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8, ncols=5, loc="lower left", borderaxespad=0)
    axes.get_legend().set_bbox_to_anchor((0.0, 1.02))


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
    elif isinstance(distribution, IntDistribution):
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
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
    best = min if sweep.mode == "min" else max
    kinds: dict[str, list[tuple[float, float]]] = {}
    for at, trial in zip(x, trials, strict=True):
        y = worse if trial.value is None else trial.value
        kind = STATES[trial.state]
        if trial.value is not None and not low <= y <= high:
            kind, y = "off the scale", worse
        kinds.setdefault(kind, []).append((at, y))
    looks = {
        "complete": {"marker": "o", "color": BLUE, "alpha": 0.85, "s": 22},
        "pruned": {"marker": "o", "edgecolor": GREY, "facecolor": "none", "s": 22},
        "off the scale": {"marker": outward, "color": GREY, "s": 24},
        "failed": {"marker": "x", "color": RED, "s": 24},
    }
    for kind, look in looks.items():
        if points := kinds.get(kind):
            axes.scatter(*zip(*points, strict=True), label=kind, clip_on=False, **look)
    if complete := kinds.get("complete"):
        point = best(complete, key=lambda p: p[1])
        axes.scatter(*point, marker="*", color=ORANGE, s=110, zorder=3, linewidth=0)
    axes.set_ylim(low, high)
    axes.grid(color="#e6e9ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, color=GREY)
