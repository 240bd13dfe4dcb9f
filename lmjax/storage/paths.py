"""Paths on object storage, with the methods of `pathlib.Path` that lmjax uses.

An object appears under its name when it is complete, so each write is atomic; there are
no directories, and nothing can be appended. All errors are `OSError`s that name the
address, as those of local paths do; a file system that cannot be used is a `UserError`.
"""

import contextlib
import dataclasses
import errno
import io
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeGuard, cast

from lmjax.errors import UserError, nearest

_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-]+://")
_READ_BYTES = 1 << 20  # read ahead of what is asked for
# What to install, by the protocol of an address.
_EXTRAS = {"s3": "s3", "gs": "gcs"}
# A request that fails is tried again, for about half a minute in all. What was listed
# is not remembered: other processes, and TensorStore, write as well.
_NOT_LISTED = {"use_listings_cache": False}
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        **_NOT_LISTED,
        "config_kwargs": {
            "connect_timeout": 5,
            "read_timeout": 20,
            "retries": {"max_attempts": 4, "mode": "standard"},
        },
    },
    "gs": _NOT_LISTED,
    "gcs": _NOT_LISTED,  # as etils calls it
}
_NO_CREDENTIALS = {
    "s3": "no credentials were found (AWS_ACCESS_KEY_ID, ~/.aws or the host's role)",
    "gs": "no credentials were found (gcloud auth application-default login)",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stat:
    """What is known of an object; the names are those of `os.stat_result`."""

    st_size: int


class RemotePath(PurePosixPath):
    """An address of object storage."""

    __slots__ = ()

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    @property
    def protocol(self) -> str:
        """Return what stands before `://`."""
        return self.parts[0].removesuffix(":")

    @property
    def file_system(self) -> Any:
        """Return the file system of fsspec.

        Raises:
          UserError: there is none for this protocol, or it is not installed.
        """
        return open_file_system(self.protocol, path=str(self))

    def expanduser(self) -> "RemotePath":
        """Return the address itself."""
        return self

    def absolute(self) -> "RemotePath":
        """Return the address itself."""
        return self

    def resolve(self) -> "RemotePath":
        """Return the address itself."""
        return self

    def samefile(self, other: Any) -> bool:
        """Return whether another path is this address."""
        return str(self) == str(other)

    def exists(self) -> bool:
        """Return whether there is an object, or any below this address."""
        with storage_errors(self):
            return bool(self.file_system.exists(str(self)))

    def is_file(self) -> bool:
        """Return whether there is an object of this address."""
        with storage_errors(self):
            return bool(self.file_system.isfile(str(self)))

    def is_dir(self) -> bool:
        """Return whether there are objects below this address."""
        with storage_errors(self):
            return bool(self.file_system.isdir(str(self)))

    def stat(self) -> Stat:
        """Return the size of an object."""
        with storage_errors(self):
            return Stat(st_size=int(self.file_system.info(str(self))["size"] or 0))

    def version(self) -> str:
        """Return a hash that changes when the object is written again."""
        with storage_errors(self):
            return str(self.file_system.ukey(str(self)))

    def iterdir(self) -> Iterator["RemotePath"]:
        """Yield what lies directly below."""
        with storage_errors(self):
            names = self.file_system.ls(str(self), detail=False)
        for name in names:
            path = self / name.rstrip("/").rpartition("/")[2]
            if path.name != self.name or name.rstrip("/") != self._key:
                yield path

    def glob(self, pattern: str) -> Iterator[Path]:
        """Yield what matches a pattern, sorted."""
        yield from glob_remote(cast(Path, self / pattern))

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: there are no directories."""

    def read_bytes(self) -> bytes:
        """Return the content of an object."""
        with storage_errors(self):
            return bytes(self.file_system.cat_file(str(self)))

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the content of an object as text."""
        return self.read_bytes().decode(encoding, errors)

    def write_bytes(self, content: bytes) -> int:
        """Write an object."""
        with storage_errors(self):
            self.file_system.pipe_file(str(self), content)
        return len(content)

    def create(self, content: bytes) -> None:
        """Write an object that must not exist yet.

        Raises:
          FileExistsError: it exists.
        """
        with storage_errors(self):
            try:
                self.file_system.pipe_file(str(self), content, mode="create")
            except (NotImplementedError, TypeError, ValueError):
                # Not atomic, where the storage has no such request.
                if self.file_system.exists(str(self)):
                    raise FileExistsError(self) from None
                self.file_system.pipe_file(str(self), content)

    def fetch(self, file: Path) -> None:
        """Copy the object to a local file."""
        with storage_errors(self):
            self.file_system.get_file(str(self), str(file))

    def put(self, file: Path) -> None:
        """Write the content of a local file to the object."""
        with storage_errors(self):
            self.file_system.put_file(str(file), str(self))

    def open(self, mode: str = "r", **options: Any) -> Any:
        """Open an object for reading or writing.

        Args:
          mode: "r" or "w", and "b".
          options: `encoding` and `errors` of text; `buffering` is of no meaning here.
        """
        options.pop("buffering", None)
        with storage_errors(self):
            size = {"block_size": _READ_BYTES} if "r" in mode else {}
            kind = mode.replace("b", "").replace("t", "") + "b"
            file = self.file_system.open(str(self), kind, **size)
        return file if "b" in mode else io.TextIOWrapper(file, **options)

    @contextlib.contextmanager
    def open_atomic(self) -> Iterator[BinaryIO]:
        """Open an object that is written when the block ends without an error."""
        import tempfile

        with tempfile.NamedTemporaryFile() as out:
            yield cast(BinaryIO, out)
            out.flush()
            self.put(Path(out.name))

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove an object."""
        try:
            with storage_errors(self):
                self.file_system.rm_file(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rename(self, target: "RemotePath") -> "RemotePath":
        """Move an object, or all below this address."""
        with storage_errors(self):
            self.file_system.mv(str(self), str(target), recursive=True)
        return target

    @property
    def _key(self) -> str:
        return str(self.file_system._strip_protocol(str(self))).rstrip("/")


def open_path(path: str | Path) -> Path:
    """Return a local path, or a `RemotePath` for an address such as s3://bucket/a."""
    if isinstance(path, RemotePath):
        return cast(Path, path)
    if not isinstance(path, str) or not _ADDRESS.match(path):
        return Path(path)
    if path.startswith("file://"):
        return Path(path.removeprefix("file://"))
    return cast(Path, RemotePath(path))


def is_remote(path: Any) -> TypeGuard[RemotePath]:
    """Return whether a path is an address of object storage."""
    return isinstance(path, RemotePath)


def glob_remote(pattern: Path) -> list[Path]:
    """Return the objects and directories that match a glob, sorted."""
    assert is_remote(pattern)
    system = pattern.file_system
    with storage_errors(pattern):
        found = system.glob(str(pattern))
    return sorted(open_path(f"{pattern.protocol}://{name}") for name in found)


def find_remote(directory: Path) -> list[Path]:
    """Return all objects below an address, sorted."""
    assert is_remote(directory)
    with storage_errors(directory):
        found = directory.file_system.find(str(directory))
    return sorted(open_path(f"{directory.protocol}://{name}") for name in found)


def open_file_system(protocol: str, *, path: str) -> Any:
    """Return the file system of a protocol.

    Raises:
      UserError: fsspec has none, or it is not installed. `path` is the address.
    """
    import fsspec

    for name, options in _OPTIONS.items():  # a user's own settings of fsspec stay
        fsspec.config.conf[name] = options | fsspec.config.conf.get(name, {})
    try:
        system = fsspec.filesystem(protocol)
    except ImportError as error:
        extra = _EXTRAS.get(_family(protocol))
        hint = f"pip install 'lmjax[{extra}]'" if extra else _one_line(error)
        raise UserError(
            f"{path}: needs a package that is not installed: {hint}"
        ) from error
    except ValueError as error:
        near = nearest(protocol, sorted(fsspec.available_protocols()))
        raise UserError(
            f"{path}: no storage is known as {protocol}://{near}"
        ) from error
    except Exception as error:
        raise UserError(f"{path}: cannot be used: {_one_line(error)}") from error
    if _family(protocol) == "s3":
        system.retries = 2  # of all that botocore tries, too
    return system


@contextlib.contextmanager
def storage_errors(path: RemotePath) -> Iterator[None]:
    """Turn what a file system raises into an `OSError` with a number and the address.

    Raises:
      OSError: the block raised any error but a `UserError`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        kind, number, text = _explain(error, path.protocol)
        raise kind(number, text, str(path)) from error


def _explain(error: Exception, protocol: str) -> tuple[type[OSError], int, str]:
    """Return the class, the number and the text of an error as an `OSError`."""
    name, text = type(error).__name__, _one_line(error)
    if isinstance(error, FileNotFoundError):
        bucket = "bucket" in text.lower() and "exist" in text
        reason = "there is no such bucket" if bucket else "No such file or directory"
        return FileNotFoundError, errno.ENOENT, reason
    if isinstance(error, FileExistsError):
        return FileExistsError, errno.EEXIST, "File exists"
    if "Credentials" in name and not isinstance(error, PermissionError):
        reason = f"no credentials were found: {text}"
        reason = _NO_CREDENTIALS.get(_family(protocol), reason)
        return PermissionError, errno.EACCES, reason
    if isinstance(error, PermissionError):
        return PermissionError, errno.EACCES, f"access is denied: {text}"
    if isinstance(error, IsADirectoryError):
        return IsADirectoryError, errno.EISDIR, "Is a directory"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return OSError, errno.ENOSPC, "No space left on device"
    return OSError, errno.EIO, text or name


def _family(protocol: str) -> str:
    return {"s3a": "s3", "gcs": "gs"}.get(protocol, protocol)


def _one_line(error: BaseException) -> str:
    text = str(getattr(error, "strerror", None) or error).strip()
    return " ".join(text.split())[:300]
