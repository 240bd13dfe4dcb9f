"""Directories that come to be whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from lmjax.errors import ConfigError
from lmjax.fileio import try_lock

_LOCK = ".lock"


def refuse_occupied(directory: Path, *, flag: str) -> None:
    """Raise if a directory that is to be made holds something.

    Raises:
      ConfigError: it does, or is a file.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{flag}={directory}: exists already, and is not empty")


@contextlib.contextmanager
def staged(directory: Path, *, flag: str) -> Iterator[Path]:
    """Yield a directory beside, which takes the place of `directory` at the end.

    If anything goes wrong before, neither is left behind. All processes of a run call
    this together; the first of them makes and moves.

    Args:
      directory: what must not exist yet, or be empty.
      flag: the command line's name of it.

    Raises:
      ConfigError: it holds something already, or cannot be written.
    """
    refuse_occupied(directory, flag=flag)
    directory = directory.absolute()
    part = directory.with_name(f".{directory.name}.part")
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(_made(part, flag))
        _wait_for_others(f"{directory} begun")
        yield part
        _wait_for_others(f"{directory} written")
        if jax.process_index() == 0:
            (part / _LOCK).unlink()
            part.replace(directory)
        _wait_for_others(f"{directory} there")


@contextlib.contextmanager
def _made(part: Path, flag: str) -> Iterator[None]:
    """Hold an empty directory, and remove it unless it was moved away."""
    try:
        with try_lock(part, flag=flag):
            try:
                for left in part.iterdir():  # by one that was killed
                    if left.name != _LOCK:
                        shutil.rmtree(left) if left.is_dir() else left.unlink()
                yield
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        where = error.filename or part
        raise ConfigError(
            f"{flag}: {where}: {error.strerror or os.strerror(error.errno or 0)}"
        ) from error


def _wait_for_others(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
