"""The metrics of a run: metrics.jsonl, TensorBoard and trackers on servers."""

import json
import logging
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmjax.config.experiment import LogConfig
from lmjax.fileio import write_bytes, write_errors
from lmjax.parallel import processes
from lmjax.run.checkpoint_record import LogMark
from lmjax.run.trackers import Writer, open_writers
from lmjax.storage.uploads import Staged

METRICS = "metrics.jsonl"

_log = logging.getLogger(__name__)


class MetricLog:
    """Writes a JSON object for each step and split, and the same to TensorBoard.

    A run that resumes at `start_step` first removes what was logged after it: the log
    reads as if the run had never stopped.

    Args:
      workdir: of the run.
      config: of its log.
      start_step: the step that it resumes at.
      expected: how much had been logged up to that step; a warning tells what is gone.
    """

    def __init__(
        self,
        workdir: Path,
        config: LogConfig,
        *,
        start_step: int,
        expected: LogMark | None = None,
    ) -> None:
        self.file: _LineFile | None = None
        self.writers: list[Writer] = []
        text = ""
        with processes.sync_errors():
            if processes.is_first():
                path = workdir / METRICS
                text = _truncate(path, start_step)
                _warn_of_lost_lines(path, text, step=start_step, expected=expected)
                self.writers = open_writers(
                    workdir,
                    config.trackers,
                    tensorboard=config.tensorboard,
                    start_step=start_step,
                )
                self.file = _LineFile(path)
        # All processes see the lines of the first: what they decide must be the same.
        text = processes.broadcast_string(text)
        self.mark = _mark(text)
        lines = filter(None, map(_parse, text.splitlines(keepends=True)))
        self.evaluations = [line for line in lines if line["split"] != "train"]

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Append one object; `values` are plain numbers."""
        line = json_line({"step": step, "split": split, **values}) + "\n"
        self.mark = _mark(line, after=self.mark)
        if split != "train":
            self.evaluations.append(json.loads(line))
        if self.file is not None:
            self.file.write(line)
        named = {f"{split}/{name}": value for name, value in values.items()}
        for writer in self.writers:
            writer.write(step, named)

    def write_text(self, step: int, name: str, text: str) -> None:
        """Show a text in TensorBoard and the trackers."""
        for writer in self.writers:
            writer.write_text(step, name, text)

    def history(self, split: str, name: str) -> list[float]:
        """Return the values of one metric so far, from before a restart too."""
        values = [
            line[name]
            for line in self.evaluations
            if line["split"] == split and name in line
        ]
        return [v if isinstance(v, int | float) else math.nan for v in values]

    def has(self, step: int, split: str) -> bool:
        """Return whether the split was evaluated after this step."""
        return any((n["step"], n["split"]) == (step, split) for n in self.evaluations)

    def upload_soon(self) -> None:
        """Let what is written by now reach a remote workdir, in the background."""
        if self.file is not None:
            self.file.staged.upload_soon()

    def close(self) -> None:
        """Flush and close the files."""
        if self.file is not None:
            self.file.close()
        for writer in self.writers:
            writer.close()


class _LineFile:
    """Appends lines to a file; on a full disk they wait for room, which is told once.

    Raises:
      UserError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.waiting, self.warned = path, b"", False
        with write_errors(path):
            self.staged = Staged(path.parent, continued=[path.name])
            self.file = (self.staged.local / path.name).open("ab", buffering=0)

    def write(self, line: str) -> None:
        """Append a line, and first those that wait."""
        self.waiting += line.encode()
        try:
            while self.waiting:
                self.waiting = self.waiting[self.file.write(self.waiting) :]
        except OSError as error:
            if not self.warned:
                _log.warning(
                    "%s: cannot be written: %s; training goes on, and the lines wait",
                    self.path,
                    error.strerror,
                )
            self.warned = True

    def close(self) -> None:
        """Close the file; tell how many lines are lost."""
        self.write("")
        if self.waiting:
            count = self.waiting.count(b"\n")
            _log.warning("%s: the last %d lines are lost", self.path, count)
        self.file.close()
        self.staged.close()


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


def _mark(text: str, *, after: LogMark = LogMark()) -> LogMark:
    """Return how much is logged with `text` added."""
    return LogMark(
        num_lines=after.num_lines + text.count("\n"),
        crc32=zlib.crc32(text.encode(), after.crc32),
    )


def _warn_of_lost_lines(
    path: Path, text: str, *, step: int, expected: LogMark | None
) -> None:
    found = _mark(text)
    if expected is None or found == expected:
        return
    lost = expected.num_lines - found.num_lines
    what = (
        f"{lost} of {expected.num_lines} lines are lost or damaged"
        if lost > 0
        else "lines have changed since they were written"
    )
    _log.warning("%s: of the log up to step %d, %s", path, step, what)


def _parse(line: str) -> dict[str, Any] | None:
    """Return the object in a line, or None of a line that is damaged or cut off."""
    try:
        # A damaged number may have thousands of digits.
        values = json.loads(line, parse_int=_parse_int)
        step, split = values["step"], values["split"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    complete = line.endswith("\n") and isinstance(step, int) and isinstance(split, str)
    return values if complete else None


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) < 19 else float(digits)
