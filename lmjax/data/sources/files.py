"""Documents in text files: one for each file, line, or line of JSON."""

import functools
import glob
import hashlib
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmjax.data.sources.documents import (
    decode_utf8,
    expand_path,
    hash_json,
    read_errors,
)
from lmjax.data.sources.line_index import LineIndex
from lmjax.errors import ConfigError, UserError, nearest
from lmjax.fileio import parse_json_line

_WHOLE_BYTES = 256 << 20  # a smaller corpus is hashed whole
_END_BYTES = 64 << 10  # of a larger one only so many at both ends of each file
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")


def find_files(pattern: str, *, path: str) -> list[Path]:
    """Return the files that match a glob, sorted; directories are left out.

    Args:
      pattern: the glob, in which `~` is expanded.
      path: dotted path of the pattern in the config.

    Raises:
      ConfigError: there is none, or one is compressed.
    """
    whole = str(expand_path(pattern, leaf=path))
    matches = [Path(name) for name in glob.glob(whole, recursive=True)]  # noqa: PTH207
    files = sorted(file for file in matches if not file.is_dir())
    if not files:
        why = "matches only directories" if matches else "matches no file"
        raise ConfigError(f"{path} = {pattern!r}: {why}")
    check_not_compressed(files, path=path)
    return files


def check_not_compressed(files: Sequence[Path], *, path: str) -> None:
    """Raise if the name of a file says that it is compressed.

    Raises:
      ConfigError: it does; `path` is the leaf of the config that names the file.
    """
    for file in files:
        if file.suffix in _COMPRESSED:
            raise ConfigError(f"{path}: {file} is compressed; decompress it first")


class TextFiles:
    """Text files, and hashes of their contents.

    Args:
      paths: the files.
      on_bad_text: "error", or "replace" bytes that are not UTF-8 with U+FFFD.
      path: dotted path of the source in the config.
    """

    def __init__(self, paths: Sequence[Path], *, on_bad_text: str, path: str) -> None:
        self._paths = list(paths)
        self._on_bad_text = on_bad_text
        self._path = path

    @functools.cached_property
    def _contents(self) -> list[str]:
        return _hash_files(self._paths, path=self._path)

    def _text(self, file: Path) -> str:
        """Return the whole text of a file."""
        with read_errors(file, path=self._path):
            raw = file.read_bytes()
        return decode_utf8(
            raw,
            where=lambda: str(file),
            on_bad_text=self._on_bad_text,
            path=self._path,
        )


class Files(TextFiles):
    """One document for each file."""

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int, /) -> str:
        return self._text(self._paths[index])

    def size(self, index: int, /) -> int:
        """Return the bytes of one file."""
        with read_errors(self._paths[index], path=self._path):
            return self._paths[index].stat().st_size

    def fingerprint(self) -> str:
        """Hash the contents of the files."""
        return hash_json("files", self._on_bad_text, self._contents)


class Lines(TextFiles):
    """One document for each line that is not blank, stripped of white space.

    The files are scanned for their lines once, when the first one is needed.
    """

    def __init__(self, paths: Sequence[Path], *, on_bad_text: str, path: str) -> None:
        super().__init__(paths, on_bad_text=on_bad_text, path=path)
        self._index = LineIndex(self._paths, path=path)
        self._maps: dict[int, mmap.mmap] = {}

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int, /) -> str:
        return decode_utf8(
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
        return hash_json("lines", self._on_bad_text, self._contents)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}  # memory maps cannot be pickled

    def _line(self, index: int) -> bytes:
        file, start, stop = self._find(index)
        return self._map(file)[start:stop].strip()

    def _find(self, index: int) -> tuple[int, int, int]:
        """Return the index of a line's file, and the bytes where it begins and ends."""
        file, start = self._index.find(index)
        stop = self._map(file).find(b"\n", start)
        return file, start, stop if stop >= 0 else len(self._map(file))

    def _map(self, file: int) -> mmap.mmap:
        if file not in self._maps:
            name = self._paths[file]
            with read_errors(name, path=self._path), name.open("rb") as opened:
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
    """One document for each line of JSON: the text in one of its fields."""

    def __init__(
        self, paths: Sequence[Path], *, field: str, on_bad_text: str, path: str
    ) -> None:
        super().__init__(paths, on_bad_text=on_bad_text, path=path)
        self._field = field

    def __getitem__(self, index: int, /) -> str:
        line = super().__getitem__(index)
        record = parse_json_line(line, where=lambda: self.where(index))
        if not isinstance(record.get(self._field), str):
            raise UserError(self._explain_no_text(index, record))
        text = record[self._field]
        return text if _is_unicode(text) else self._replace_surrogates(index, text)

    def size(self, index: int, /) -> int:
        """Return the bytes of one record's text."""
        return len(self[index].encode())

    def fingerprint(self) -> str:
        """Hash the contents of the files and the name of the field."""
        return hash_json("jsonl", self._field, super().fingerprint())

    def _explain_no_text(self, index: int, record: dict[str, Any]) -> str:
        place = f"{self.where(index)}: {self._path}.field = {self._field!r}"
        if self._field in record:
            kind = type(record[self._field]).__name__
            return f"{place}: holds {kind}, not a string"
        hint = nearest(self._field, list(record))
        return f"{place}: no such field{hint}; the line has {', '.join(record)}"

    def _replace_surrogates(self, index: int, text: str) -> str:
        """Replace lone surrogates, which JSON can hold; or raise.

        Raises:
          UserError: `on_bad_text` is "error".
        """
        raw = text.encode("utf-16-le", "surrogatepass")
        if self._on_bad_text == "replace":
            return raw.decode("utf-16-le", "replace")
        raise UserError(
            f"{self.where(index)}: half of a surrogate pair is not text; to read it "
            f"as U+FFFD set {self._path}.on_bad_text='replace'"
        )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _hash_files(files: Sequence[Path], *, path: str) -> list[str]:
    """Hash each file: whole if the corpus is small, else its size and both ends.

    Names and times do not count, so a corpus may be copied or moved.
    """
    sizes = []
    for file in files:
        with read_errors(file, path=path):
            sizes.append(file.stat().st_size)
    whole = sum(sizes) <= _WHOLE_BYTES
    return [_hash_file(file, whole=whole, path=path) for file in files]


def _hash_file(file: Path, *, whole: bool, path: str) -> str:
    with read_errors(file, path=path), file.open("rb") as opened:
        size = file.stat().st_size
        sha256 = hashlib.sha256(str(size).encode())
        sha256.update(opened.read(size if whole else _END_BYTES))
        opened.seek(max(opened.tell(), size - _END_BYTES))
        sha256.update(opened.read())
    return sha256.hexdigest()
