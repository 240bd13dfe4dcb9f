"""What is to be trained, whatever starts it."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

PYTHON = (sys.executable, "-m", "lmjax.cli")
SWEEP = "tools/sweep.py"  # below the checkout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One training: an experiment in a workdir.

    A target that gives the processes a config or a workdir at other paths does so with
    `dataclasses.replace`.
    """

    config: str  # FILE.py[:ARG]
    workdir: str
    overrides: tuple[str, ...] = ()  # a.b=VALUE, without --config.
    extra: tuple[str, ...] = ()  # other flags of `lmjax train`
    alone: ClassVar[bool] = False  # each process works by itself

    def train_command(
        self, program: Sequence[str] = PYTHON, *, distributed: bool = False
    ) -> list[str]:
        """Return the command of each process.

        Args:
          program: what runs lmjax, such as ("lmjax",).
          distributed: processes learn from their cluster who they are; otherwise
            the target sets the variables of `lmjax.parallel.identity`.
        """
        return [
            *program,
            "train",
            f"--config={self.config}",
            f"--workdir={self.workdir}",
            *(f"--config.{override}" for override in self.overrides),
            *(["--distributed"] if distributed else []),
            *self.extra,
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepJob(Job):
    """A search over leaves of the config: `extra` has the flags of `tools/sweep.py`.

    Each process is a worker, which runs one trial after another. They share the study
    in the workdir, and do not join each other.
    """

    alone: ClassVar[bool] = True

    def train_command(
        self, program: Sequence[str] = PYTHON, *, distributed: bool = False
    ) -> list[str]:
        """Return the command of each worker.

        Args:
          program: begins with the Python that runs it; unless it is that of this
            machine, in a checkout of lmjax.
          distributed: without a meaning here.
        """
        here = Path(__file__).parents[2] / SWEEP
        return [
            program[0],
            str(here) if program == PYTHON else SWEEP,
            f"--config={self.config}",
            f"--workdir={self.workdir}",
            *(f"--config.{override}" for override in self.overrides),
            *self.extra,
        ]
