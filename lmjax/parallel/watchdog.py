"""Whether the main thread of this process hangs, and where."""

import collections
import faulthandler
import logging
import statistics
import tempfile
import time
from pathlib import Path

from lmjax.config.watch import WatchConfig
from lmjax.parallel.heartbeat import Moment, Status
from lmjax.storage.paths import is_remote

TRAINING = "training"
DATA = "data"
log = logging.getLogger(__name__)

_NUM_STEPS_TIMED = 101  # the newest: the speed of a run may change


class Watchdog:
    """Compares how long a step, or another phase, takes with what is allowed."""

    def __init__(self, status: Status, config: WatchConfig) -> None:
        self.status, self.config = status, config
        self._last: Moment | None = None
        self._warned: Moment | None = None
        self._seconds: collections.deque[float] = collections.deque(
            maxlen=_NUM_STEPS_TIMED
        )

    def allowed_seconds(self, phase: str) -> float:
        """Return how long a phase, or a step of training, may take."""
        if phase == DATA:
            return self.config.data_seconds
        if phase != TRAINING:
            return self.config.phase_seconds
        median = statistics.median(self._seconds) if self._seconds else 0.0
        return max(self.config.step_seconds, self.config.step_factor * median)

    def check(self) -> str:
        """Return a line about what takes too long, or ""; call it about once a second.

        It samples the steps: between two looks there may be many, or none.
        """
        moment, last = self.status.moment, self._last
        if moment.phase == TRAINING:
            if last is not None and moment.step > last.step:
                seconds = (moment.since - last.since) / (moment.step - last.step)
                self._seconds.append(seconds)
            self._last = moment
        seconds = self.status.clock.now() - moment.since
        if seconds <= self.allowed_seconds(moment.phase):
            return ""
        text = f"{moment.phase}{f', step {moment.step}' if moment.step else ''}"
        usual = ""
        if moment.phase == TRAINING and self._seconds:
            usual = f" (median of a step: {statistics.median(self._seconds):.3g} s)"
        return f"{text}: no progress for {seconds:.0f} s{usual}"

    def warn(self, text: str, directory: Path, *, name: str) -> None:
        """Write the stacks of this process and warn, once for each step or phase."""
        moment = self.status.moment
        if not text or moment == self._warned:
            return
        self._warned = moment
        try:
            where = f"; Python stacks: {write_stacks(directory, name=name)}"
        except OSError as error:
            where = f"; its Python stacks cannot be written: {error.strerror}"
        log.warning("%s%s", text, where)


def write_stacks(directory: Path, *, name: str) -> Path:
    """Write the Python stacks of all threads to DIRECTORY/stacks; return the file."""
    now = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    path = directory / "stacks" / f"{name}-{now}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() if is_remote(path) else path.open("w+b") as file:
        faulthandler.dump_traceback(file, all_threads=True)  # past Python's buffers
        if is_remote(path):
            file.seek(0)
            path.write_bytes(file.read())
    return path
