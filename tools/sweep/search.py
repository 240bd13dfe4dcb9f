"""The search: one trial after another, until as many as requested have ended."""

import re
import shlex
import time
from collections.abc import Callable

import optuna
from optuna import Study
from optuna.trial import TrialState
from rich.console import Console
from rich.text import Text

from lmjax import fileio
from lmjax.errors import UserError

from .report import best_trial, describe, print_table, write_best
from .space import format_value
from .study import (
    Sweep,
    claim,
    get_trials,
    open_study,
    set_sampler,
    study_errors,
    suggest,
)
from .trial import EXIT_STOPPED, POLL_SECONDS, run, stop_requests, train_command

# If so many trials fail with one error and none succeeds, the values are not at fault.
MAX_SAME_FAILURES = 3


def search(sweep: Sweep, *, timeout_seconds: float) -> int:
    """Run trials until `num_trials` have ended, and report; return the exit code.

    Raises:
      UserError: the study is that of another search, or all trials fail.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    study = open_study(sweep)
    console.print(_describe_pruning(sweep))
    with study_errors(sweep):
        with stop_requests(timeout_seconds=timeout_seconds) as should_stop:
            all_ended = _run_trials(study, sweep, should_stop, console)
        _report(study, sweep, console)
        if not all_ended:
            console.print("stopped; run the same command again to resume")
            return EXIT_STOPPED
        if best_trial(study) is None:
            trials = get_trials(study)
            errors = [t.user_attrs["error"] for t in trials if "error" in t.user_attrs]
            last = f"; the last: {errors[-1]}" if errors else ""
            raise UserError(f"none of {len(trials)} trials was completed{last}")
    return 0


def dry_run(sweep: Sweep) -> int:
    """Print the command of the first trial; write nothing."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(_describe_pruning(sweep))
    study = optuna.create_study()
    set_sampler(study, sweep, 0)
    command = train_command(suggest(study.ask(), sweep), sweep)
    console.print(f"the first trial:\n{shlex.join(command)}")
    return 0


def _describe_pruning(sweep: Sweep) -> str:
    steps = ", ".join(map(str, sweep.rungs)) or "none"
    return f"steps at which the worse half of the trials is stopped: {steps}"


def _run_trials(
    study: Study, sweep: Sweep, should_stop: Callable[[], bool], console: Console
) -> bool:
    """Run trials; return whether all have ended."""
    errors: list[str] = []
    while not should_stop():
        claimed = claim(study, sweep)
        if claimed is None:
            if not any(t.state == TrialState.RUNNING for t in get_trials(study)):
                return True
            time.sleep(POLL_SECONDS)  # other processes run the rest, or lose it
            continue
        trial, lock = claimed
        values = [
            f"{n.split('.')[-1]} {format_value(v)}" for n, v in trial.params.items()
        ]
        console.print(f"trial {trial.number}: {'  '.join(values)}")
        with lock, console.status("") as status:
            show = lambda text: status.update(Text(text))
            outcome = run(trial, sweep, should_stop=should_stop, show=show)
        if outcome.state is None:
            return False
        console.print(describe(study, trial.number, sweep))
        # The same error may name other numbers.
        errors.append(re.sub(r"-?\d+(\.\d+)?(e-?\d+)?", "N", outcome.error))
        if len(errors) == MAX_SAME_FAILURES and {*errors} == {errors[0]} != {""}:
            raise UserError(
                f"the first {len(errors)} trials failed with the same error: "
                f"{outcome.error} (see {sweep.directory(trial.number) / 'train.log'})"
            )
    return False


def _report(study: Study, sweep: Sweep, console: Console) -> None:
    """Print the table and the best command; write the plot and best.json."""
    print_table(study, sweep)
    if best_trial(study) is None:
        console.print("no trial has been completed yet")
        return
    from .plot import write_plot  # matplotlib takes a while to import

    with fileio.lock(sweep.workdir):  # other processes may end at the same time
        write_plot(study, sweep, sweep.workdir / "trials.png")
        best = write_best(study, sweep)
    console.print(f"results: {sweep.workdir}/ (best.json, trials.png, study.db)")
    console.print(f"best:    {best['command']}")
