"""What a run says: metrics.jsonl, TensorBoard, and the console."""

import collections
import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from tensorboardX import SummaryWriter

from lmjax import device
from lmjax.config import ConfigError, LogConfig
from lmjax.program import Program
from lmjax.types import Metrics

# Steps that the device may be ahead of what the host has read: enough that it never
# waits for the host, few enough that batches do not pile up.
STEPS_IN_FLIGHT = 2

log = logging.getLogger(__name__)


class NonFiniteError(RuntimeError):
    """The loss or the gradient of a step is not a finite number."""

    def __init__(self, step: int, values: Mapping[str, float]) -> None:
        super().__init__(
            f"step {step}: loss = {values['loss']}, grad_norm = {values['grad_norm']}"
        )
        self.step = step


class MetricLog:
    """Writes one JSON object for each (step, split), and the same to TensorBoard.

    A run that resumes at `start_step` first drops what was logged after it, so that
    the log reads as if the run had never stopped.
    """

    def __init__(self, workdir: Path, config: LogConfig, *, start_step: int) -> None:
        self.file = self.writer = None
        kept: list[str] = []
        with device.together():
            if device.is_first():
                path = workdir / "metrics.jsonl"
                kept = _keep_until(path, start_step)
                self.file = path.open("a")
                if config.tensorboard:
                    self.writer = SummaryWriter(
                        str(workdir / "tensorboard"), purge_step=start_step + 1
                    )
        # The first process reads for all: what follows from them must be the same.
        lines = map(json.loads, device.gathered("".join(kept))[0].splitlines())
        self.held_out = [line for line in lines if line["split"] != "train"]

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Append one object; `values` are plain numbers."""
        line = {"step": step, "split": split, **values}
        if split != "train":
            self.held_out.append(json.loads(json_line(line)))
        if self.file is not None:
            self.file.write(json_line(line) + "\n")
            self.file.flush()
        if self.writer is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self.writer.add_scalar(f"{split}/{name}", value, step)

    def history(self, split: str, name: str) -> list[float]:
        """Return one metric's values so far, those before a restart included."""
        return [
            math.nan if line[name] is None else line[name]
            for line in self.held_out
            if line["split"] == split and name in line
        ]

    def holds(self, step: int, split: str) -> bool:
        """Return whether a held-out split was evaluated after this step."""
        return any((n["step"], n["split"]) == (step, split) for n in self.held_out)

    def close(self) -> None:
        """Flush and close the files."""
        if self.file is not None:
            self.file.close()
        if self.writer is not None:
            self.writer.close()


def json_line(values: Mapping[str, Any]) -> str:
    """Return an object as JSON, which has no NaN and no infinity: they are null."""
    return json.dumps(
        {
            name: None
            if isinstance(value, float) and not math.isfinite(value)
            else value
            for name, value in values.items()
        }
    )


def _keep_until(path: Path, step: int) -> list[str]:
    """Drop the lines after `step`, and those that are damaged; return the others.

    Raises:
      ConfigError: the file cannot be read or written.
    """
    try:
        lines = path.read_text(errors="replace") if path.exists() else ""
        kept = [line for line in lines.splitlines(keepends=True) if _is_of(line, step)]
        part = path.with_suffix(".part")
        part.write_text("".join(kept))
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be used: {error.strerror}") from error
    return kept


def _is_of(line: str, last_step: int) -> bool:
    """Return whether a line is whole, and of a step up to the last."""
    try:
        values = json.loads(line)
        whole = line.endswith("\n") and isinstance(values["split"], str)
        return bool(whole and values["step"] <= last_step)
    except (json.JSONDecodeError, KeyError, TypeError):
        return False


