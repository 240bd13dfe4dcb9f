"""What the user sees on stderr: the lines of lmjax, not those of libraries.

With a workdir, what libraries log and print goes to its log.txt.
"""

import contextlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FORMAT = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"


class _StandardError(logging.Handler):
    """Prints the messages of lmjax to the stderr of the moment, without tracebacks."""

    debug = False  # whether those of libraries, and tracebacks, are printed too

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        if record.name.split(".")[0] == "lmjax" or self.debug:
            text = self.format(record) if self.debug else record.getMessage()
            with contextlib.suppress(OSError, ValueError):  # a closed terminal or pipe
                print(text, file=sys.stderr, flush=True)


def configure_logging(*, debug: bool) -> None:
    """Show the messages of lmjax, and with `debug` the warnings of libraries."""
    logging.raiseExceptions = False  # a full disk must not print a traceback
    logging.captureWarnings(not debug)
    root = logging.getLogger()
    handlers = [h for h in root.handlers if isinstance(h, _StandardError)]
    if not handlers:
        handlers = [_StandardError()]
        root.addHandler(handlers[0])
    handlers[0].debug = debug
    logging.getLogger("lmjax").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax logs every save


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Send to a file what is logged, and all that is printed outside of Python.

    Errors in threads and in destructors are told there, too. If the file cannot be
    written nothing changes: whoever needs the directory will say so.
    """
    from lmjax.storage.uploads import Staged

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = Staged(path.parent, continued=[path.name])
        handler = logging.FileHandler(staged.local / path.name)
    except OSError:
        yield
        return
    handler.setFormatter(logging.Formatter(_FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        assert handler.stream is not None, "it is opened at once"
        with _descriptor_to(handler.stream.fileno()), _hooks_to(root):
            yield
    finally:
        root.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()
        staged.close()


@contextlib.contextmanager
def _descriptor_to(file: int) -> Iterator[None]:
    """Let file descriptor 2 be a file, while `sys.stderr` stays where it was.

    Libraries in C++, and processes that are started here, write to the descriptor.
    """
    try:
        is_descriptor = sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):  # replaced, or closed
        is_descriptor = False
    if not is_descriptor:
        yield
        return
    stderr = sys.stderr
    stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    os.dup2(file, 2)
    try:
        yield
    finally:
        os.dup2(sys.stderr.fileno(), 2)
        with contextlib.suppress(OSError):
            sys.stderr.close()
        sys.stderr = stderr


@contextlib.contextmanager
def _hooks_to(logger: logging.Logger) -> Iterator[None]:
    """Log the errors of threads and destructors, which Python prints."""
    thread_hook, destructor_hook = threading.excepthook, sys.unraisablehook

    def log(kind: Any, value: Any, trace: Any, where: object) -> None:
        text = "".join(traceback.format_exception(kind, value, trace))
        logger.error("in %r: %s", where, text)

    threading.excepthook = lambda e: log(
        e.exc_type, e.exc_value, e.exc_traceback, e.thread
    )
    sys.unraisablehook = lambda e: log(
        e.exc_type, e.exc_value, e.exc_traceback, e.object
    )
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = thread_hook, destructor_hook
