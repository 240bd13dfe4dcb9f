"""TensorBoard event files, written in the caller's thread.

tensorboardX's own `SummaryWriter` has a thread that dies on a full disk, and then its
caller waits for it for ever.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lmjax.storage.uploads import Staged


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Hide PyTorch from imports that use it only for its tensors; it takes seconds."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


with _without_torch():
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar
    from tensorboardX.summary import text as text_summary

_FLUSH_SECONDS = 30.0

_log = logging.getLogger(__name__)


class TensorBoard:
    """Writes scalars and texts; a warning tells of the first error, which ends it.

    Args:
      directory: of the event files; created if missing.
      purge_step: TensorBoard hides what earlier files have from this step on.
    """

    def __init__(self, directory: Path, *, purge_step: int) -> None:
        self.directory = directory
        self.writer: EventsWriter | None = None
        self.staged: Staged | None = None
        self.flushed = 0.0
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self.staged = Staged(directory)
            self.writer = EventsWriter(str(self.staged.local / "events"))
            start = SessionLog(status=SessionLog.START)
            self.writer.write_event(Event(step=purge_step, session_log=start))
        except OSError as error:
            self._give_up(error)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write the numbers among some values."""
        self._write(
            step,
            (
                scalar(name, value)
                for name, value in values.items()
                if isinstance(value, int | float)
            ),
        )

    def write_text(self, step: int, name: str, text: str) -> None:
        """Write a text, which TensorBoard shows as it is."""
        # Indented lines are code in Markdown: nothing in them is a mark.
        lines = "".join(f"    {line}\n" for line in text.splitlines())
        self._write(step, [text_summary(name, lines)])

    def _write(self, step: int, summaries: Iterable[Any]) -> None:
        if self.writer is None:
            return
        now = time.time()
        try:
            for summary in summaries:
                event = Event(step=step, wall_time=now, summary=summary)
                self.writer.write_event(event)
            if now - self.flushed > _FLUSH_SECONDS:
                self.writer.flush()
                self.flushed = now
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Write what is left, and close the file."""
        if self.writer is not None:
            try:
                self.writer.close()
            except OSError as error:
                self._give_up(error)
        if self.staged is not None:
            self.staged.close()

    def _give_up(self, error: OSError) -> None:
        _log.warning(
            "%s: cannot be written: %s; training goes on without it",
            self.directory,
            error.strerror,
        )
        writer, self.writer = self.writer, None
        if writer is not None:
            with contextlib.suppress(OSError):  # what it had not written yet is lost
                writer._py_recordio_writer.close()
