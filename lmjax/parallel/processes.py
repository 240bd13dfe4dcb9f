"""The JAX processes of one run, and how they agree.

All processes run the same steps. What only one of them knows (the content of a file, an
error) they exchange here: beside the devices, with a limit to how long they wait.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from lmjax.errors import ConfigError, UserError
from lmjax.parallel import coordination
from lmjax.parallel.exchange import AbsentError, Exchange, Reduce
from lmjax.parallel.heartbeat import status
from lmjax.parallel.hub import Verdict
from lmjax.parallel.monitor import Monitor

Error = TypeVar("Error", bound=Exception)

# Seconds to wait for others where nobody watches the run.
_WAIT_SECONDS = 3600.0

_monitors: list[Monitor] = []  # of the run that is watched: one, or none


def several_processes() -> bool:
    """Return whether the run has several processes; touches no device."""
    return coordination.has_joined()


def is_first() -> bool:
    """Return whether this is the first process, the one that writes files."""
    return not several_processes() or coordination.process_index() == 0


def index() -> int:
    """Return the number of this process; 0 if it is the only one."""
    return coordination.process_index() if several_processes() else 0


def any_process(flag: bool) -> bool:
    """Return whether the flag is set in any process; all must call it together."""
    if not several_processes():
        return flag
    return bool(exchange("1" if flag else "", reduce="".join))


def allgather_strings(text: str) -> list[str]:
    """Return the text of each process, in order; all must call it together."""
    if not several_processes():
        return [text]
    texts: list[str] = json.loads(exchange(text, reduce=json.dumps))
    return texts


def broadcast_string(text: str) -> str:
    """Return the text of the first process; all must call it together."""
    if not several_processes():
        return text
    return exchange(text if is_first() else "", reduce=lambda texts: texts[0])


def exchange(text: str, *, reduce: Reduce) -> str:
    """Return the answer that the first process makes of the texts of all.

    All must call it together. It is for several processes only.

    Raises:
      UserError: a process did not come in time; where the run is watched, this ends it.
    """
    seconds = _WAIT_SECONDS
    if _monitors:
        seconds = _monitors[0].watchdog.allowed_seconds(status.moment.phase)
    try:
        return _exchange()(text, reduce=reduce, seconds=seconds)
    except AbsentError as error:
        why = f"{status.moment.phase}: {error}"
        if _monitors:
            _monitors[0].end(Verdict(why, stacks=True))
        raise UserError(why) from error


@functools.cache
def _exchange() -> Exchange:
    return Exchange(
        coordination.Coordination(),
        index=coordination.process_index(),
        num_processes=coordination.num_processes(),
        describe=_describe_processes,
    )


def _describe_processes(indices: Sequence[int]) -> str:
    if _monitors:
        return _monitors[0].describe(indices)
    return ", ".join(f"process {index}" for index in indices)


@contextlib.contextmanager
def watched_by(monitor: Monitor) -> Iterator[None]:
    """Let a monitor say where those are that do not come."""
    _monitors.append(monitor)
    try:
        yield
    finally:
        _monitors.remove(monitor)


@contextlib.contextmanager
def sync_errors() -> Iterator[None]:
    """Raise an error of one process in all of them, at the end of the block.

    Without this the others would wait for the failed process.

    Raises:
      UserError: raised in another process.
      RuntimeError: another process failed.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if not several_processes():
        if failure is not None:
            raise failure
        return
    text = exchange("" if failure is None else _describe(failure), reduce=_first_text)
    if not text:
        return
    if failure is None:
        kind, _, said = text.partition(" ")
        kinds: dict[str, Callable[[str], Exception]] = {
            cls.__name__: cls for cls in (UserError, ConfigError)
        }
        failure = kinds.get(kind, RuntimeError)(said)
    raise share(failure)


_SHARED = "is_raised_by_all_processes"


def share(error: Error) -> Error:
    """Mark an error that all processes raise at once; return it."""
    error.__dict__[_SHARED] = True
    return error


def is_shared(error: BaseException) -> bool:
    """Return whether all processes raise this error, or the one that it explains."""
    return _SHARED in error.__dict__ or bool(
        error.__cause__ and is_shared(error.__cause__)
    )


def _first_text(texts: Sequence[str]) -> str:
    return next(filter(None, texts), "")


def _describe(error: Exception) -> str:
    if isinstance(error, UserError):
        return f"{type(error).__name__} {error}"
    index = coordination.process_index()
    return f"Error process {index}: {type(error).__name__}: {error}"
