"""Verify the files of stores by the checksums in their manifests.

A run does this in the background while it trains: a store may be as large as a disk.
"""

import logging
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lmjax.errors import UserError
from lmjax.fileio import crc32_of_file
from lmjax.storage.paths import is_remote

_log = logging.getLogger(__name__)


class Verification:
    """Reads the files of stores in a thread.

    Args:
      stores: whose files are read, each directory once.
      share: the number of this process, and how many of them share the work.
    """

    def __init__(self, stores: Iterable[Any], *, share: tuple[int, int] = (0, 1)):
        # A file of a remote store is verified when it is fetched.
        files = {
            store.directory: store.checksums
            for store in stores
            if not is_remote(store.directory)
        }
        for directory in (path for path, names in files.items() if not names):
            _log.info("%s: has no checksums to verify", directory)
        index, count = share
        self._files = sorted(
            (directory / name, crc)
            for directory, names in files.items()
            for name, crc in names.items()
        )[index::count]
        self._problem = ""
        self._stopped = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def has_failed(self) -> bool:
        """Return whether a file was found to be damaged."""
        return bool(self._problem)

    def check(self, *, wait_seconds: float = 0.0) -> None:
        """Raise what was found by now.

        Args:
          wait_seconds: how long to wait for files that are not read yet.

        Raises:
          UserError: a file is damaged.
        """
        self._thread.join(wait_seconds)
        if self._problem:
            raise UserError(self._problem)

    def close(self) -> None:
        """Stop reading."""
        self._stopped = True
        self._thread.join()

    def _read(self) -> None:
        self._problem = next(filter(None, self._problems()), "")

    def _problems(self) -> Iterator[str]:
        for file, crc in self._files:
            try:
                found = crc32_of_file(file, stop=lambda: self._stopped)
            except OSError as error:
                yield f"{file}: cannot be read: {error.strerror}"
                return
            if self._stopped:
                return
            if found != crc:
                yield describe_damage(file)


def verify(stores: Iterable[Any]) -> None:
    """Read all files of stores, and wait for it.

    Raises:
      UserError: a file is damaged.
    """
    Verification(stores).check(wait_seconds=threading.TIMEOUT_MAX)


def describe_damage(file: Path) -> str:
    """Return what to tell of a file of a store that is not what was written."""
    return (
        f"{file}: damaged: not what was written, by its checksum; remove {file.parent} "
        "and run the same command again to build it anew"
    )
