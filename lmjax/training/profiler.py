"""Profiler traces of chosen steps."""

import logging
from pathlib import Path

import jax

from lmjax.parallel import processes
from lmjax.types import Metrics

log = logging.getLogger(__name__)


class Tracer:
    """Writes a profiler trace of the steps asked for to the workdir's `profile/`.

    A run that resumes among them traces the rest, one that stops among them what it
    did of them.
    """

    def __init__(self, workdir: Path, steps: range) -> None:
        self.directory, self.steps = workdir / "profile", steps
        self.running = self.wrote = False
        self.metrics: Metrics = {}  # of the last step, which end with it

    def begin(self, step: int) -> None:
        """Trace from here if this step is the first of those asked for."""
        if step in self.steps and not self.wrote and processes.is_first():
            jax.profiler.start_trace(str(self.directory))
            self.running = self.wrote = True

    def end(self, step: int, metrics: Metrics) -> None:
        """Trace until here if this step is the last of those asked for."""
        self.metrics = metrics
        if self.running and step + 1 not in self.steps:
            self._stop()

    def close(self) -> None:
        """Write what there is of a trace."""
        if self.running:
            self._stop()
        elif self.steps and not self.wrote and processes.is_first():
            first, last = self.steps[0], self.steps[-1]
            log.warning("--profile: steps %d to %d were not trained now", first, last)

    def _stop(self) -> None:
        self.running = False
        jax.block_until_ready(self.metrics)
        jax.profiler.stop_trace()
