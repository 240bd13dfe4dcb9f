"""The end of a process that a signal interrupts.

This file imports little: its handlers are in place before anything else is imported.
"""

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

EXIT_STOPPED = 75


def handle_early_signals(verb: str) -> None:
    """Let signals end a process that has done nothing yet, without a traceback.

    `train` ends with the exit code that says to run it again.
    """
    if verb != "train":
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        return

    def leave(number: int, frame: FrameType | None) -> None:
        os._exit(EXIT_STOPPED)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup does
            signal.signal(number, leave)


def raise_interrupts() -> None:
    """Let SIGINT raise KeyboardInterrupt again: there is something to clean up."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def restore_default_signals() -> None:
    """Let signals end the process, which has done its work."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def leave_now(code: int) -> NoReturn:
    """End this process and those that it has started, without cleaning up.

    All that is on disk is complete, or will be removed by the next run.
    """
    if "multiprocessing" in sys.modules:
        import multiprocessing

        for child in multiprocessing.active_children():
            child.kill()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            stream.flush()
    os._exit(code)
