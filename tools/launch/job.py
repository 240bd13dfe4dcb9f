"""What is to be trained, whatever starts it."""

import dataclasses
import sys
from collections.abc import Sequence

PYTHON = (sys.executable, "-m", "lmjax.cli")


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

    def train_command(
        self, program: Sequence[str] = PYTHON, *, distributed: bool = False
    ) -> list[str]:
        """Return the command of each process.

        Args:
          program: what runs lmjax, such as ("lmjax",).
          distributed: processes learn from their cluster who they are; otherwise
            the target sets the variables of `lmjax.parallel.join`.
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
