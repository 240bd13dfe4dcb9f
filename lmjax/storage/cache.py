"""Local copies of remote and of compressed files, in a directory of bounded size.

LMJAX_CACHE_DIR names the directory (by default ~/.cache/lmjax), LMJAX_CACHE_GB the
size of all copies in it (by default 100). Copies that were not used for the longest
time go first. All processes of a host share them.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from lmjax.errors import UserError
from lmjax.storage.paths import RemotePath, is_remote

_DIRECTORY, _SIZE = "LMJAX_CACHE_DIR", "LMJAX_CACHE_GB"
_DEFAULT_GB = 100.0
_NUM_LOCKS = 64
_BLOCK_BYTES = 1 << 20

_log = logging.getLogger(__name__)
_warned: set[str] = set()


def local_copy(path: Path, *, crc32: int | None = None) -> Path:
    """Return a local file with the content of another: itself, if that is local.

    Args:
      path: the file.
      crc32: of its content, if known; then the copy is verified.

    Raises:
      OSError: it cannot be read, or there is no room for it.
      UserError: its content has another checksum.
    """
    if not is_remote(path):
        return path
    version = path.version() if crc32 is None else f"crc32 {crc32}"
    digest = hashlib.sha256(f"{path} {version}".encode()).hexdigest()[:40]
    root = _root()
    copy = root / f"{digest}{path.suffix}"
    if not _touch(copy):
        with _lock(root / f"lock.{int(digest, 16) % _NUM_LOCKS:02d}"):
            if not _touch(copy):
                _fetch(path, copy, crc32=crc32)
    return copy


def derived_copy(
    path: Path, *, made: str, blocks: Callable[[], Iterator[bytes]]
) -> Path:
    """Return a local file that is made from another, such as its decompressed content.

    Args:
      path: the file that it is made from.
      made: how; together with the file it names the copy.
      blocks: yields its content; called unless there is a copy.

    Raises:
      OSError: the file cannot be read.
      UserError: the copy cannot be written.
    """
    version = path.version() if is_remote(path) else _local_version(path)
    digest = hashlib.sha256(f"{path} {version} {made}".encode()).hexdigest()[:40]
    root = _root()
    copy = root / f"{digest}.plain"
    if not _touch(copy):
        with _lock(root / f"lock.{int(digest, 16) % _NUM_LOCKS:02d}"):
            if not _touch(copy):
                _write(copy, blocks())
    return copy


def _local_version(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"


def _write(copy: Path, blocks: Iterator[bytes]) -> None:
    """Write a copy whose size is known only when it is there."""
    partial = copy.with_name(f"{copy.name}.{os.getpid()}.partial")
    try:
        with _write_errors(copy), partial.open("wb") as out:
            for block in blocks:
                out.write(block)
        _make_room(0, keep=partial)
        with _write_errors(copy):
            partial.replace(copy)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _write_errors(copy: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{copy.parent}: {error.strerror} (see {_DIRECTORY})"
        ) from error


def local_directory(directory: Path) -> Path:
    """Return a local directory with the files of another: itself, if that is local.

    It has the files directly in it, such as those of a tokenizer.
    """
    if not is_remote(directory) or not directory.is_dir():
        return directory
    files = [(file.name, file.version(), file) for file in directory.iterdir()]
    files = [entry for entry in files if not entry[0].startswith(".")]
    versions = sorted(entry[:2] for entry in files)
    digest = hashlib.sha256(f"{directory} {versions}".encode()).hexdigest()[:40]
    root = _root()
    copy = root / digest / directory.name
    with _lock(root / f"lock.{int(digest, 16) % _NUM_LOCKS:02d}"):
        copy.mkdir(parents=True, exist_ok=True)
        for name, _, file in files:
            if not _touch(copy / name):
                _fetch(file, copy / name, crc32=None)
    return copy


def warn_if_larger(num_bytes: int, *, name: str) -> None:
    """Warn that something does not fit into the cache, once."""
    limit = _limit()
    if num_bytes > limit and name not in _warned:
        _warned.add(name)
        _log.warning(
            "%s: has %.1f GB, the cache of this host %.1f: files will be fetched again "
            "and again; set %s",
            name,
            num_bytes / 1e9,
            limit / 1e9,
            _SIZE,
        )


def _fetch(path: RemotePath, copy: Path, *, crc32: int | None) -> None:
    partial = copy.with_name(f"{copy.name}.{os.getpid()}.partial")
    _make_room(path.stat().st_size)
    try:
        for last in (False, True):
            path.fetch(partial)
            if crc32 is None or _crc32(partial) == crc32:
                break
            if last:
                raise UserError(
                    f"{path}: damaged: not what was written, by its checksum"
                )
        partial.replace(copy)
    except OSError as error:
        if error.filename in (str(path), None):
            raise
        raise UserError(
            f"{copy.parent}: {error.strerror} (see {_DIRECTORY})"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _make_room(num_bytes: int, *, keep: Path | None = None) -> None:
    """Remove the copies that were not used for longest until so many bytes fit."""
    root, limit = _root(), _limit()
    with _lock(root / "lock.remove"):
        copies = []
        for file in root.rglob("*"):
            with contextlib.suppress(OSError):  # removed meanwhile
                if file.is_file() and not file.name.startswith("lock."):
                    stat = file.stat()
                    copies.append((stat.st_mtime_ns, stat.st_size, file))
        used = sum(size for _, size, _ in copies)
        for _, size, file in sorted(copies):
            if used + num_bytes <= limit:
                break
            if file != keep:
                file.unlink(missing_ok=True)
                used -= size


def _touch(copy: Path) -> bool:
    """Mark a copy as used now; return whether it exists."""
    try:
        os.utime(copy)
    except FileNotFoundError:
        return False
    return True


def _root() -> Path:
    """Return the directory of the copies.

    Raises:
      UserError: it cannot be created.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    named = os.environ.get(_DIRECTORY) or f"{base}/lmjax"
    root = Path(named).expanduser() / "files"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{root}: cannot hold copies of remote files: {error.strerror}; set "
            f"{_DIRECTORY}"
        ) from error
    return root


def _limit() -> float:
    """Return the bytes that all copies may take.

    Raises:
      UserError: LMJAX_CACHE_GB is no number above 0.
    """
    text = os.environ.get(_SIZE) or str(_DEFAULT_GB)
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not size > 0:
        raise UserError(f"{_SIZE}={text}: must be a number of gigabytes above 0")
    return size * 1e9


def _crc32(file: Path) -> int:
    crc = 0
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    return crc


@contextlib.contextmanager
def _lock(file: Path) -> Iterator[None]:
    with file.open("a") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
