"""Files that grow, on storage that cannot append: written locally and uploaded."""

import contextlib
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from lmjax.storage.paths import is_remote

_INTERVAL_SECONDS = 10.0
_SHARE = 10  # at most one tenth of the time is spent uploading

_log = logging.getLogger(__name__)


class Staged:
    """A local directory for the files of another, which is itself if that is local.

    Where it is remote, a thread uploads the files that have changed, and `close` the
    rest. An error of the storage is a warning, told once; the files wait.

    Args:
      directory: where the files are to be.
      continued: the names of files that will be appended to: fetched, if they exist.

    Attributes:
      local: the directory to write to.

    Raises:
      OSError: a file that is to be continued cannot be read.
    """

    def __init__(self, directory: Path, *, continued: Sequence[str] = ()) -> None:
        self.directory = self.local = directory
        self._thread: threading.Thread | None = None
        if not is_remote(directory):
            return
        self.local = Path(tempfile.mkdtemp(prefix="lmjax-upload-"))
        self._uploaded: dict[Path, tuple[int, int]] = {}
        self._warned = self._ended = False
        self._due = threading.Event()
        for name in continued:
            with contextlib.suppress(FileNotFoundError):
                (directory / name).fetch(self.local / name)
                self._uploaded[self.local / name] = _signature(self.local / name)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def upload_soon(self) -> None:
        """Let the thread upload what has changed now."""
        if self._thread is not None:
            self._due.set()

    def close(self) -> None:
        """Upload what has changed and remove the local files."""
        if self._thread is None:
            return
        self._ended = True
        self._due.set()
        self._thread.join()
        self._thread = None
        self._warned = False  # what is lost now is told in any case
        self._upload()
        shutil.rmtree(self.local, ignore_errors=True)

    def _run(self) -> None:
        pause = _INTERVAL_SECONDS
        while not self._ended:
            self._due.wait(pause)
            self._due.clear()
            start = time.monotonic()
            if not self._ended:
                self._upload()
            pause = max(_INTERVAL_SECONDS, _SHARE * (time.monotonic() - start))

    def _upload(self) -> None:
        assert is_remote(self.directory)
        for file in sorted(self.local.rglob("*")):
            if not file.is_file() or self._uploaded.get(file) == _signature(file):
                continue
            signature = _signature(file)
            target = self.directory / file.relative_to(self.local)
            try:
                target.put(file)
                self._uploaded[file] = signature
            except OSError as error:
                if not self._warned:
                    _log.warning(
                        "%s: cannot be written: %s; it is tried again until the end",
                        target,
                        error.strerror,
                    )
                self._warned = True


def _signature(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns
