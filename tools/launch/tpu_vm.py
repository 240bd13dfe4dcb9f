"""Train on Cloud TPU VMs: the same command on every host of a slice, through SSH."""

import argparse
import contextlib
import re
import shlex
import subprocess

from lmjax.cli.parser import Flag
from lmjax.errors import UserError

from . import names
from .job import Job

PROGRAM = ("python3", "-m", "lmjax.cli")
FLAGS = (
    Flag(
        "name",
        "of the TPU VM; for a search of one or more with one host, a worker on each",
        metavar="NAME[,NAME...]",
    ),
    Flag("--zone", "of the TPU VM", required=True, metavar="ZONE"),
    Flag("--project", "default: gcloud's", default="", metavar="PROJECT"),
    Flag(
        "--directory",
        "of the checkout on the hosts, below the home directory; there relative paths "
        "of the config and of data begin; default: lmjax",
        default="lmjax",
        metavar="DIR",
    ),
)
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_ZONE = re.compile(r"[a-z]+(-[a-z]+)+[0-9]+-[a-z]")
_PROJECT = re.compile(r"([-a-z0-9.]+:)?[a-z][-a-z0-9]{2,61}[a-z0-9]")


def launch(job: Job, flags: argparse.Namespace, *, dry_run: bool) -> int:
    """Run the command on all hosts with gcloud, which shows what they print."""
    machines = flags.name.split(",") if job.alone else [flags.name]
    commands = [ssh_command(job, flags, name=name) for name in machines]
    if dry_run:
        for command in commands:
            print(shlex.join(command))
        return 0
    gcloud = names.find_program("gcloud", package="the Google Cloud CLI")
    running = [subprocess.Popen([gcloud, *command[1:]]) for command in commands]
    return max(_wait(process) for process in running)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Return the exit code of a process, which gets the terminal's Ctrl-C itself."""
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            code = process.wait()
            return code if code >= 0 else 128 - code


def ssh_command(job: Job, flags: argparse.Namespace, *, name: str) -> list[str]:
    """Return the command line of gcloud for one TPU VM.

    Raises:
      UserError: a name that Google Cloud would refuse.
    """
    for flag, value, pattern, example in (
        ("NAME", name, _NAME, "my-tpu"),
        ("--zone", flags.zone, _ZONE, "us-east5-a"),
        ("--project", flags.project or "project", _PROJECT, "my-project"),
    ):
        if not pattern.fullmatch(value):
            raise UserError(f"{flag}={value}: not a name of Google Cloud, as {example}")
    training = shlex.join(job.train_command(PROGRAM, distributed=True))
    directory = flags.directory.removeprefix("~/") or "."
    return [
        *("gcloud", "compute", "tpus", "tpu-vm", "ssh", name),
        f"--zone={flags.zone}",
        *([f"--project={flags.project}"] if flags.project else []),
        "--worker=all",
        f"--command=cd -- {shlex.quote(directory)} && exec {training}",
    ]
