"""Directories that appear complete or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from lmjax.errors import UserError
from lmjax.fileio import try_lock
from lmjax.storage.paths import RemotePath, is_remote

_LOCK = ".lock"


def check_unused(directory: Path, *, flag: str) -> None:
    """Check that a directory does not exist, or is empty.

    Args:
      directory: to check.
      flag: the option of the command line that names it.

    Raises:
      UserError: it holds something, or is a file.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{flag}={directory}: exists already, and is not empty")


@contextlib.contextmanager
def staged_directory(directory: Path, *, flag: str) -> Iterator[Path]:
    """Write a directory as a whole: yields one next to it, which is renamed at the end.

    If the block fails, both are gone. All processes of a run must call this together;
    the first of them creates and renames.

    Args:
      directory: the final name; must not exist, or be empty.
      flag: the option of the command line that names it.

    Raises:
      UserError: `directory` holds something already, or cannot be written.
    """
    check_unused(directory, flag=flag)
    if is_remote(directory):
        with _uploaded_directory(directory, flag=flag) as staging:
            yield staging
        return
    directory = directory.absolute()
    staging = directory.with_name(f".{directory.name}.part")
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(_create_empty(staging, flag))
        _sync_processes(f"{directory} created")
        yield staging
        _sync_processes(f"{directory} written")
        if jax.process_index() == 0:
            (staging / _LOCK).unlink()
            staging.replace(directory)
        _sync_processes(f"{directory} renamed")


@contextlib.contextmanager
def _uploaded_directory(directory: RemotePath, *, flag: str) -> Iterator[Path]:
    """Yield a local directory whose files are uploaded at the end of the block."""
    if jax.process_count() > 1:
        raise UserError(f"{flag}={directory}: takes a single process")
    with tempfile.TemporaryDirectory() as local:
        yield Path(local)
        files = [file for file in Path(local).rglob("*") if file.is_file()]
        # What a reader looks for first comes last.
        for file in sorted(files, key=lambda file: (file.name == "config.json", file)):
            (directory / file.relative_to(local)).put(file)


@contextlib.contextmanager
def _create_empty(staging: Path, flag: str) -> Iterator[None]:
    """Lock an empty directory, and remove it at the end unless it was renamed."""
    try:
        with try_lock(staging, flag=flag):
            try:
                for old in staging.iterdir():  # of a process that was killed
                    if old.name != _LOCK:
                        shutil.rmtree(old) if old.is_dir() else old.unlink()
                yield
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        path = error.filename or staging
        raise UserError(
            f"{flag}: {path}: {error.strerror or os.strerror(error.errno or 0)}"
        ) from error


def _sync_processes(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
