"""The metrics of a run: metrics.jsonl and TensorBoard."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from lmjax.config.experiment import LogConfig
from lmjax.fileio import write_bytes, write_errors
from lmjax.parallel import processes

METRICS = "metrics.jsonl"


class MetricLog:
    """Writes a JSON object for each step and split, and the same to TensorBoard.

    A run that resumes at `start_step` first removes what was logged after it: the log
    reads as if the run had never stopped.
    """

    def __init__(self, workdir: Path, config: LogConfig, *, start_step: int) -> None:
        self.file = self.writer = None
        text = ""
        with processes.sync_errors():
            if processes.is_first():
                path = workdir / METRICS
                text = _truncate(path, start_step)
                with write_errors(path):
                    self.file = path.open("a")
                if config.tensorboard:
                    self.writer = SummaryWriter(
                        str(workdir / "tensorboard"), purge_step=start_step + 1
                    )
        # All processes see the lines of the first: what they decide must be the same.
        lines = map(json.loads, processes.allgather_strings(text)[0].splitlines())
        self.evaluations = [line for line in lines if line["split"] != "train"]

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Append one object; `values` are plain numbers."""
        line = json_line({"step": step, "split": split, **values})
        if split != "train":
            self.evaluations.append(json.loads(line))
        if self.file is not None:
            self.file.write(line + "\n")
            self.file.flush()
        if self.writer is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self.writer.add_scalar(f"{split}/{name}", value, step)

    def history(self, split: str, name: str) -> list[float]:
        """Return the values of one metric so far, from before a restart too."""
        return [
            math.nan if line[name] is None else line[name]
            for line in self.evaluations
            if line["split"] == split and name in line
        ]

    def has(self, step: int, split: str) -> bool:
        """Return whether the split was evaluated after this step."""
        return any((n["step"], n["split"]) == (step, split) for n in self.evaluations)

    def close(self) -> None:
        """Flush and close the files."""
        if self.file is not None:
            self.file.close()
        if self.writer is not None:
            self.writer.close()


def json_line(values: Mapping[str, Any]) -> str:
    """Return an object as JSON; NaN and infinity, which JSON lacks, become null."""
    return json.dumps(
        {
            name: None
            if isinstance(value, float) and not math.isfinite(value)
            else value
            for name, value in values.items()
        }
    )


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Return what a run has logged, in order; damaged lines are left out."""
    path = workdir / METRICS
    content = path.read_bytes() if path.exists() else b""
    parsed = map(_parse, content.decode(errors="replace").splitlines(keepends=True))
    return [values for values in parsed if values is not None]


def _truncate(path: Path, step: int) -> str:
    """Remove the lines after `step` and those that are damaged; return the others.

    Raises:
      UserError: the file cannot be read or written.
    """
    with write_errors(path):
        text = path.read_text(errors="replace") if path.exists() else ""
    lines = ((line, _parse(line)) for line in text.splitlines(keepends=True))
    kept = "".join(line for line, values in lines if values and values["step"] <= step)
    write_bytes(path, kept.encode())
    return kept


def _parse(line: str) -> dict[str, Any] | None:
    """Return the object in a line, or None of a line that is damaged or cut off."""
    try:
        values = json.loads(line)
        step, split = values["step"], values["split"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return None
    complete = line.endswith("\n") and isinstance(step, int) and isinstance(split, str)
    return values if complete else None
