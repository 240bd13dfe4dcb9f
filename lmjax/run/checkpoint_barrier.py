"""Where the processes of a run meet when each has written its part of a checkpoint.

A process whose part fails never comes: the others give up as soon as they are told.
"""

import itertools
import threading
import time
from typing import Protocol

_SLICE_SECONDS = 2.0  # between two looks at whether to give up


class Barrier(Protocol):
    """Waits until all processes have called it with a key; raises after a time."""

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Wait."""


class CommitBarrier:
    """A barrier for a thread in the background, which another thread may end.

    It waits for short times, one after another: a barrier that was entered cannot be
    left before its time is over.
    """

    def __init__(self, barrier: Barrier) -> None:
        self._barrier = barrier
        self._given_up = threading.Event()

    def give_up(self) -> None:
        """Let waiting end with an error, now and in future."""
        self._given_up.set()

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Wait for all processes.

        Raises:
          TimeoutError: `give_up` was called.
          RuntimeError: they did not come in time; the text names those missing.
        """
        end = time.monotonic() + timeout_ms / 1000
        for attempt in itertools.count():
            if self._given_up.is_set():
                raise TimeoutError("another process could not write its part")
            seconds = max(0.001, min(_SLICE_SECONDS, end - time.monotonic()))
            try:
                self._barrier(key=f"{key}.{attempt}", timeout_ms=int(1000 * seconds))
            except RuntimeError as error:
                late = time.monotonic() >= end
                if late or "DEADLINE_EXCEEDED" not in str(error):
                    raise
            else:
                return
