"""Where a process is in its run: said by its main thread, read by others.

Saying it costs the main thread nothing but an attribute.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator

# A thread that sleeps for less and wakes up so much later was stopped: by a signal, a
# suspended machine, or a call that lets no other thread run.
_STOPPED_SECONDS = 5.0


class Clock:
    """Counts the seconds in which this process was running, and not stopped.

    A process that was stopped has missed what others said meanwhile: it must not take
    their silence for theirs.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._stopped = 0.0
        self._ticked = monotonic()

    def now(self) -> float:
        """Return the seconds since some moment."""
        return self._monotonic() - self._stopped

    def tick(self) -> None:
        """Notice whether this process was stopped; to be called every second or so."""
        now = self._monotonic()
        if now - self._ticked > _STOPPED_SECONDS:
            self._stopped += now - self._ticked
        self._ticked = now


@dataclasses.dataclass(frozen=True)
class Moment:
    """Where the main thread is, and since when by its `Clock`."""

    phase: str
    step: int
    since: float


class Status:
    """Where the main thread of this process is."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = Clock() if clock is None else clock
        self.moment = Moment("starting", 0, self.clock.now())

    def at_step(self, step: int) -> None:
        """Say that a step of training begins."""
        self.moment = Moment("training", step, self.clock.now())

    def begin(self, phase: str) -> None:
        """Say that another phase begins."""
        self.moment = Moment(phase, self.moment.step, self.clock.now())

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Say what is done inside; afterwards the phase before goes on."""
        before = self.moment.phase
        self.begin(name)
        try:
            yield
        finally:
            self.begin(before)


# Of the run that this process trains.
status = Status()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beat:
    """What a process tells the others about once a second."""

    host: str
    pid: int
    count: int = 0  # of beats so far
    phase: str = "starting"
    step: int = 0
    seconds: float = 0.0  # since that phase or step began
    wants_stop: bool = False  # it was told to stop, by a signal
    committed: int | None = None  # the step that it will train at least to
    holds: bool = False  # trains no further than that, until it is told
    hang: str = ""  # how long the step or the phase takes, if that is too long
    failure: str = ""  # the error that it ends with
    code: int = 0  # its exit code then

    def to_json(self) -> str:
        """Return the text of it."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Beat":
        """Return the beat that `to_json` has written."""
        return cls(**json.loads(text))


def describe_place(phase: str, step: int, *, seconds: float) -> str:
    """Return where a process was seen, so many seconds ago."""
    return f"{phase}{f', step {step}' if step else ''}, {seconds:.0f} s ago"
