"""SIGTERM, SIGINT and SIGHUP: finish the step, save, and leave."""

import errno
import os
import signal
import stat
import termios
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from lmjax.parallel.monitor import Monitor

EXIT_STOPPED = 75  # sysexits.h's EX_TEMPFAIL: run the same command again to continue

# How to leave at once, with an exit code. Raising may be swallowed by what it happens
# to interrupt, so the command line ends the process.
LeaveNow = Callable[[int], NoReturn]


def raise_exit(code: int) -> NoReturn:
    """Leave a program that has other things to do, such as a notebook."""
    raise SystemExit(code) if code == EXIT_STOPPED else KeyboardInterrupt


class StopSignal:
    """Notes a signal, for the loop to save and leave.

    Until `defer` is called there is nothing to save, and a signal exits at once. After
    it a second SIGINT does.

    Args:
      leave_now: called to exit at once.
    """

    def __init__(self, leave_now: LeaveNow = raise_exit) -> None:
        self.leave_now = leave_now
        self.requested = self.deferred = False
        self.monitor: Monitor | None = None  # where there are several processes
        self.previous: dict[int, Any] = {}  # handlers

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if number == signal.SIGHUP and _is_ignored(number):
                    continue  # as nohup does
                self.previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def defer(self, step: int) -> None:
        """Begin to train after a step: only note a signal, for `is_requested`."""
        self.deferred = True
        if self.monitor is not None:
            self.monitor.gate.enter(step)

    def share(self, monitor: Monitor | None) -> None:
        """Let a signal to one of several processes stop all."""
        self.monitor = monitor

    def is_requested(self, step: int, *, or_else: bool = False) -> bool:
        """Return whether to leave after this step; several processes leave together.

        Args:
          step: that was begun last.
          or_else: another reason to leave.
        """
        requested = self.requested or or_else
        if self.monitor is None:
            return requested
        if requested:
            self.monitor.request_stop()
        return self.monitor.gate.leave_after(step)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _detach_from_lost_terminal()
        if not self.deferred and self.monitor is None:
            self.leave_now(EXIT_STOPPED)
        if self.requested and number == signal.SIGINT:
            self.leave_now(128 + signal.SIGINT)
        self.requested = True


def _is_ignored(number: int) -> bool:
    return signal.getsignal(number) == signal.SIG_IGN


def _detach_from_lost_terminal() -> None:
    """Let what is printed from now on go nowhere, where the terminal was closed."""
    for descriptor in (1, 2):
        try:
            if not stat.S_ISCHR(os.fstat(descriptor).st_mode):
                continue
            termios.tcgetattr(descriptor)
        except (OSError, termios.error) as error:
            if error.args[0] != errno.EIO:
                continue
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)
