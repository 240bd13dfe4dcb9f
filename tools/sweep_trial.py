"""One trial of a sweep: an ordinary `lmjax train`, followed, pruned and stopped."""

import contextlib
import ctypes
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from optuna import Trial
from optuna.trial import TrialState
from sweep_metric import unmeasured
from sweep_space import flags, short
from sweep_study import Claim, Sweep, try_lock

from lmjax.data.tokenizers.files import read_manifest
from lmjax.errors import ConfigError, UserError

POLL_SECONDS = 0.2
EXIT_STOPPED = 75


class Stop:
    """Whether to leave: SIGTERM, SIGINT, or the time is up.

    A second SIGINT leaves at once; the training notices, and saves by itself.
    """

    def __init__(self, *, after_seconds: float = math.inf) -> None:
        self.deadline = time.monotonic() + after_seconds
        self.signalled = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @property
    def requested(self) -> bool:
        """Return whether to stop what runs and leave."""
        return self.signalled or time.monotonic() > self.deadline

    def _handle(self, number: int, frame: object) -> None:
        if self.signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signalled = True


class Evaluations:
    """Reads a metrics.jsonl that grows, and is written anew when its run resumes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state: tuple[int, ...] = ()
        self.last_step = 0  # of what was yielded
        self.step = 0  # that training has come to

    def new(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of the valid split that were not there before."""
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return
        state = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if state == self.state:
            return
        self.state = state
        lines = self.path.read_text(errors="replace").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("}\n")]
        self.step = json.loads(whole[-1])["step"] if whole else 0
        for values in (json.loads(line) for line in whole if '"valid"' in line):
            if values["split"] == "valid" and values["step"] > self.last_step:
                self.last_step = values["step"]
                yield values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended; without a state it was stopped, and goes on another time."""

    state: TrialState | None
    value: float | None = None
    error: str = ""


def run(
    claim: Claim, sweep: Sweep, stop: Stop, *, show: Callable[[str], None]
) -> Outcome:
    """Train until the end, until the trial is pruned or fails, or until `stop`.

    The study is told how it ended, if it did.

    Args:
      claim: the trial.
      sweep: what it is of.
      stop: when to leave.
      show: takes a line about where the trial stands, often.

    Raises:
      ConfigError: the metric is not among those of the valid split, or there is no
        such split: no other trial would fare better.
    """
    outcome = Outcome(state=None)
    if not _alone(claim.directory, stop, show):
        return outcome
    begin = time.monotonic()
    _share_tokenizer(claim, sweep)
    log = claim.directory / "train.log"
    with log.open("ab") as file:
        start = file.tell()
        process = _start(trial_command(sweep, claim.values, claim.directory), file)
    try:
        outcome = _follow(process, claim, sweep, stop, show)
        if outcome is None:
            outcome = _ended(process.returncode, claim, sweep, _said(log, start))
    except UserError as error:
        outcome = Outcome(state=TrialState.FAIL, error=str(error))
        raise
    finally:
        # Told before the training is stopped: a kill in between must not undo it.
        _tell(claim.trial, outcome, seconds=time.monotonic() - begin)
        if process.poll() is None:
            process.terminate()
            process.wait()
    return outcome


def trial_command(
    sweep: Sweep, values: Mapping[str, Any], directory: Path
) -> list[str]:
    """Return the command that trains with a trial's values in its own workdir."""
    return [*sweep.command, *flags(values), f"--workdir={directory}"]


def _share_tokenizer(claim: Claim, sweep: Sweep) -> None:
    """Give a new trial the tokenizer of an earlier one, as its training would make it.

    The training compares text and settings, and makes its own where they are others.
    """
    own = claim.directory / "tokenizer"
    if own.exists():
        return
    for number in range(claim.trial.number):
        made = sweep.directory(number) / "tokenizer"
        if read_manifest(made) is None:
            continue
        partial = own.with_suffix(".partial")
        shutil.copytree(made, partial, dirs_exist_ok=True)
        partial.replace(own)
        return


