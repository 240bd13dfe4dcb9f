"""What a sweep has found: the table of trials, and the best as a command."""

import json
import shlex
from typing import Any

from optuna import Study
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
        cells += [_minutes(trial), "best" * is_best + trial.user_attrs.get("error", "")]
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
