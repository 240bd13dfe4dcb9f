"""Start a training on many processes, here or on a cluster.

    python tools/launch.py TARGET --config=FILE.py --workdir=DIR [--config.a.b=V ...]

Each process runs the same `lmjax train`. The config is checked before anything is
started. With --dry_run what would be started is printed. Exit codes are those of lmjax.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lmjax
from lmjax.cli import streams
from lmjax.cli.flags import EXPERIMENT, PROFILE, RUN
from lmjax.cli.parser import Flag, Program, Verb, parse_args
from lmjax.config.experiment import load
from lmjax.errors import UserError

from . import local
from .job import Job

TARGETS = {"local": local}
PROGRAM = Program(
    name="tools/launch.py",
    verb="target",
    summary="Start one training on many processes.",
)
COMMON = (
    EXPERIMENT,
    RUN,
    PROFILE,
    Flag("--dry_run", "print what would be started", action="store_true"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Start one target and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    streams.configure_logging(debug="--debug" in argv)
    try:
        verbs = {
            name: Verb(target.launch, *COMMON, *target.FLAGS, takes_overrides=True)
            for name, target in TARGETS.items()
        }
        flags = parse_args(argv, verbs, program=PROGRAM)
        if flags.version:
            print(lmjax.__version__)
            return 0
        job = make_job(flags)
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
    return Job(
        config=flags.config,
        workdir=flags.workdir,
        overrides=tuple(flags.overrides),
        extra=(*extra, *(["--debug"] if flags.debug else [])),
    )


def _init_from_sections(workdir: str) -> Any:
    """Return the `defaults` of `load`: the sections that `init_from` gives a config."""

    def sections(path: str) -> dict[str, Any]:
        from lmjax.training import init_from

        return init_from.sections(path, workdir=Path(workdir))

    return sections