def _alone(directory: Path, stop: Stop, show: Callable[[str], None]) -> bool:
    """Wait until a training whose sweep was killed has saved and left."""
    while (lock := try_lock(directory / ".lock")) is None:
        if stop.requested:
            return False
        show(f"waiting for the process that still works in {directory}")
        time.sleep(POLL_SECONDS)
    lock.close()
    return True


def _start(command: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start the training, away from the terminal's Ctrl-C but bound to this process.

    It is sent SIGTERM, upon which it saves, even if this process is killed (Linux).
    """
    parent = os.getpid()
    linux = sys.platform == "linux"
    prctl = ctypes.CDLL(None).prctl if linux else lambda *_: 0

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before it could be told
            os._exit(EXIT_STOPPED)

    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        process_group=0,
        preexec_fn=tie,
    )


_PR_SET_PDEATHSIG = 1


def _follow(
    process: subprocess.Popen[bytes],
    claim: Claim,
    sweep: Sweep,
    stop: Stop,
    show: Callable[[str], None],
) -> Outcome | None:
    """Report evaluations as they come; None if the training ended by itself."""
    evaluations = Evaluations(claim.directory / "metrics.jsonl")
    num_steps = claim.values.get("num_steps", sweep.config.num_steps)
    told = "no evaluation yet"
    while True:
        ended = process.poll() is not None  # asked before the last reading
        for line in evaluations.new():
            told = f"{sweep.metric} {short(line.get(sweep.metric))}"
            last = line["step"] >= num_steps
            outcome = _judged(line, claim.trial, sweep.metric, last=last)
            if outcome is not None:
                return outcome
        if ended:
            return None
        if stop.requested:
            return Outcome(state=None)
        show(f"step {evaluations.step}/{num_steps}  {told}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)


def _judged(
    line: Mapping[str, Any], trial: Trial, metric: str, *, last: bool
) -> Outcome | None:
    """Report an evaluation; return how the trial ends, if it does."""
    names = [name for name in line if name not in ("step", "split")]
    if metric not in names:
        raise unmeasured(metric, names)
    step, value = line["step"], line[metric]
    if value is None:
        error = f"{metric} is not a finite number at step {step}"
        return Outcome(state=TrialState.FAIL, error=error)
    if step not in reported(trial):
        trial.report(value, step)
    if not last and trial.should_prune():
        return Outcome(state=TrialState.PRUNED, value=value)
    return None


def reported(trial: Trial) -> dict[int, float]:
    """Return the evaluations of a trial so far, by step."""
    frozen = trial.study.get_trials(deepcopy=False)[trial.number]
    return frozen.intermediate_values


def _ended(code: int, claim: Claim, sweep: Sweep, said: str) -> Outcome:
    """Return what the training's exit code makes of the trial."""
    if code in (EXIT_STOPPED, -signal.SIGTERM, -signal.SIGINT):
        return Outcome(state=None)
    if code < 0:
        error = f"the training was killed by {signal.Signals(-code).name}"
        return Outcome(state=TrialState.FAIL, error=error)
    if code > 0:
        error = said or f"the training ended with exit code {code}"
        return Outcome(state=TrialState.FAIL, error=error)
    values = [value for _, value in sorted(reported(claim.trial).items())]
    if not values:
        raise ConfigError(f"--metric={sweep.metric}: config.data has no valid split")
    best = min(values) if sweep.mode == "min" else max(values)
    value = best if sweep.keeps_best else values[-1]
    return Outcome(state=TrialState.COMPLETE, value=value)


def _said(log: Path, start: int) -> str:
    """Return the error that the training ended with, or the last that it said."""
    lines = log.read_bytes()[start:].decode(errors="replace").split("\n")
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1].removeprefix("error: ")


def _tell(trial: Trial, outcome: Outcome | None, *, seconds: float) -> None:
    """Note in the study how a trial ended, and how long it took in all."""
    before = trial.user_attrs.get("seconds", 0.0)
    trial.set_user_attr("seconds", before + seconds)
    if outcome is None or outcome.state is None:
        return
    if outcome.error:
        trial.set_user_attr("error", outcome.error)
    complete = outcome.state == TrialState.COMPLETE
    trial.study.tell(trial, outcome.value if complete else None, state=outcome.state)
