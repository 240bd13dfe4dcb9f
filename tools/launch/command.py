"""Start a training on many processes, here or on a cluster.

    python tools/launch.py TARGET --config=FILE.py --workdir=DIR [--config.a.b=V ...]

Each process runs the same `lmjax train`. The config is checked before anything is
started. With --dry_run what would be started is printed. Exit codes are those of lmjax.

    python tools/launch.py TARGET -- sweep --config=FILE.py --workdir=DIR --metric=NAME
      --mode=min|max --search.a.b=RANGE ...

starts workers of one search (tools/sweep.py) instead: each process, node of Slurm,
slice of Kubernetes or TPU VM trains one trial after another. The workdir is a directory
that they share; a trial that was lost with its worker is resumed by another.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lmjax
from lmjax.cli import streams
from lmjax.cli.flags import EXPERIMENT, JOIN_TIMEOUT, PROFILE, RUN
from lmjax.cli.parser import Flag, Program, Verb, parse_args
from lmjax.config.experiment import load
from lmjax.errors import UserError

from . import k8s, local, slurm, tpu_vm
from .job import Job, SweepJob

TARGETS = {"local": local, "slurm": slurm, "k8s": k8s, "tpu-vm": tpu_vm}
PROGRAM = Program(
    name="tools/launch.py",
    verb="target",
    summary="Start one training on many processes.",
)
DRY_RUN = Flag("--dry_run", "print what would be started", action="store_true")
TRAINING = (EXPERIMENT, RUN, PROFILE, JOIN_TIMEOUT, DRY_RUN)


def main(argv: Sequence[str] | None = None) -> int:
    """Start one target and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    streams.configure_logging(debug="--debug" in argv)
    try:
        argv, search = _split(argv)
        common = TRAINING if search is None else (DRY_RUN,)
        verbs = {
            name: Verb(
                target.launch, *common, *target.FLAGS, takes_overrides=search is None
            )
            for name, target in TARGETS.items()
        }
        flags = parse_args(argv, verbs, program=PROGRAM)
        if flags.version:
            print(lmjax.__version__)
            return 0
        job = make_job(flags) if search is None else make_sweep(search)
        return TARGETS[flags.verb].launch(job, flags, dry_run=flags.dry_run)
    except (UserError, OSError) as error:
        if "--debug" in argv:
            raise
        message = str(error)
        if isinstance(error, OSError) and error.filename:
            message = f"{error.filename}: {error.strerror}"
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return 2


def make_job(flags: argparse.Namespace) -> Job:
    """Return the job of the flags, once its config is known to be right.

    Raises:
      UserError: a mistake in the config, which every process would report.
    """
    load(flags.config, flags.overrides, defaults=_init_from_sections(flags.workdir))
    steps = flags.profile
    extra = [f"--profile={steps.start}:{len(steps)}"] if steps else []
    extra += [f"--join_timeout={flags.join_timeout:g}"] if flags.join_timeout else []
    return Job(
        config=flags.config,
        workdir=flags.workdir,
        overrides=tuple(flags.overrides),
        extra=(*extra, *(["--debug"] if flags.debug else [])),
    )


def make_sweep(args: Sequence[str]) -> SweepJob:
    """Return the job of the flags of `tools/sweep.py`, which checks the others itself.

    Raises:
      UserError: there is no config or no workdir, or a mistake in the config.
    """
    given, overrides, extra = {"--config": "", "--workdir": ""}, [], []
    for arg in args:
        flag, equals, value = arg.partition("=")
        if flag in given and equals:
            given[flag] = value
        elif flag.startswith("--config.") and equals:
            overrides.append(arg.removeprefix("--config."))
        else:
            extra.append(arg)
    for flag, value in given.items():
        if not value:
            raise UserError(f"-- sweep: needs {flag}=..., as does tools/sweep.py")
    config, workdir = given.values()
    if "://" in workdir:
        raise UserError(
            f"--workdir={workdir}: must be a directory that all workers share"
        )
    load(config, overrides, defaults=_init_from_sections(workdir))
    return SweepJob(
        config=config, workdir=workdir, overrides=tuple(overrides), extra=tuple(extra)
    )


def _split(argv: list[str]) -> tuple[list[str], list[str] | None]:
    """Return the flags of the target, and those of a search after `-- sweep`."""
    if "--" not in argv:
        return argv, None
    index = argv.index("--")
    program = argv[index + 1 : index + 2]
    if program != ["sweep"]:
        raise UserError(f"-- {' '.join(program)}: must be -- sweep, and its flags")
    return argv[:index], argv[index + 2 :]


def _init_from_sections(workdir: str) -> Any:
    """Return the `defaults` of `load`: the sections that `init_from` gives a config."""

    def sections(path: str) -> dict[str, Any]:
        from lmjax.training import init_from

        return init_from.sections(path, workdir=Path(workdir))

    return sections
