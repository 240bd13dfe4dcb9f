"""Weights & Biases and MLflow, which show the metrics of runs on a server.

Both are optional, and are told where their servers are by their own settings
(`WANDB_PROJECT`, `MLFLOW_TRACKING_URI`, ...).
"""

import importlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lmjax.errors import UserError
from lmjax.fileio import read_json, write_json
from lmjax.run.tensorboard import TensorBoard

IDS = "trackers.json"  # of the runs on the servers, for those who resume

_log = logging.getLogger(__name__)


class Writer(Protocol):
    """Where the metrics of a run go besides metrics.jsonl."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write the numbers among some values."""

    def write_text(self, step: int, name: str, text: str) -> None:
        """Write a text."""

    def close(self) -> None:
        """Write what is left."""


class WandB:
    """A run of Weights & Biases; a run that resumes goes on in it."""

    def __init__(self, wandb: Any, workdir: Path, run_id: str) -> None:
        self.html = wandb.Html
        self.run = wandb.init(
            name=workdir.name, id=run_id or None, resume="allow", dir=str(workdir)
        )
        self.id = str(self.run.id)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write the numbers among some values."""
        self.run.log(_numbers(values), step=step)

    def write_text(self, step: int, name: str, text: str) -> None:
        """Write a text; that of the config is the run's."""
        if name == "config":
            leaves = dict(line.split(" = ", 1) for line in text.splitlines())
            self.run.config.update(leaves, allow_val_change=True)
        else:
            self.run.log({name: self.html(f"<pre>{_escape(text)}</pre>")}, step=step)

    def close(self) -> None:
        """Send what is left."""
        self.run.finish()


class MLflow:
    """A run of MLflow; a run that resumes goes on in it."""

    def __init__(self, mlflow: Any, workdir: Path, run_id: str) -> None:
        self.mlflow = mlflow
        started = mlflow.start_run(run_id=run_id or None, run_name=workdir.name)
        self.id = str(started.info.run_id)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write the numbers among some values."""
        self.mlflow.log_metrics(_numbers(values), step=step)

    def write_text(self, step: int, name: str, text: str) -> None:
        """Write a text as an artifact."""
        file = "config.txt" if name == "config" else f"{name}/{step}.txt"
        self.mlflow.log_text(text, file)

    def close(self) -> None:
        """Send what is left."""
        self.mlflow.end_run()


TRACKERS: dict[str, Any] = {"wandb": WandB, "mlflow": MLflow}


class _Guarded:
    """A writer whose first error is told, and ends it: training goes on."""

    def __init__(self, name: str, writer: Writer) -> None:
        self.name = name
        self.writer: Writer | None = writer

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self._call("write", step, values)

    def write_text(self, step: int, name: str, text: str) -> None:
        self._call("write_text", step, name, text)

    def close(self) -> None:
        self._call("close")

    def _call(self, method: str, *args: Any) -> None:
        if self.writer is None:
            return
        try:
            getattr(self.writer, method)(*args)
        except Exception as error:  # of the network, or of a server
            why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            _log.warning("%s: %s; training goes on without it", self.name, why)
            self.writer = None


def open_writers(
    workdir: Path, names: Sequence[str], *, tensorboard: bool, start_step: int
) -> list[Writer]:
    """Return TensorBoard if it is asked for, and the named trackers.

    Raises:
      UserError: one of them is not installed, or cannot begin a run.
    """
    modules = {name: _import(name) for name in names}
    writers: list[Writer] = []
    if tensorboard:
        directory = workdir / "tensorboard"
        writers.append(TensorBoard(directory, purge_step=start_step + 1))
    if not modules:
        return writers
    path = workdir / IDS
    ids = dict(read_json(path)) if path.exists() else {}
    for name, module in modules.items():
        try:
            tracker = TRACKERS[name](module, workdir, ids.get(name, ""))
        except Exception as error:  # of its settings, the network or a server
            for writer in writers:
                writer.close()
            why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(f"config.log.trackers: {name!r}: {why}") from error
        ids[name] = tracker.id
        write_json(path, ids)  # of those that have begun
        writers.append(_Guarded(name, tracker))
    return writers


def check_installed(names: Sequence[str]) -> None:
    """Check that trackers can be used.

    Raises:
      UserError: one of them is not installed.
    """
    for name in names:
        _import(name)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"config.log.trackers: {name!r} is not installed: pip install {name}"
        ) from error


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {n: v for n, v in values.items() if isinstance(v, int | float)}


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
