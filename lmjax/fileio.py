"""Writing in a directory: one process at a time, and errors a user can act on."""

import contextlib
import errno
import fcntl
import io
from collections.abc import Iterator
from pathlib import Path

from lmjax.errors import ConfigError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock; the system lets go of it when its process dies."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def locked_file(file: Path, *, name: str) -> Iterator[io.FileIO]:
    """Open a file to add to it, made if it is not there, and hold it alone.

    What is written is not kept in memory: it cannot fail again when the file is closed.

    Raises:
      ConfigError: it cannot be opened, or another process holds it; `name` is its flag.
    """
    try:
        opened = file.open("ab", buffering=0)
    except OSError as error:
        raise ConfigError(f"{name}={file}: {error.strerror}") from error
    with opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"{name}={file}: another process writes it") from error
        yield opened


@contextlib.contextmanager
def one_line_errors(directory: str | Path) -> Iterator[None]:
    """Turn what the system says against writing into a `ConfigError`."""
    try:
        yield
    except OSError as error:
        hint = "; free some space, or write elsewhere" if error.errno in _FULL else ""
        raise ConfigError(
            f"{directory}: cannot be written: {error.strerror}{hint}"
        ) from error
