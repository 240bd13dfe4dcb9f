"""Files: written whole or not at all, read as JSON, held by one process.

What the system says against a file becomes a `UserError` of one line.
"""

import contextlib
import errno
import fcntl
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lmjax.errors import UserError
from lmjax.storage.paths import is_remote

_LOCKED = {errno.EAGAIN, errno.EACCES}  # by another process
_NO_RENAME = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV}
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def write_errors(path: str | Path) -> Iterator[None]:
    """Turn an `OSError` inside the block into a `UserError` that names the path."""
    try:
        yield
    except OSError as error:
        full = error.errno in _DISK_FULL
        hint = "; free some space, or write elsewhere" if full else ""
        raise UserError(f"{path}: cannot be written: {error.strerror}{hint}") from error


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears under its name once it is complete and on disk.

    If the block raises, nothing is left behind and an earlier file stays.
    """
    if is_remote(path):
        with path.open_atomic() as out:
            yield out
        return
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        with _rename_errors(path):
            partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _rename_errors(path: Path) -> Iterator[None]:
    """Explain what a file system says that has no rename, such as some mounts of FUSE.

    Raises:
      OSError: the block raised one.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_RENAME:
            raise
        text = f"this file system cannot rename files ({error.strerror})"
        raise OSError(error.errno, text, str(path)) from error


def remove_partial_files(directory: Path) -> None:
    """Remove what writers that were killed have left in a directory one has locked."""
    if is_remote(directory):
        return
    for partial in directory.glob("*.partial"):
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
      UserError: it cannot be written.
    """
    with write_errors(path), open_atomic(path) as out:
        out.write(content)


def write_json(path: Path, values: Mapping[str, Any], *, indent: int = 2) -> None:
    """Write an object as JSON, atomically; a file that holds it already stays.

    Raises:
      UserError: it cannot be written.
    """
    content = (json.dumps(values, indent=indent) + "\n").encode()
    with write_errors(path):
        if path.exists() and path.read_bytes() == content:
            return
    write_bytes(path, content)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
      UserError: the file cannot be read or holds no JSON object.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return parse_json(content, file=path)


def parse_json(content: str | bytes, *, file: str | Path) -> dict[str, Any]:
    """Return the JSON object that is the content of a file.

    Raises:
      UserError: FILE:LINE of what is not JSON, or FILE where it is no object.
    """
    try:
        return parse_json_line(content, where=lambda: str(file))
    except UserError as error:
        if isinstance(error.__cause__, json.JSONDecodeError):
            line, message = error.__cause__.lineno, error.__cause__.msg
            raise UserError(f"{file}:{line}: not JSON: {message}") from error
        raise


def parse_json_line(
    content: str | bytes, *, where: Callable[[], str]
) -> dict[str, Any]:
    """Return the JSON object in one line of a file.

    Args:
      content: of the line.
      where: returns FILE:LINE, for errors; called only if there is one.

    Raises:
      UserError: the line is not JSON, or no object.
    """
    if isinstance(content, str):
        content = content.removeprefix("\ufeff")  # as where files are joined
    try:
        values = json.loads(content)
    except json.JSONDecodeError as error:
        raise UserError(f"{where()}: not JSON: {error}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or nested too deep
        raise UserError(f"{where()}: cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{where()}: not a JSON object")
    return values


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object of JSON values with a checksum of them under "seal"."""
    return {**values, "seal": _crc32_of_json(values)}


def has_intact_seal(values: Mapping[str, Any], *, file: str | Path) -> bool:
    """Return whether an object was sealed; files of earlier versions are not.

    Raises:
      UserError: it was, and is not what was written.
    """
    if "seal" not in values:
        return False
    rest = {name: value for name, value in values.items() if name != "seal"}
    if _crc32_of_json(rest) != values["seal"]:
        raise UserError(f"{file}: damaged: not what was written, by its checksum")
    return True


def _crc32_of_json(values: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def crc32_of_file(path: Path, *, stop: Callable[[], bool] = lambda: False) -> int:
    """Return the CRC-32 of the bytes of a file; other threads run meanwhile.

    Args:
      path: of the file.
      stop: asked at every block; True ends the reading early.
    """
    crc, block = 0, bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while (count := file.readinto(block)) and not stop():
            crc = zlib.crc32(memoryview(block)[:count], crc)
    return crc


@contextlib.contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory, which is created if missing; wait for others.

    The system releases the lock when the process ends, however it ends. On object
    storage it is a lease: see `lmjax.storage.lease`.
    """
    if is_remote(directory):
        from lmjax.storage.lease import hold_lease

        with hold_lease(directory / ".lock"):
            yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def try_lock(directory: Path, *, flag: str) -> Iterator[None]:
    """Hold the lock of a directory, which is created if missing; do not wait.

    Raises:
      UserError: the directory cannot be written, or another process holds it. `flag`
        is the name of the directory on the command line.
    """
    if is_remote(directory):
        from lmjax.storage.lease import hold_lease

        with hold_lease(directory / ".lock", flag=flag):
            yield
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / ".lock").open("a+", errors="replace")
    except OSError as error:
        raise UserError(
            f"{flag}={directory}: cannot be written: {error.strerror}"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _LOCKED:
                raise UserError(
                    f"{flag}={directory}: the file system has no locks: "
                    f"{error.strerror}"
                ) from error
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(
                f"{flag}={directory}: in use by process {holder}"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def open_locked(path: Path, *, flag: str) -> Iterator[io.FileIO]:
    """Open a file for appending, created if missing, while no other process has it.

    Writes are unbuffered: none can fail when the file is closed.

    Raises:
      UserError: the file cannot be opened, or another process holds it. `flag` is its
        name on the command line.
    """
    if is_remote(path):
        raise UserError(f"{flag}={path}: must be a local file: it is appended to")
    try:
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise UserError(f"{flag}={path}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{flag}={path}: another process writes it") from error
        yield file
