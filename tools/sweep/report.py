"""The results of a search: the table of trials, and the best trial as a command."""

import shlex
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmjax.fileio import write_json

from .space import format_value, to_flags
from .study import Sweep, get_trials

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
}


def best_trial(study: Study) -> FrozenTrial | None:
    """Return the best of the completed trials; None if there is none."""
    complete = any(t.state == TrialState.COMPLETE for t in get_trials(study))
    return study.best_trial if complete else None


def describe(study: Study, number: int, sweep: Sweep) -> str:
    """Return one line about a trial that has ended."""
    trial, best = get_trials(study)[number], best_trial(study)
    line = f"trial {number}: {_state(trial)}, {_minutes(trial)} min"
    if error := trial.user_attrs.get("error"):
        return f"{line}: {error}"
    line += f", {sweep.metric} {_value(trial)}"
    if best is None:
        return line
    if best.number == number:
        return f"{line}, the best so far"
    return f"{line} (best: {_value(best)}, trial {best.number})"


def print_table(study: Study, sweep: Sweep) -> None:
    """Print a row for each trial, with the best one marked."""
    names = [leaf.split(".")[-1] for leaf in sweep.space]
    if len({*names}) < len(names):
        names = [*sweep.space]
    table = Table("trial", *names, sweep.metric, "state", "minutes", "")
    for column in table.columns[: len(names) + 2]:
        column.justify = "right"
    best = best_trial(study)
    for trial in get_trials(study):
        is_best = best is not None and trial.number == best.number
        note = "best" if is_best else trial.user_attrs.get("error", "")
        cells = [str(trial.number)]
        cells += [format_value(trial.params.get(leaf, "-")) for leaf in sweep.space]
        cells += [_value(trial), _state(trial), _minutes(trial), note]
        # rich does not interpret brackets in a Text as markup.
        table.add_row(*map(Text, cells), style="bold green" if is_best else None)
    console = Console()
    if not console.is_terminal:  # a file has no right edge
        unlimited = console.options.update(width=1000)
        console.width = console.measure(table, options=unlimited).maximum
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
    command = [*sweep.user_command, *to_flags(trial.params)]
    best = {
        "trial": trial.number,
        "metric": sweep.metric,
        "value": trial.value,
        "config": trial.params,
        "workdir": str(sweep.directory(trial.number)),
        "command": shlex.join([*command, f"--workdir={sweep.workdir / 'best'}"]),
    }
    write_json(sweep.workdir / "best.json", best)
    return best
