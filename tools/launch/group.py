"""Processes on this machine that start together, are watched, and end together."""

import collections
import contextlib
import dataclasses
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

EXIT_STOPPED = 75
CHILD = (sys.executable, "-I", str(Path(__file__).parents[1] / "child.py"))
# How long the others may go on once one process has failed: they learn of it and say
# why they end, or wait for it in vain.
FAILED_SECONDS = 5.0
# The same once one has saved and stopped: others are told to after the first time.
TELL_SECONDS, STOPPED_SECONDS = 5.0, 60.0
_POLL_SECONDS = 0.1
_NUM_LAST_LINES = 10
_MAX_LINE_BYTES = 1 << 16
_CONTROL = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[()][0-9A-B]|\x07")
_printing = threading.Lock()


def say(text: str) -> None:
    """Print a line of the launcher's own."""
    _print(f"{text}\n", sys.stderr)


def _print(text: str, stream: IO[str]) -> None:
    with _printing, contextlib.suppress(OSError, ValueError):  # a closed terminal
        stream.write(text)
        stream.flush()


class Signals:
    """Notes SIGINT, SIGTERM and SIGHUP."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.before = {}

    def __enter__(self) -> "Signals":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup does
                self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.received.append(number)

    def wait(self, seconds: float) -> None:
        """Wait, or until there is a signal."""
        deadline = time.monotonic() + seconds
        while not self.received and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ending:
    """How all processes ended: the exit code, and a line that says why if not 0."""

    code: int
    text: str = ""


def run(
    command: Sequence[str],
    *,
    environs: Sequence[Mapping[str, str]],
    logs: Path,
    signals: Signals,
) -> Ending:
    """Run a command once for each environment, until the last process has ended.

    What they print appears here with the number of the process before each line, and
    in LOGS/process-N.log. The first signal is forwarded to all, the second kills them;
    once a process has failed, the others have a few seconds to end.
    """
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()
    processes: list[_Process] = []
    try:
        # From this thread: with it the processes would end (child.py).
        for rank, environ in enumerate(environs):
            processes.append(
                _Process(
                    command,
                    environ,
                    rank=rank,
                    width=len(str(len(environs) - 1)),
                    log=logs / f"process-{rank}.log",
                    ended=ended,
                )
            )
        order = _watch(processes, ended, signals)
    finally:
        for process in processes:
            process.kill()
    for process in processes:
        process.finish_output()
    return _describe(processes, order, signals, logs)


class _Process:
    """One of the processes, and what it prints."""

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        *,
        rank: int,
        width: int,
        log: Path,
        ended: "queue.SimpleQueue[int]",
    ) -> None:
        self.rank, self.prefix = rank, f"[{rank:>{width}}] "
        self.last = collections.deque[str](maxlen=_NUM_LAST_LINES)
        self.killed_by_us = False
        self.start = time.monotonic()
        self.seconds = 0.0  # from its start to its end
        self.log = log.open("wb")
        self.popen = subprocess.Popen(
            [*CHILD, str(os.getpid()), *command],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,  # out of reach of the terminal's Ctrl-C
        )
        pipes = ((self.popen.stdout, sys.stdout), (self.popen.stderr, sys.stderr))
        self.threads = [
            threading.Thread(target=self._copy, args=pipe, daemon=True)
            for pipe in pipes
        ]
        waiter = threading.Thread(target=self._wait, args=(ended,), daemon=True)
        for thread in (*self.threads, waiter):
            thread.start()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.popen.poll() is None

    def send(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        with contextlib.suppress(OSError):
            self.popen.send_signal(number)

    def kill(self) -> None:
        """Kill it and all that it has started, if it has not ended."""
        if self.is_running:
            self.killed_by_us = True
            with contextlib.suppress(OSError):
                os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()

    def finish_output(self) -> None:
        """Wait until all that it printed has been copied."""
        for thread in self.threads:
            thread.join(timeout=2.0)  # what it started may hold the pipe open
        with contextlib.suppress(OSError):
            self.log.close()

    def _wait(self, ended: "queue.SimpleQueue[int]") -> None:
        self.popen.wait()
        self.seconds = time.monotonic() - self.start
        ended.put(self.rank)

    def _copy(self, pipe: IO[bytes], stream: IO[str]) -> None:
        for raw in _lines(pipe):
            text = raw.decode(errors="replace")
            with contextlib.suppress(OSError, ValueError):  # a full disk
                self.log.write(raw + b"\n")
                self.log.flush()
            if text.strip():
                self.last.append(text)
            _print(f"{self.prefix}{text}\n", stream)


def _lines(pipe: IO[bytes]) -> Iterator[bytes]:
    """Yield lines without what only a terminal can show.

    Of a line that was drawn over several times, as a progress bar is, the last state.
    """
    rest = b""
    while chunk := pipe.read1(_MAX_LINE_BYTES):
        *complete, rest = (rest + chunk).split(b"\n")
        for line in complete:
            yield _last_state(line)
        if b"\r" in rest[:-1]:
            rest = _last_state(rest)
        if len(rest) > _MAX_LINE_BYTES:
            yield rest
            rest = b""
    if rest:
        yield _last_state(rest)


def _last_state(line: bytes) -> bytes:
    line = _CONTROL.sub(b"", line)
    return next((part for part in reversed(line.split(b"\r")) if part), b"")


def _watch(
    processes: Sequence[_Process],
    ended: "queue.SimpleQueue[int]",
    signals: Signals,
) -> list[int]:
    """Wait for all processes; return them in the order of their ends."""
    order: list[int] = []
    num_signals = 0
    tell_at = kill_at = float("inf")
    while len(order) < len(processes):
        if len(signals.received) > num_signals:
            num_signals = len(signals.received)
            _forward(processes, signals.received)
        now = time.monotonic()
        if now > tell_at:
            tell_at = float("inf")
            for process in processes:
                process.send(signal.SIGTERM)
        if now > kill_at:
            for process in filter(lambda p: p.is_running, processes):
                say(f"process {process.rank} still ran, and is killed")
                process.kill()
        try:
            rank = ended.get_nowait()
        except queue.Empty:
            # Not `get(timeout=...)`: it may wait forever if a signal interrupts it.
            time.sleep(_POLL_SECONDS)
            continue
        order.append(rank)
        code, now = processes[rank].popen.returncode, time.monotonic()
        if code == EXIT_STOPPED:
            tell_at = min(tell_at, now + TELL_SECONDS)
            kill_at = min(kill_at, now + STOPPED_SECONDS)
        elif code != 0:
            kill_at = min(kill_at, now + FAILED_SECONDS)
    return order


def _forward(processes: Sequence[_Process], received: Sequence[int]) -> None:
    """Send the first signal to all processes; kill them at the second."""
    name = signal.Signals(received[-1]).name
    if len(received) == 1:
        say(f"{name}: waiting until all processes have saved; again to kill them")
        for process in processes:
            process.send(received[-1])
        return
    say(f"{name} again: killing all processes")
    for process in processes:
        process.kill()


def _describe(
    processes: Sequence[_Process],
    order: Sequence[int],
    signals: Signals,
    logs: Path,
) -> Ending:
    """Return the exit code of the job: of the first process that failed, or 75, or 0.

    The last lines of that process are printed.
    """
    failed = [
        process
        for process in (processes[rank] for rank in order)
        if process.popen.returncode not in (0, EXIT_STOPPED)
    ]
    by_themselves = [process for process in failed if not process.killed_by_us]
    stopped = any(p.popen.returncode == EXIT_STOPPED for p in processes)
    if len(signals.received) > 1 and failed:
        code = 128 + signals.received[-1]
        return Ending(code=code, text=f"killed; logs: {logs}")
    if not by_themselves and stopped:
        return Ending(code=EXIT_STOPPED, text="stopped; run it again to resume")
    if not failed:
        return Ending(code=0)
    first = (by_themselves or failed)[0]
    for line in [*first.last][:-1]:
        _print(f"{first.prefix}| {line}\n", sys.stderr)
    who = f"error: process {first.rank} of {len(processes)}"
    last = f"; its last line: {first.last[-1]}" if first.last else "; it said nothing"
    code, how = _how_it_ended(first.popen.returncode)
    text = f"{who} {how} after {first.seconds:.0f} s (logs: {logs}){last}"
    return Ending(code=code, text=text)


def _how_it_ended(code: int) -> tuple[int, str]:
    """Return the exit code as a shell gives it, and the end in words."""
    if code >= 0:
        return code, f"ended with exit code {code}"
    name = signal.Signals(-code).name
    why = " (out of memory, or by someone)" if -code == signal.SIGKILL else ""
    return 128 - code, f"was ended by {name}{why}"
