"""Training metrics and throughput, read from the devices without waiting for them."""

import collections
import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from lmjax.progress import ProgressBar
from lmjax.run.metric_log import MetricLog
from lmjax.training.compiled import Program
from lmjax.training.hardware import peak_bytes, peak_flops
from lmjax.types import Metrics

# Steps that are dispatched before the metrics of the first of them are read: so many
# that the devices never wait for the host, so few that batches do not pile up.
STEPS_IN_FLIGHT = 2
_ALWAYS = ("loss", "grad_norm")  # of a step, even if it has no target

log = logging.getLogger(__name__)


class NonFiniteError(RuntimeError):
    """The loss or the gradient of a step is not a finite number."""

    def __init__(self, step: int, values: Mapping[str, float]) -> None:
        super().__init__(
            f"step {step}: loss = {values['loss']}, grad_norm = {values['grad_norm']}"
        )
        self.step = step


class Meter:
    """Reads the metrics of each step two steps later, when they are ready.

    Logs every `log.every_steps` the metrics of that step (so that a resumed run logs
    the same) and, over the steps since the last log line, `padding`, `step_seconds`,
    `tokens_per_second`, `tokens_per_second_per_device`, `mfu` (model FLOPs utilization,
    where the peak of the device is known), `data_wait_seconds` and `peak_bytes`; after
    a compilation also `compile_seconds`, and `num_compilations` so far.
    """

    def __init__(
        self,
        metric_log: MetricLog,
        progress: ProgressBar,
        *,
        program: Program,
    ) -> None:
        self.metric_log, self.progress = metric_log, progress
        self.config = program.config
        self.flops_per_token = program.flops_per_token
        self.program, self.compile_seconds = program, 0.0
        self.unread: collections.deque[tuple[int, int, Metrics]] = collections.deque()
        self.seconds_waited = 0.0
        self.steps_timed = self.num_tokens = 0
        self.padding = np.zeros(2)  # sum and weight
        self.mark = time.perf_counter()

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Measure a compilation of the step; its time is not counted as a step's."""
        with self.paused():
            begin = time.perf_counter()
            yield
            self.compile_seconds += time.perf_counter() - begin

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        begin = time.perf_counter()
        yield
        self.seconds_waited += time.perf_counter() - begin

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Read all outstanding metrics; inside, the clock stands still.

        The devices wait for the host inside, so transfers between them are allowed.
        """
        while self.unread:
            self._read()
        begin = time.perf_counter()
        with jax.transfer_guard("allow"):
            yield
        self.mark += time.perf_counter() - begin

    def add(self, step: int, metrics: Metrics, *, num_tokens: int) -> None:
        """Add the metrics of a step that was dispatched, to be read later.

        Raises:
          NonFiniteError: of an earlier step, if the config says to stop.
        """
        self.unread.append((step, num_tokens, metrics))
        if len(self.unread) > STEPS_IN_FLIGHT:
            self._read()

    def _read(self) -> None:
        step, num_tokens, metrics = self.unread.popleft()
        sums = jax.device_get(metrics)
        if "padding" in sums:  # batches differ in it, by their lengths
            self.padding += sums["padding"]
            sums["padding"] = self.padding
        values = {
            name: float(total) / (float(weight) or 1.0)
            for name, (total, weight) in sums.items()
            if weight or name in _ALWAYS  # nothing was measured of the others
        }
        self.steps_timed += 1
        self.num_tokens += num_tokens
        finite = math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])
        if not finite and self.config.optim.on_nonfinite == "stop":
            raise NonFiniteError(step, values)
        if step % self.config.log.every_steps == 0 or step == self.config.num_steps:
            values |= self._throughput()
            self.metric_log.write(step, "train", values)
            speed = f"{values['tokens_per_second']:,.0f} tokens/s"
            self.progress.update(step, f"loss {values['loss']:.4f}  {speed}")

    def _throughput(self) -> dict[str, float]:
        now = time.perf_counter()
        seconds = (now - self.mark) / self.steps_timed
        tokens = self.num_tokens / (now - self.mark)
        num_devices = jax.device_count()
        values = {
            "step_seconds": seconds,
            "tokens_per_second": tokens,
            "tokens_per_second_per_device": tokens / num_devices,
            "data_wait_seconds": self.seconds_waited,
        }
        peak = peak_flops(self.program.model.config.dtype)
        memory = peak_bytes()
        if peak is not None:
            values["mfu"] = tokens * self.flops_per_token / (peak * num_devices)
        if memory is not None:
            values["peak_bytes"] = memory
        if self.compile_seconds:
            values["compile_seconds"] = self.compile_seconds
            values["num_compilations"] = self.program.train_step.num_compilations
        self.mark, self.steps_timed, self.num_tokens = now, 0, 0
        self.padding = np.zeros(2)
        self.seconds_waited = self.compile_seconds = 0.0
        return values
