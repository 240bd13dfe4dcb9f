"""The end of a process from outside its main thread, which may hang."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

_LAST_WORDS_SECONDS = 5.0  # a terminal or a disk may hang, too


def end_process(code: int) -> None:
    """End this process and those that it has started, without cleaning up."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)


def try_for_a_moment(act: Callable[[], object]) -> None:
    """Do something that may fail or hang, for a few seconds at most."""

    def run() -> None:
        with contextlib.suppress(Exception):
            act()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_LAST_WORDS_SECONDS)


def print_line(text: str) -> None:
    """Print a line where the user sees it."""
    try_for_a_moment(lambda: print(text, file=sys.stderr, flush=True))


_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)


@contextlib.contextmanager
def on_abort(act: Callable[[], None]) -> Iterator[None]:
    """Call a function when the runtime aborts this process.

    It does so in a thread of its own when another process is gone. Python's handlers of
    signals wait for the main thread, which waits for the devices: this one does not.

    Args:
      act: called in the thread that aborts, which goes on when this returns.
    """
    handler = _Handler(lambda number: act())
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes = [ctypes.c_int, ctypes.c_void_p]
    set_handler.restype = ctypes.c_void_p
    before = set_handler(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        set_handler(signal.SIGABRT, before)
