"""One trial: a run of `lmjax train` that is watched, pruned and stopped."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from optuna import Trial
from optuna.trial import TrialState

from lmjax.data.tokenizers.files import read_manifest

from .space import format_value, to_flags
from .study import Sweep, get_trials, try_lock

POLL_SECONDS = 0.2
EXIT_STOPPED = 75


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended. Without a state it was stopped, and resumes another time."""

    state: TrialState | None = None
    value: float | None = None
    error: str = ""


@contextlib.contextmanager
def stop_requests(*, timeout_seconds: float) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether to stop.

    The reason is SIGTERM, SIGINT or the timeout. A second signal has its usual effect:
    the process ends, and its training saves and ends as well.
    """
    deadline, received = time.monotonic() + timeout_seconds, []
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield lambda: bool(received) or time.monotonic() > deadline
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(
    trial: Trial,
    sweep: Sweep,
    *,
    should_stop: Callable[[], bool],
    show: Callable[[str], None],
) -> Outcome:
    """Train until the trial ends, is pruned or fails, or until `should_stop()`.

    The outcome is saved in the study. `show` is often called with a line about the
    progress.
    """
    directory, start = sweep.directory(trial.number), time.monotonic()
    while (lock := try_lock(directory / ".lock")) is None:
        # The training of a sweep that was killed saves before it ends.
        if should_stop():
            return Outcome()
        show(f"waiting for the process that still uses {directory}")
        time.sleep(POLL_SECONDS)
    lock.close()
    _share_tokenizer(directory, [sweep.directory(n) for n in range(trial.number)])
    child = [sys.executable, "-I", str(Path(__file__).parents[1] / "child.py")]
    with (directory / "train.log").open("ab") as log:
        log_start = log.tell()
        process = subprocess.Popen(
            [*child, str(os.getpid()), *train_command(trial, sweep)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,  # out of reach of the terminal's Ctrl-C
        )
    outcome = Outcome()
    try:
        outcome = _watch(process, trial, sweep, log_start, should_stop, show)
    finally:
        # Before the training is stopped: a kill in between must not undo the outcome.
        _save(trial, outcome, seconds=time.monotonic() - start)
        if process.poll() is None:
            process.terminate()
            process.wait()
    return outcome


def train_command(trial: Trial, sweep: Sweep) -> list[str]:
    """Return the command that trains with a trial's values in its own workdir."""
    workdir = f"--workdir={sweep.directory(trial.number)}"
    return [*sweep.command, *to_flags(trial.params), workdir]


def _share_tokenizer(directory: Path, earlier: Iterable[Path]) -> None:
    """Give a trial the tokenizer of an earlier one.

    The training uses it if it fits the text and the settings, and else trains its own.
    """
    target, partial = directory / "tokenizer", directory / "tokenizer.partial"
    sources = (e / "tokenizer" for e in earlier if read_manifest(e / "tokenizer"))
    if not target.exists() and (source := next(sources, None)):
        shutil.copytree(source, partial, dirs_exist_ok=True)
        partial.replace(target)


def _watch(
    process: subprocess.Popen[bytes],
    trial: Trial,
    sweep: Sweep,
    log_start: int,
    should_stop: Callable[[], bool],
    show: Callable[[str], None],
) -> Outcome:
    """Report evaluations to the study until the trial ends or has to stop."""
    directory = sweep.directory(trial.number)
    num_steps = trial.params.get("num_steps", sweep.config.num_steps)
    reported = get_trials(trial.study)[trial.number].intermediate_values
    values: dict[int, float] = {}  # by step
    latest = "no evaluation yet"
    while True:
        ended = process.poll() is not None  # before the log is read for the last time
        lines = _read_metrics(directory / "metrics.jsonl")
        for line in lines:
            step, value = line["step"], line.get(sweep.metric)
            if line["split"] != "valid" or step in values:
                continue
            if value is None:
                error = f"{sweep.metric} is not a finite number at step {step}"
                return Outcome(state=TrialState.FAIL, error=error)
            values[step], latest = value, f"{sweep.metric} {format_value(value)}"
            if step not in reported:
                trial.report(value, step)
            if step < num_steps and trial.should_prune():
                return Outcome(state=TrialState.PRUNED, value=value)
        if ended and process.returncode == 0 and values:
            best = min(values.values()) if sweep.mode == "min" else max(values.values())
            saved = sweep.config.checkpoint
            is_best = (saved.best_metric, saved.best_mode) == (sweep.metric, sweep.mode)
            value = best if is_best else values[max(values)]
            return Outcome(state=TrialState.COMPLETE, value=value)
        if ended:
            return _explain_exit(process.returncode, directory / "train.log", log_start)
        if should_stop():
            return Outcome()
        show(f"step {lines[-1]['step'] if lines else 0}/{num_steps}  {latest}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the evaluations in a metrics.jsonl that grows, and its last line."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return []
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("}\n")]
    return [json.loads(n) for n in lines if '"valid"' in n or n is lines[-1]]


def _explain_exit(code: int, log: Path, log_start: int) -> Outcome:
    """Return the outcome of a training that did not complete."""
    if code in (EXIT_STOPPED, -signal.SIGTERM, -signal.SIGINT):
        return Outcome()
    if code < 0:
        error = f"the training was killed by {signal.Signals(-code).name}"
        return Outcome(state=TrialState.FAIL, error=error)
    output = log.read_bytes()[log_start:].decode(errors="replace")
    lines = [line.strip() for line in output.split("\n")]
    errors = [line for line in lines if line.startswith("error: ")]
    last = [*filter(None, lines), *errors][-1:] or [f"it ended with exit code {code}"]
    return Outcome(state=TrialState.FAIL, error=last[0].removeprefix("error: "))


def _save(trial: Trial, outcome: Outcome, *, seconds: float) -> None:
    """Save in the study how a trial ended, and how long it has taken in all."""
    trial.set_user_attr("seconds", trial.user_attrs.get("seconds", 0.0) + seconds)
    if outcome.error:
        trial.set_user_attr("error", outcome.error)
    if outcome.state is not None:
        complete = outcome.state == TrialState.COMPLETE
        value = outcome.value if complete else None
        trial.study.tell(trial, value, state=outcome.state)
