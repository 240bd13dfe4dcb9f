"""Documents in files: one for each file, line, or line of JSON."""

import functools
import glob
import hashlib
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmjax.data.sources.documents import decode, digest, expanded, reading
from lmjax.data.sources.line_index import LineIndex
from lmjax.errors import ConfigError, nearest
from lmjax.fileio import parse_json_line

_WHOLE_BYTES = 256 << 20
_END_BYTES = 64 << 10
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")


def files_of(pattern: str, *, path: str) -> list[Path]:
    """Return the files that match a glob, sorted; directories are passed over.

    Raises:
      ConfigError: there is none, or one is compressed; `path` says where the pattern
        stands.
    """
    whole = str(expanded(pattern, leaf=path))
    found = [Path(name) for name in glob.glob(whole, recursive=True)]  # noqa: PTH207
    files = sorted(file for file in found if not file.is_dir())
    if not files:
        what = "matches only directories" if found else "matches no file"
        raise ConfigError(f"{path} = {pattern!r}: {what}")
    refuse_compressed(files, path=path)
    return files


def refuse_compressed(files: Sequence[Path], *, path: str) -> None:
    """Raise if a file's name says that what is in it is no text.

    Raises:
      ConfigError: it does; `path` says where the file was given.
    """
    for file in files:
        if file.suffix in _COMPRESSED:
            raise ConfigError(f"{path}: {file} is compressed; decompress it first")


class OnDisk:
    """The files behind documents, and the hash of what is in them."""

    def __init__(self, paths: Sequence[Path], *, on_bad_text: str, path: str) -> None:
        self._paths = list(paths)
        self._on_bad_text = on_bad_text
        self._path = path

    @functools.cached_property
    def _contents(self) -> list[str]:
        return _contents(self._paths, path=self._path)

    def _text(self, file: Path) -> str:
        """Return all that a file holds."""
        with reading(file, path=self._path):
            raw = file.read_bytes()
        return decode(
            raw,
            where=lambda: str(file),
            on_bad_text=self._on_bad_text,
            path=self._path,
        )


class Files(OnDisk):
    """One document for each file."""

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int, /) -> str:
        return self._text(self._paths[index])

    def size(self, index: int, /) -> int:
        """Return the bytes of one file."""
        with reading(self._paths[index], path=self._path):
            return self._paths[index].stat().st_size

    def fingerprint(self) -> str:
        """Hash the contents of the files."""
        return digest("files", self._on_bad_text, self._contents)


class Lines(OnDisk):
    """One document for each line that is not blank; white space around it is cut.

    When first needed the files are scanned, once, for where their lines begin.
    """

    def __init__(self, paths: Sequence[Path], *, on_bad_text: str, path: str) -> None:
        super().__init__(paths, on_bad_text=on_bad_text, path=path)
        self._index = LineIndex(self._paths, path=path)
        self._maps: dict[int, mmap.mmap] = {}

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int, /) -> str:
        return decode(
            self._line(index),
            where=lambda: self.where(index),
            on_bad_text=self._on_bad_text,
            path=self._path,
        )

    def size(self, index: int, /) -> int:
        """Return the bytes of one line."""
        return len(self._line(index))

    def fingerprint(self) -> str:
        """Hash the contents of the files."""
        return digest("lines", self._on_bad_text, self._contents)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}  # memory maps do not travel

    def _line(self, index: int) -> bytes:
        file, start, stop = self._find(index)
        return self._map(file)[start:stop].strip()

    def _find(self, index: int) -> tuple[int, int, int]:
        """Return a line's file, and the bytes at which it begins and ends."""
        file, start = self._index.find(index)
        stop = self._map(file).find(b"\n", start)
        return file, start, stop if stop >= 0 else len(self._map(file))

    def _map(self, file: int) -> mmap.mmap:
        if file not in self._maps:
            name = self._paths[file]
            with reading(name, path=self._path), name.open("rb") as opened:
                self._maps[file] = mmap.mmap(
                    opened.fileno(), 0, access=mmap.ACCESS_READ
                )
        return self._maps[file]

    def where(self, index: int, /) -> str:
        """Return FILE:LINE, for an error message."""
        file, start, _ = self._find(index)
        line = self._map(file)[:start].count(b"\n") + 1
        return f"{self._paths[file]}:{line}"


class JsonLines(Lines):
    """One document for each line of JSON; a field of it holds the text."""

    def __init__(
        self, paths: Sequence[Path], *, field: str, on_bad_text: str, path: str
    ) -> None:
        super().__init__(paths, on_bad_text=on_bad_text, path=path)
        self._field = field

    def __getitem__(self, index: int, /) -> str:
        line = super().__getitem__(index)
        record = parse_json_line(line, where=lambda: self.where(index))
        if not isinstance(record.get(self._field), str):
            raise ConfigError(self._no_text(index, record))
        text = record[self._field]
        return text if _is_unicode(text) else self._mend(index, text)

    def size(self, index: int, /) -> int:
        """Return the bytes of one record's text."""
        return len(self[index].encode())

    def fingerprint(self) -> str:
        """Hash the files and the name of the field."""
        return digest("jsonl", self._field, super().fingerprint())

    def _no_text(self, index: int, record: dict[str, Any]) -> str:
        place = f"{self.where(index)}: {self._path}.field = {self._field!r}"
        if self._field in record:
            kind = type(record[self._field]).__name__
            return f"{place}: holds {kind}, not a string"
        hint = nearest(self._field, list(record))
        return f"{place}: no such field{hint}; the line has {', '.join(record)}"

    def _mend(self, index: int, text: str) -> str:
        """Refuse or replace halves of surrogate pairs, which JSON can spell."""
        raw = text.encode("utf-16-le", "surrogatepass")
        if self._on_bad_text == "replace":
            return raw.decode("utf-16-le", "replace")
        raise ConfigError(
            f"{self.where(index)}: half of a surrogate pair is not text; to read it "
            f"as U+FFFD set {self._path}.on_bad_text='replace'"
        )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _contents(files: Sequence[Path], *, path: str) -> list[str]:
    """Hash each file: whole if all are small together, else its size and its ends.

    Neither times nor places count, so a corpus may be copied or moved.
    """
    sizes = []
    for file in files:
        with reading(file, path=path):
            sizes.append(file.stat().st_size)
    whole = sum(sizes) <= _WHOLE_BYTES
    return [_hash(file, whole=whole, path=path) for file in files]


def _hash(file: Path, *, whole: bool, path: str) -> str:
    with reading(file, path=path), file.open("rb") as opened:
        size = file.stat().st_size
        read = hashlib.sha256(str(size).encode())
        read.update(opened.read(size if whole else _END_BYTES))
        opened.seek(max(opened.tell(), size - _END_BYTES))
        read.update(opened.read())
    return read.hexdigest()
