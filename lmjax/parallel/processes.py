"""The JAX processes of one run, and how they agree.

All processes run the same steps. What only one of them knows (a signal, the content of
a file, an error) they exchange here.
"""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from lmjax.errors import ConfigError, UserError


def several_processes() -> bool:
    """Return whether the run has several processes; touches no device if not."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Return whether this is the first process, the one that writes files."""
    return not several_processes() or jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Return whether the flag is set in any process; all must call it together."""
    if not several_processes():
        return flag
    return bool(_allgather(np.array(flag)).any())


def allgather_strings(text: str) -> list[str]:
    """Return the text of each process, in order; all must call it together."""
    if not several_processes():
        return [text]
    raw = np.frombuffer(text.encode(), np.uint8)
    sizes = _allgather(np.array(raw.size, np.int32))
    padded = np.zeros(max(1, sizes.max()), np.uint8)
    padded[: raw.size] = raw
    rows = _allgather(padded)
    return [
        row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)
    ]


def _allgather(array: np.ndarray) -> np.ndarray:
    """Return the array of each process, stacked; through the devices."""
    with jax.transfer_guard("allow"):
        return multihost_utils.process_allgather(array)


@contextlib.contextmanager
def sync_errors() -> Iterator[None]:
    """Raise an error of one process in all of them, at the end of the block.

    Without this the others would wait for the failed process forever.

    Raises:
      UserError: raised in another process.
      SystemExit: raised in another process.
      RuntimeError: another process failed.
    """
    failure: BaseException | None = None
    try:
        yield
    except (Exception, SystemExit) as error:
        failure = error
    failures = allgather_strings("" if failure is None else _describe(failure))
    if failure is not None:
        raise failure
    for kind, _, text in (line.partition(" ") for line in failures if line):
        if kind == SystemExit.__name__:
            raise SystemExit(int(text))
        kinds = {cls.__name__: cls for cls in (UserError, ConfigError)}
        raise kinds.get(kind, RuntimeError)(text)


def _describe(error: BaseException) -> str:
    if isinstance(error, UserError):
        return f"{type(error).__name__} {error}"
    if isinstance(error, SystemExit):
        return f"{SystemExit.__name__} {error.code}"
    return f"Error process {jax.process_index()}: {type(error).__name__}: {error}"
