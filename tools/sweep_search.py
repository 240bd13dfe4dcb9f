"""The search itself: trial after trial, until as many as asked for have ended."""

import re
import shlex
import time

import optuna
from optuna import Study
from optuna.trial import TrialState
from rich.console import Console
from rich.live import Live
from rich.text import Text
from sweep_report import best_trial, describe, write_best, write_table
from sweep_space import brief, suggest
from sweep_study import (
    Claim,
    Sweep,
    claim,
    first_trial,
    one_line_errors,
    open_study,
    rungs,
)
from sweep_trial import (
    EXIT_STOPPED,
    POLL_SECONDS,
    Outcome,
    Stop,
    run,
    trial_command,
)

from lmjax import fileio
from lmjax.errors import ConfigError

# So many failures alike, and not a trial without: it is not the values that are wrong.
ALIKE = 3


def search(sweep: Sweep, *, timeout_seconds: float) -> int:
    """Run trials until `num_trials` have ended, and report; return the exit code.

    Raises:
      ConfigError: the study is of something else, or no trial can succeed.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    study = open_study(sweep)
    _say(console, pruning(sweep))
    with one_line_errors(sweep):
        with Stop(after_seconds=timeout_seconds) as stop:
            done = _trials(study, sweep, stop, console)
        report(study, sweep, console)
        if done and best_trial(study) is None:
            raise _none_completed(study)
    if done:
        return 0
    _say(console, "stopped; run the same command again to go on")
    return EXIT_STOPPED


def _none_completed(study: Study) -> ConfigError:
    trials = study.get_trials(deepcopy=False)
    errors = [t.user_attrs["error"] for t in trials if "error" in t.user_attrs]
    told = f"; the last: {errors[-1]}" if errors else ""
    return ConfigError(f"none of {len(trials)} trials could be completed{told}")


def show(sweep: Sweep) -> int:
    """Print what would be searched, and the command of the first trial."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    console = Console(highlight=False, soft_wrap=True)
    _say(console, f"{sweep.mode} of {sweep.metric} over {sweep.num_trials} trials:")
    for leaf, text in sweep.spellings.items():
        _say(console, f"  {leaf:<{max(map(len, sweep.spellings))}}  {text}")
    _say(console, pruning(sweep))
    values = suggest(first_trial(sweep), sweep.space)
    command = trial_command(sweep, values, sweep.directory(0))
    _say(console, f"the first trial:\n{shlex.join(command)}")
    return 0


def pruning(sweep: Sweep) -> str:
    """Return what there is to say of when trials are stopped."""
    if steps := rungs(sweep):
        listed = ", ".join(map(str, steps))
        return f"the worse half of the trials is stopped at step {listed}"
    every = sweep.config.eval.every_steps
    return (
        "no trial is stopped before its end: "
        f"--pruner={sweep.pruner}, config.eval.every_steps = {every}"
    )


def _trials(study: Study, sweep: Sweep, stop: Stop, console: Console) -> bool:
    """Run trials; return whether all have ended."""
    failures: list[str] = []
    while not stop.requested:
        claimed = claim(study, sweep)
        if claimed is None:
            if not study.get_trials(states=[TrialState.RUNNING], deepcopy=False):
                return True
            time.sleep(POLL_SECONDS)  # others run the rest: wait, and take over
            continue
        with claimed.lock:
            outcome = _run(claimed, sweep, stop, console)
        if outcome.state is None:
            return False
        number = claimed.trial.number
        _say(console, describe(study, number, sweep))
        if outcome.state == TrialState.FAIL:
            failures.append(outcome.error)
            _refuse_to_go_on(failures, sweep, claimed)
        else:
            failures.append("")
    return False


def _run(claimed: Claim, sweep: Sweep, stop: Stop, console: Console) -> Outcome:
    """Run a trial, with a live line below where there is a terminal to show one."""
    _say(console, f"trial {claimed.trial.number}: {brief(claimed.values)}")
    if not console.is_terminal:
        return run(claimed, sweep, stop, show=lambda text: None)
    # Drawn only when told to: no thread beside the one that starts processes.
    with Live(console=console, auto_refresh=False, transient=True) as live:
        show = lambda text: live.update(Text(text, overflow="ellipsis"), refresh=True)
        return run(claimed, sweep, stop, show=show)


def _refuse_to_go_on(failures: list[str], sweep: Sweep, claimed: Claim) -> None:
    """Raise if all trials so far failed alike, numbers aside."""
    alike = {re.sub(r"-?\d+(\.\d+)?(e-?\d+)?", "N", error) for error in failures}
    if len(failures) == ALIKE and len(alike) == 1:
        raise ConfigError(
            f"the first {ALIKE} trials failed alike: {failures[-1]} "
            f"(see {claimed.directory / 'train.log'})"
        )


def report(study: Study, sweep: Sweep, console: Console) -> None:
    """Print the table of trials and the best as a command; write plot and best.json."""
    write_table(study, sweep)
    if best_trial(study) is None:
        _say(console, "no trial has been completed yet")
        return
    import sweep_plot  # matplotlib takes a while to import

    path = sweep.workdir / "trials.png"
    with fileio.lock(sweep.workdir):  # others may come to their end at the same time
        sweep_plot.write_plot(study, sweep, path)
        best = write_best(study, sweep)
    _say(console, f"results: {sweep.workdir}/ (best.json, {path.name}, study.db)")
    _say(console, f"best:    {best['command']}")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False)