class ProgressLine:
    """A live line on a terminal, and a plain one every few seconds elsewhere."""

    def __init__(self, *, start_step: int, num_steps: int) -> None:
        self.console = Console(stderr=True)
        self.num_steps = num_steps
        self.visible = device.is_first()
        self.last_print = 0.0
        self.bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            disable=not (self.visible and self.console.is_terminal),
            transient=True,
        )
        self.task = self.bar.add_task(
            "", total=num_steps, completed=start_step, text="compiling"
        )
        self.start_step, self.start_time = start_step, time.perf_counter()
        self.bar.start()

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Show where training stands."""
        text = f"loss {values['loss']:.4f}  {values['tokens_per_second']:,.0f} tokens/s"
        self.bar.update(self.task, completed=step, text=text)
        now = time.perf_counter()
        if self.bar.disable and self.visible and now - self.last_print > 5.0:
            self.last_print = now
            rate = (now - self.start_time) / max(step - self.start_step, 1)
            left = rate * (self.num_steps - step)
            self.print(f"step {step}/{self.num_steps}  {text}  {left:,.0f} s left")

    def print(self, text: str) -> None:
        """Print a line above the live one."""
        if self.visible:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the live line away."""
        self.bar.stop()


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
        if step in self.steps and not self.wrote and device.is_first():
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
        elif self.steps and not self.wrote and device.is_first():
            first, last = self.steps[0], self.steps[-1]
            log.warning("--profile: steps %d to %d were not trained now", first, last)

    def _stop(self) -> None:
        self.running = False
        jax.block_until_ready(self.metrics)
        jax.profiler.stop_trace()


class Meter:
    """Reads the metrics of each step a little late, so that the device never waits.

    Written every `log.every_steps`: the metrics of that very step (so that a resumed
    run logs the same), and, over the steps since the last writing, `padding`,
    `step_seconds`, `tokens_per_second`, `tokens_per_second_per_device`, `mfu` (model
    FLOPs utilisation, where the device's peak is known), `data_wait_seconds` and
    `peak_bytes`; after a compilation `compile_seconds`, and `num_compilations` so far.
    """

    def __init__(
        self,
        metric_log: MetricLog,
        progress: ProgressLine,
        *,
        program: Program,
    ) -> None:
        self.metric_log, self.progress = metric_log, progress
        self.config = program.config
        self.flops_per_token = program.flops_per_token
        self.compile_seconds, self.num_compilations = 0.0, 0
        self.unread: collections.deque[tuple[int, int, Metrics]] = collections.deque()
        self.seconds_waited = 0.0
        self.steps_timed = self.num_tokens = 0
        self.padding = np.zeros(2)  # sum and weight
        self.mark = time.perf_counter()

    def compiled(self, seconds: float) -> None:
        """Note that the step was compiled for one more shape of batch."""
        self.compile_seconds += seconds
        self.num_compilations += 1

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        begin = time.perf_counter()
        yield
        self.seconds_waited += time.perf_counter() - begin

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Read all that is outstanding, and do not count the time inside."""
        while self.unread:
            self._read()
        begin = time.perf_counter()
        yield
        self.mark += time.perf_counter() - begin

    def add(self, step: int, metrics: Metrics, *, num_tokens: int) -> None:
        """Take the metrics of a step that has been dispatched, and its batch's tokens.

        Raises:
          NonFiniteError: an earlier step went wrong, and the config says to stop.
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
        }
        self.steps_timed += 1
        self.num_tokens += num_tokens
        finite = math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])
        if not finite and self.config.optim.on_nonfinite == "stop":
            raise NonFiniteError(step, values)
        if step % self.config.log.every_steps == 0 or step == self.config.num_steps:
            values |= self._speed()
            self.metric_log.write(step, "train", values)
            self.progress.update(step, values)

    def _speed(self) -> dict[str, float]:
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
        peak, memory = device.peak_flops(), device.peak_bytes()
        if peak is not None:
            values["mfu"] = tokens * self.flops_per_token / (peak * num_devices)
        if memory is not None:
            values["peak_bytes"] = memory
        if self.compile_seconds:
            values["compile_seconds"] = self.compile_seconds
            values["num_compilations"] = self.num_compilations
        self.mark, self.steps_timed, self.num_tokens = now, 0, 0
        self.padding = np.zeros(2)
        self.seconds_waited = self.compile_seconds = 0.0
        return values
