"""Threads beside the training loop: each process says where it is, and hears of others.

A process tells the first one about once a second; that one tells all what it concludes
(`hub`). When a process was lost or hangs, every other says so in one line and ends: the
devices that wait for it cannot be interrupted otherwise.
"""

import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lmjax.config.watch import WatchConfig
from lmjax.errors import UserError
from lmjax.parallel import coordination
from lmjax.parallel.coordination import KeyValues
from lmjax.parallel.ending import end_process, print_line, try_for_a_moment
from lmjax.parallel.heartbeat import Beat, Status
from lmjax.parallel.hub import HOLD, LEAVE, Hub, Verdict, Word
from lmjax.parallel.stop_gate import StopGate
from lmjax.parallel.watchdog import Watchdog, write_stacks
from lmjax.storage.paths import is_remote

_EXIT_STOPPED = 75  # sysexits.h's EX_TEMPFAIL
_JUDGE_SECONDS = 0.5
_FILE_SECONDS, _OBJECT_SECONDS = 2.0, 10.0  # on disk, and on object storage
_CLOSE_SECONDS = 3.0
_SILENT_BEATS = 4  # a process that misses so many may have ended
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = logging.getLogger(__name__)


class Monitor:
    """Watches this process and, through the first, all others.

    Args:
      values: the store they share.
      index: of this process.
      num_processes: how many there are.
      directory: the workdir; each process writes where it is to hosts/INDEX.json.
      config: when a process counts as lost or hung.
      status: where the main thread is.
      end: ends this process with an exit code.
    """

    def __init__(
        self,
        values: KeyValues,
        *,
        index: int,
        num_processes: int,
        directory: Path,
        config: WatchConfig,
        status: Status,
        prefix: str = "lmjax/watch",
        end: Callable[[int], None] = end_process,
    ) -> None:
        self.values, self.index, self.prefix = values, index, prefix
        self.directory, self.config, self.status = directory, config, status
        self.gate = StopGate()
        self.watchdog = Watchdog(status, config)
        self.hub = Hub(
            num_processes, lost_seconds=config.lost_seconds, now=status.clock.now()
        )
        self.word = Word()
        self.beat = Beat(host=socket.gethostname(), pid=os.getpid())
        # Many processes speak less often: the first one hears them all.
        self.seconds = 0.5 + num_processes / 500
        self._heard_first = status.clock.now()
        self._hang = ""
        self._failure, self._told_failure = ("", 0), threading.Event()
        self._wants_stop = self._is_closed = self._is_ending = False
        self._ending, self._end = threading.Lock(), end
        self._inbox, self._bell = socket.socketpair()
        self._inbox.settimeout(self.seconds)
        self._bell.setblocking(False)
        self._signals_before: int | None = None
        self._threads = [
            threading.Thread(target=loop, daemon=True, name=f"monitor-{name}")
            for name, loop in (
                ("talk", self._talk_on),
                ("judge", self._judge_on),
                ("write", self._write_on),
            )
        ]

    def start(self) -> None:
        """Begin to tell, to listen and to watch."""
        if threading.current_thread() is threading.main_thread():
            # The main thread may be busy outside of Python: this tells of a signal.
            self._signals_before = signal.set_wakeup_fd(
                self._bell.fileno(), warn_on_full_buffer=False
            )
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads: from now on silence means nothing."""
        self._is_closed = True
        if self._signals_before is not None:
            signal.set_wakeup_fd(self._signals_before)
        self._ring()
        self._threads[0].join(_CLOSE_SECONDS)  # it uses what is about to be shut down
        try_for_a_moment(self._write_place)

    def request_stop(self) -> None:
        """Let all processes save and leave after the same step."""
        if not self._wants_stop:
            self._wants_stop = True
            self._ring()

    def describe(self, indices: Sequence[int]) -> str:
        """Return names of processes, and where the first was last seen."""
        if self.index == 0:
            return self.hub.describe(indices, now=self.status.clock.now())
        return self._describe_first()

    def fail(self, error: BaseException, *, code: int) -> None:
        """Tell the others that this process ends with an error of its own.

        An error of the devices is often that of another process, which is gone: then
        this one ends here, and says so.
        """
        if not isinstance(error, UserError):
            deadline = time.monotonic() + (_SILENT_BEATS + 2) * self.seconds + 1
            while time.monotonic() < deadline:
                if verdict := self._find_silent():
                    self.end(verdict)
                time.sleep(0.1)
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        with self._ending:
            self._is_ending = True
        text = " ".join(f"{kind}{error}".split()) or "ended"
        self._failure = text, code
        self._ring()
        self._told_failure.wait(3.0)
        if self.index == 0:
            time.sleep(2 * self.seconds)

    def end(self, verdict: Verdict, *, lingers: bool = True) -> None:
        """Say why the run ends, and end this process.

        Args:
          verdict: why.
          lingers: whether the first process, whose end aborts the others, lets them
            speak before it.
        """
        with self._ending:
            is_first_time, self._is_ending = not self._is_ending, True
        if not is_first_time:
            return
        text = verdict.text
        if verdict.stacks:
            try_for_a_moment(self._write_stacks)
            text += f" (Python stacks: {self.directory / 'stacks'})"
        print_line(text if verdict.code == _EXIT_STOPPED else f"error: {text}")
        if self.index == 0 and lingers:
            time.sleep(2 * self.seconds + 1)
        self._end(verdict.code)

    def handle_abort(self) -> None:
        """Say which process is gone, when the runtime aborts this one."""
        verdict = None
        if not self._is_ending:
            if self.index and not coordination.answers(seconds=1.0):
                text = f"{self._describe_first()}: its process or its host ended"
                verdict = Verdict(text)
            else:
                verdict = self._find_silent()
            if verdict:
                self.end(verdict, lingers=False)
        if self._is_ending:
            time.sleep(10)

    def _find_silent(self) -> Verdict | None:
        """Return a verdict about a process that has just fallen silent."""
        now, text = self.status.clock.now(), self.word.silent
        seconds = _SILENT_BEATS * self.seconds
        if self.index == 0 and (silent := self.hub.silent(seconds, now=now)):
            text = self.hub.describe(silent, now=now)
        elif self.index and now - self._heard_first > seconds:
            text = self._describe_first()
        return Verdict(f"{text}: its process or its host ended") if text else None

    def _describe_first(self) -> str:
        hub = Hub(1, lost_seconds=1.0, now=self._heard_first)
        if self.word.first:
            hub.beats[0] = self.word.first
        return hub.describe([0], now=self.status.clock.now())

    def _ring(self) -> None:
        with contextlib.suppress(OSError):  # it has been rung often enough
            self._bell.send(b"\0")

    def _talk_on(self) -> None:
        while not self._is_closed:
            try:
                self._talk()
            except ConnectionError as error:  # the first process is gone, or going
                log.info("%s", error)
            try:
                if any(number in STOP_SIGNALS for number in self._inbox.recv(64)):
                    self._wants_stop = True
            except TimeoutError:
                pass

    def _talk(self) -> None:
        """Tell where this process is, and hear what the first concludes."""
        moment, (failure, code) = self.status.moment, self._failure
        committed, holds = self.gate.state()
        self.beat = dataclasses.replace(
            self.beat,
            count=self.beat.count + 1,
            phase=moment.phase,
            step=moment.step,
            seconds=self.status.clock.now() - moment.since,
            wants_stop=self._wants_stop,
            committed=committed,
            holds=holds,
            hang=self._hang,
            failure=failure,
            code=code,
        )
        self.values.set(f"{self.prefix}/beat/{self.index}", self.beat.to_json())
        if failure:
            self._told_failure.set()
        self._heed(self._conclude() if self.index == 0 else self._listen())

    def _conclude(self) -> Word:
        """Return, and tell all, what follows from the beats; on the first process."""
        texts = self.values.list(f"{self.prefix}/beat")
        now = self.status.clock.now()
        self.hub.update(
            {int(index): Beat.from_json(text) for index, text in texts.items()}, now=now
        )
        silent = self.hub.silent(_SILENT_BEATS * self.seconds, now=now)
        word = Word(
            count=self.word.count + 1,
            stop=self.hub.stop,
            verdict=self.hub.verdict(now=now),
            first=self.beat,
            silent=self.hub.describe(silent, now=now) if silent else "",
        )
        self.values.set(f"{self.prefix}/word/0", word.to_json())
        return word

    def _listen(self) -> Word:
        text = self.values.list(f"{self.prefix}/word").get("0")
        word = self.word if text is None else Word.from_json(text)
        if word.count != self.word.count:
            self._heard_first = self.status.clock.now()
        return word

    def _heed(self, word: Word) -> None:
        self.word = word
        if word.verdict:
            self.end(word.verdict)
        elif word.stop == LEAVE:
            text = "stopped before training began; run it again"
            self.end(Verdict(text, code=_EXIT_STOPPED))
        elif word.stop == HOLD:
            self.gate.hold()
        elif word.stop:
            self.gate.release(int(word.stop))

    def _judge_on(self) -> None:
        """Watch this process, and the first; never waits for either."""
        while not self._is_closed:
            self.status.clock.tick()
            self._judge()
            time.sleep(_JUDGE_SECONDS)

    def _judge(self) -> None:
        hang = self.watchdog.check()
        if self.config.on_hang == "warn":
            self.watchdog.warn(hang, self.directory, name=str(self.index))
        else:
            self._hang = hang
        silent = self.status.clock.now() - self._heard_first
        if self.index and silent >= self.config.lost_seconds:
            self.end(Verdict(f"{self._describe_first()}: silent since", stacks=True))

    def _write_on(self) -> None:
        while not self._is_closed:
            try:
                self._write_place()
            except OSError as error:
                log.info("%s", error)
            remote = is_remote(self.directory)
            time.sleep(_OBJECT_SECONDS if remote else _FILE_SECONDS)

    def _write_place(self) -> None:
        """Write where this process is: whoever looks at a dead run can see it."""
        path = self.directory / "hosts" / f"{self.index}.json"
        moment = self.status.moment
        values = {
            "process": self.index,
            "host": self.beat.host,
            "pid": self.beat.pid,
            "phase": moment.phase,
            "step": moment.step,
            "seconds": round(self.status.clock.now() - moment.since, 1),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        content = (json.dumps(values) + "\n").encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_remote(path):
            path.write_bytes(content)
            return
        partial = path.with_suffix(".partial")
        partial.write_bytes(content)
        partial.replace(path)

    def _write_stacks(self) -> None:
        write_stacks(self.directory, name=str(self.index))
