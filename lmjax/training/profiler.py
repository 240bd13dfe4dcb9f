"""Profiler traces of chosen steps."""

import logging
from pathlib import Path

import jax

from lmjax.parallel import processes
from lmjax.storage.uploads import Staged
from lmjax.types import Metrics

log = logging.getLogger(__name__)


class Profiler:
    """Writes a profiler trace of some steps to the workdir's `profile/`.

    A run that resumes among these steps traces the rest of them, and a run that stops
    among them those that it did.
    """

    def __init__(self, workdir: Path, steps: range) -> None:
        self.directory, self.steps = workdir / "profile", steps
        self.running = self.started = False
        self.metrics: Metrics = {}  # of the last step: ready when the step is done

    def begin(self, step: int) -> None:
        """Start the trace if this is the first of the steps."""
        if step in self.steps and not self.started and processes.is_first():
            self.staged = Staged(self.directory)
            jax.profiler.start_trace(str(self.staged.local))
            self.running = self.started = True

    def end(self, step: int, metrics: Metrics) -> None:
        """Write the trace if this is the last of the steps."""
        self.metrics = metrics
        if self.running and step + 1 not in self.steps:
            self._stop()

    def close(self) -> None:
        """Write a trace that is still running; warn if none was written."""
        if self.running:
            self._stop()
        elif self.steps and not self.started and processes.is_first():
            first, last = self.steps[0], self.steps[-1]
            log.warning("--profile: steps %d to %d were not trained now", first, last)

    def _stop(self) -> None:
        self.running = False
        jax.block_until_ready(self.metrics)
        jax.profiler.stop_trace()
        self.staged.close()
