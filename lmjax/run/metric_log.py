"""metrics.jsonl and TensorBoard: the values of a run."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from lmjax.config.experiment import LogConfig
from lmjax.errors import ConfigError
from lmjax.parallel import processes


class MetricLog:
    """Writes one JSON object for each (step, split), and the same to TensorBoard.

    A run that resumes at `start_step` first drops what was logged after it, so that
    the log reads as if the run had never stopped.
    """

    def __init__(self, workdir: Path, config: LogConfig, *, start_step: int) -> None:
        self.file = self.writer = None
        kept: list[str] = []
        with processes.sync_errors():
            if processes.is_first():
                path = workdir / "metrics.jsonl"
                kept = _keep_until(path, start_step)
                self.file = path.open("a")
                if config.tensorboard:
                    self.writer = SummaryWriter(
                        str(workdir / "tensorboard"), purge_step=start_step + 1
                    )
        # The first process reads for all: what follows from them must be the same.
        lines = map(
            json.loads, processes.allgather_strings("".join(kept))[0].splitlines()
        )
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
