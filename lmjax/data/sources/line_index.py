"""An index of the lines in files: 8 bytes a line, built once, shared by processes."""

import functools
import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.data.sources.text import BOM, read_errors
from lmjax.storage.cache import local_copy

_SCAN_BYTES = 8 << 20
_LINE_END = 10
# White space as `bytes.isspace` defines it.
_IS_SPACE = np.isin(np.arange(256), np.frombuffer(b" \t\n\r\v\f", np.uint8))


class LineIndex:
    """The lines of some files that are not blank, counted through all files.

    The files are scanned when the index is first used. It is pickled as the name of a
    temporary file that other processes map into memory. That file lives as long as
    the index in the process that wrote it.
    """

    def __init__(self, files: Sequence[Path], *, path: str) -> None:
        self._files = list(files)
        self._path = path
        self._saved = ""

    def __len__(self) -> int:
        return len(self._starts)

    def find(self, line: int) -> tuple[int, int]:
        """Return the index of a line's file, and the byte at which the line begins."""
        file = int(np.searchsorted(self._first, line, side="right")) - 1
        return file, int(self._starts[line])

    def __getstate__(self) -> dict[str, Any]:
        if "_scanned" in self.__dict__ and not self._saved:
            self._save()
        return {name: self.__dict__[name] for name in ("_files", "_path", "_saved")}

    @property
    def _first(self) -> np.ndarray:
        """Return the index of the first line of each file, then the number of lines."""
        return self._scanned[0]

    @property
    def _starts(self) -> np.ndarray:
        return self._scanned[1]

    @functools.cached_property
    def _scanned(self) -> tuple[np.ndarray, np.ndarray]:
        if self._saved and Path(self._saved).exists():
            both = np.load(self._saved, mmap_mode="r")
            return both[: len(self._files) + 1], both[len(self._files) + 1 :]
        starts = [line_starts(file, path=self._path) for file in self._files]
        return np.cumsum([0, *map(len, starts)]), np.concatenate(starts)

    def _save(self) -> None:
        try:
            handle, name = tempfile.mkstemp(prefix="lmjax-lines-", suffix=".npy")
            weakref.finalize(self, Path(name).unlink, missing_ok=True)
            with os.fdopen(handle, "wb") as out:
                np.save(out, np.concatenate(self._scanned))
            self._saved = name
        except OSError:
            return  # no room on the disk: each process scans the files itself


def line_starts(file: Path, *, path: str) -> np.ndarray:
    """Return the bytes at which the lines that are not blank begin, int64.

    Raises:
      UserError: the file cannot be read.
    """
    all_starts = [np.zeros(0, np.int64)]
    open_start, open_has_text = -1, False  # the line that continues in the next block
    for position, block in _read_blocks(file, path=path):
        if open_start < 0:
            open_start = position
        ends = np.flatnonzero(block == _LINE_END) + 1
        begins = np.concatenate([[0], ends[ends < len(block)]])
        has_text = np.logical_or.reduceat(~_IS_SPACE[block], begins)
        has_text[0] |= open_has_text
        starts = begins + position
        starts[0] = open_start
        finished = slice(0, len(ends))
        all_starts.append(starts[finished][has_text[finished]])
        if len(ends) < len(begins):
            open_start, open_has_text = int(starts[-1]), bool(has_text[-1])
        else:
            open_start, open_has_text = position + len(block), False
    if open_has_text:
        all_starts.append(np.array([open_start], np.int64))
    return np.concatenate(all_starts)


def _read_blocks(file: Path, *, path: str) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the position of each block after a byte order mark, and its bytes."""
    with read_errors(file, path=path), local_copy(file).open("rb") as opened:
        position = len(BOM) if opened.read(len(BOM)) == BOM else 0
        opened.seek(position)
        while block := opened.read(_SCAN_BYTES):
            yield position, np.frombuffer(block, np.uint8)
            position += len(block)
