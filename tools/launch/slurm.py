"""Train on a Slurm cluster: one job, requeued until the training has ended."""

import argparse
import math
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from lmjax.cli.flags import parse_integer
from lmjax.cli.parser import Flag
from lmjax.errors import UserError

from . import names
from .job import Job

TEMPLATE = Path(__file__).with_name("slurm.sbatch")
SIGNAL_SECONDS = 120  # from SIGTERM to the time limit, for saving
MIN_MINUTES = 5
POLL_SECONDS = 2.0
EXIT_INTERRUPTED = 130
FLAGS = (
    Flag(
        "--nodes",
        "the number of nodes, or of workers of a search; default: 1",
        type=parse_integer,
        default=1,
        metavar="N",
    ),
    Flag(
        "--gpus_per_node",
        "GPUs of each node, each with a process of its own; 0: one process for each "
        "node; default: 0",
        default="0",
        metavar="[TYPE:]N",
    ),
    Flag(
        "--time",
        "the time limit, as Slurm writes it; a requeued job has it again",
        required=True,
        metavar="[DAYS-]HOURS:MINUTES:SECONDS|MINUTES",
    ),
    Flag("--partition", "default: the cluster's", default="", metavar="NAME"),
    Flag("--account", "default: the user's", default="", metavar="NAME"),
    Flag(
        "--cpus_per_task",
        "CPUs of each process; default: the cluster's, which is often 1",
        type=parse_integer,
        metavar="N",
    ),
    Flag(
        "--sbatch",
        "another option of sbatch, as in qos=high; may be given several times",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
    ),
    Flag(
        "--requeue",
        "queue the job again when it was stopped (exit code 75), preempted or killed, "
        "or has lost a process (69) or a node",
        action="store_true",
    ),
    Flag(
        "--max_requeues",
        "how often; default: 20",
        type=parse_integer,
        default=20,
        metavar="N",
    ),
    Flag(
        "--follow",
        "print the job's log until it has ended, and return its exit code",
        action="store_true",
    ),
)
# Options of sbatch that the launcher sets itself.
_OWN = {
    "array": "",
    "nodes": "--nodes",
    "ntasks": "",
    "ntasks-per-node": "--gpus_per_node",
    "gpus-per-node": "--gpus_per_node",
    "time": "--time",
    "partition": "--partition",
    "account": "--account",
    "cpus-per-task": "--cpus_per_task",
    "requeue": "--requeue",
    "no-requeue": "--requeue",
    "signal": "",
    "output": "",
    "error": "",
    "open-mode": "",
    "job-name": "",
    "wrap": "",
}


def launch(job: Job, flags: argparse.Namespace, *, dry_run: bool) -> int:
    """Submit a job with sbatch."""
    if job.alone and flags.follow:
        raise UserError("--follow: can follow a training only, not a search")
    script = render(job, flags)
    if dry_run:
        print(script, end="")
        return 0
    sbatch = names.find_program("sbatch", package="Slurm")
    if logs := _log_directory(job.workdir):
        logs.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sbatch, "--parsable"], input=script, capture_output=True, text=True
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["failed without a message"]
        raise UserError(lines[-1])
    number = done.stdout.strip().partition(";")[0]
    each = "*" if job.alone else number
    log = _log_file(job.workdir).replace("%%", "%").replace("%j", each)
    print(f"submitted job {number}; its log is {log}", flush=True)
    return follow(number, Path(log)) if flags.follow else 0


def render(job: Job, flags: argparse.Namespace) -> str:
    """Return the script for sbatch.

    Raises:
      UserError: a flag that Slurm would refuse.
    """
    _check(flags)
    gpus = int(flags.gpus_per_node.rpartition(":")[2])
    options = {
        "job-name": _job_name(job.workdir),
        "array": f"1-{flags.nodes}" if job.alone else None,
        "nodes": 1 if job.alone else flags.nodes,
        "ntasks-per-node": 1 if job.alone else max(1, gpus),
        "gpus-per-node": flags.gpus_per_node if gpus else None,
        "cpus-per-task": flags.cpus_per_task,
        "time": flags.time,
        "partition": flags.partition or None,
        "account": flags.account or None,
        "signal": f"B:TERM@{SIGNAL_SECONDS}",
        "output": _log_file(job.workdir),
        "open-mode": "append",  # for a requeued job
        "requeue" if flags.requeue else "no-requeue": "",
    }
    lines = [
        _directive(name, str(value))
        for name, value in options.items()
        if value is not None
    ]
    lines += [_directive(*_split(option)) for option in flags.sbatch]
    cpus = f"--cpus-per-task={flags.cpus_per_task} " if flags.cpus_per_task else ""
    values = {
        "DIRECTIVES": "\n".join(lines),
        "MAX_REQUEUES": str(flags.max_requeues if flags.requeue else -1),
        "COMMAND": shlex.join(job.train_command(distributed=True)),
        "SRUN_OPTIONS": cpus,
    }
    # One pass: a value may look like another place.
    return re.sub("@([A-Z_]+)@", lambda m: values[m[1]], TEMPLATE.read_text())


def follow(number: str, log: Path) -> int:
    """Print the log of a job until it has ended; return its exit code."""
    shown, before = 0, ""
    try:
        while True:
            state, code = job_state(number)  # before the log is read for the last time
            if state != before:
                print(f"launch: job {number} is {state}", file=sys.stderr, flush=True)
                before = state
            if log.exists():
                with log.open("rb") as file:
                    file.seek(shown)
                    new = file.read()
                shown += len(new)
                sys.stdout.write(new.decode(errors="replace"))
                sys.stdout.flush()
            if code is not None:
                return code
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        print(f"\nthe job goes on; end it with: scancel {number}", file=sys.stderr)
        return EXIT_INTERRUPTED


_ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
}


def job_state(number: str) -> tuple[str, int | None]:
    """Return the state of a job, and its exit code once it has ended.

    Raises:
      UserError: Slurm does not know the job, or cannot be reached.
    """
    command = ["scontrol", "--oneliner", "show", "job", number]
    for attempt in range(1, 6):  # the controller may be busy, or restart
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            break
        time.sleep(attempt * POLL_SECONDS)
    else:
        raise UserError(f"job {number}: {done.stderr.strip() or 'scontrol failed'}")
    fields = dict(field.split("=", 1) for field in done.stdout.split() if "=" in field)
    state = fields.get("JobState", "UNKNOWN")
    code, _, signal = fields.get("ExitCode", "1:0").partition(":")
    if state not in _ENDED:
        return state, None
    number_now = int(code) or (128 + int(signal) if int(signal) else 0)
    return state, number_now or (0 if state == "COMPLETED" else 1)


def _check(flags: argparse.Namespace) -> None:
    for flag, value, least in (
        ("--nodes", flags.nodes, 1),
        ("--max_requeues", flags.max_requeues, 0),
        ("--cpus_per_task", flags.cpus_per_task, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"{flag}={value}: must be >= {least}")
    if not re.fullmatch(r"([-\w.]+:)?\d{1,4}", flags.gpus_per_node, re.ASCII):
        raise UserError(
            f"--gpus_per_node={flags.gpus_per_node}: must be N or TYPE:N, as in 8"
        )
    for flag in ("partition", "account"):
        value = getattr(flags, flag)
        if value and not re.fullmatch(r"[-\w.,@]+", value):
            raise UserError(f"--{flag}={value}: not a name of Slurm")
    if parse_minutes(flags.time) < MIN_MINUTES:
        raise UserError(
            f"--time={flags.time}: must be at least {MIN_MINUTES} minutes; "
            f"the last {SIGNAL_SECONDS} seconds are for saving"
        )


def parse_minutes(text: str) -> float:
    """Return a time limit, written as sbatch takes it, in minutes.

    Raises:
      UserError: sbatch would not take it.
    """
    if text.upper() in ("INFINITE", "UNLIMITED"):
        return math.inf
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    if not all(re.fullmatch(r"\d{1,7}", n, re.ASCII) for n in [days or "0", *parts]):
        parts = []
    if not 1 <= len(parts) <= 3 or (dash and not days):
        raise UserError(
            f"--time={text}: must be MINUTES, HOURS:MINUTES:SECONDS or "
            "DAYS-HOURS:MINUTES:SECONDS, as in 90, 1:30:00 or 2-00:00:00"
        )
    numbers = [int(part) for part in parts]
    if not dash and len(numbers) < 3:  # MINUTES[:SECONDS]
        numbers = [0, *numbers]
    hours, minutes, seconds = [*numbers, 0, 0][:3]
    return int(days or 0) * 24 * 60 + hours * 60 + minutes + seconds / 60


def _split(option: str) -> tuple[str, str]:
    """Return the name and the value of an option that is handed on to sbatch."""
    name, equals, value = option.removeprefix("--").partition("=")
    if not re.fullmatch(r"[a-z][-a-z]*", name) or (equals and not value):
        raise UserError(
            f"--sbatch={option}: must be NAME or NAME=VALUE, as in qos=high"
        )
    if name in _OWN:
        instead = f"; use {_OWN[name]}" if _OWN[name] else ""
        raise UserError(f"--sbatch={option}: {name} is set by the launcher{instead}")
    return name, value


def _directive(name: str, value: str) -> str:
    """Return a line of options for sbatch, which takes quotes off as a shell does."""
    if re.search(r"[\0-\x1f\x7f]", value):
        raise UserError(f"--{name}={value!r}: has a control character")
    plain = re.fullmatch(r"[-\w./:=,@%+]*", value, re.ASCII)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    text = value if plain else f'"{escaped}"'
    return f"#SBATCH --{name}={text}" if value else f"#SBATCH --{name}"


def _job_name(workdir: str) -> str:
    last = [part for part in workdir.split("/") if part][-1:] or ["run"]
    return names.to_label(*last, max_length=60)


def _log_directory(workdir: str) -> Path | None:
    """Return WORKDIR/logs, or None if that is not on a file system."""
    return None if "://" in workdir else Path(workdir).absolute() / "logs"


def _log_file(workdir: str) -> str:
    """Return the pattern of the log's name; %j is the job's number."""
    directory = _log_directory(workdir) or Path.cwd()
    if "\\" in str(directory):
        raise UserError(f"--workdir={workdir}: Slurm writes no log to a path with \\")
    return f"{directory}".replace("%", "%%") + "/slurm-%j.log"
