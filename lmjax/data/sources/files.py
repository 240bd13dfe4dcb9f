"""Documents in text files: one for each file, line, or line of JSON."""

import codecs
import contextlib
import functools
import hashlib
import logging
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from lmjax.data.sources.detect import AUTO
from lmjax.data.sources.documents import hash_json
from lmjax.data.sources.line_index import LineIndex
from lmjax.data.sources.plain import (
    Rewrite,
    find_compression,
    is_utf8,
    plain_copy,
    read_plain,
    read_raw,
)
from lmjax.data.sources.rewrite import TABLES, array_to_lines, begins_array
from lmjax.data.sources.text import BOM, decode_utf8, find_fault, read_errors
from lmjax.errors import UserError, nearest
from lmjax.fileio import parse_json_line

_WHOLE_BYTES = 256 << 20  # a smaller corpus is hashed whole
_END_BYTES = 64 << 10  # of a larger one only so many at both ends of each file
_MAX_NAMED = 20  # files that are left out and named
T = TypeVar("T")
_log = logging.getLogger(__name__)


class SourceFiles:
    """Files of a source, and hashes of their contents.

    Files are looked at when the first of them is needed.

    Args:
      paths: the files.
      on_bad_text: "error", or "replace" bytes that are not text with U+FFFD.
      path: dotted path of the source in the config.
      on_bad_file: "error", or "skip" a file that cannot be used; the log names it.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        on_bad_text: str,
        path: str,
        on_bad_file: str = "error",
    ) -> None:
        self._matched = list(paths)
        self._on_bad_text = on_bad_text
        self._on_bad_file = on_bad_file
        self._path = path

    @functools.cached_property
    def _paths(self) -> list[Path]:
        """Return the files that can be used.

        Raises:
          UserError: one cannot, and that is an error.
        """

        def check(file: Path) -> list[Path]:
            if fault := self._find_fault(file):
                raise UserError(f"{self._path}: {file} {fault}")
            return [file]

        return [file for _, file in self._read_files(self._matched, check)]

    @property
    def num_files(self) -> int:
        """Count the files that are used."""
        return len(self._paths)

    def _find_fault(self, file: Path) -> str:
        """Return why a file cannot be used; "": it can."""
        raise NotImplementedError

    def _read_files(
        self, files: Sequence[Path], read: Callable[[Path], Iterable[T]]
    ) -> list[tuple[Path, T]]:
        """Return each file with each item that it is read as.

        Raises:
          UserError: `read` did, and that is an error.
        """
        items: list[tuple[Path, T]] = []
        faults = []
        for file in files:
            try:
                items += [(file, item) for item in read(file)]
            except UserError as error:
                if self._on_bad_file == "error":
                    hint = f"{self._path}.on_bad_file='skip' leaves such files out"
                    raise type(error)(f"{error} ({hint})") from error
                faults.append(str(error).removeprefix(f"{self._path}: "))
        if faults:
            more = len(faults) - _MAX_NAMED
            named = "; ".join(faults[:_MAX_NAMED])
            named += f"; and {more:,} more" if more > 0 else ""
            counts = len(faults), len(files)
            _log.warning("%s: left out %d of %d files: %s", self._path, *counts, named)
        return items

    @functools.cached_property
    def _contents(self) -> list[str]:
        """Return the hash of each file, and the choice to leave out bad ones."""
        skip = self._on_bad_file == "skip"
        hashes = [*_hash_files(self._matched, path=self._path, skip=skip)]
        return [*hashes, "on_bad_file=skip"] if skip else hashes


class TextFiles(SourceFiles):
    """Files of text; see `SourceFiles`.

    Args:
      paths: the files.
      encoding: of their text.
      options: see `SourceFiles`.
    """

    by_line: ClassVar[bool] = True  # files are read line by line

    def __init__(
        self, paths: Sequence[Path], *, encoding: str = "utf-8", **options: Any
    ) -> None:
        super().__init__(paths, **options)
        self._encoding = encoding

    def _find_fault(self, file: Path) -> str:
        return find_fault(
            file,
            path=self._path,
            lines=self.by_line,
            all=self._on_bad_file == "skip" and self._on_bad_text == "error",
            encoding=self._encoding,
        )

    @functools.cached_property
    def _contents(self) -> list[str]:
        """Return the hash of each file, and the encoding where it is not UTF-8."""
        if self._encoding == AUTO:
            return [*super()._contents, "encoding=auto"]
        name = codecs.lookup(self._encoding).name
        return super()._contents + ([] if is_utf8(name) else [f"encoding={name}"])

    def _text(self, file: Path) -> str:
        """Return the whole text of a file."""
        blocks = read_plain(
            file,
            path=self._path,
            encoding=self._encoding,
            on_bad_text=self._on_bad_text,
        )
        return decode_utf8(
            b"".join(blocks).removeprefix(BOM),
            where=lambda: str(file),
            on_bad_text=self._on_bad_text,
            path=self._path,
        )


class Files(TextFiles):
    """One document for each file: its whole text, with the line ends on disk."""

    by_line = False

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int, /) -> str:
        return self._text(self._paths[index])

    def where(self, index: int, /) -> str:
        """Return the name of one file, for a message."""
        return str(self._paths[index])

    def size(self, index: int, /) -> int:
        """Return the bytes of one file."""
        file = self._paths[index]
        with read_errors(file, path=self._path):
            if not find_compression(file):
                return file.stat().st_size
        return sum(map(len, read_raw(file, path=self._path)))

    def fingerprint(self) -> str:
        """Hash the contents of the files."""
        return hash_json("files", self._on_bad_text, self._contents)


class Lines(TextFiles):
    """One document for each line that is not blank, stripped of white space.

    The files are scanned for their lines once, when the first one is needed. Those that
    are compressed or not in UTF-8 are copied first; see `plain_copy`.
    """

    def __init__(self, paths: Sequence[Path], **options: Any) -> None:
        super().__init__(paths, **options)
        self._maps: dict[int, mmap.mmap] = {}
        self._rewritten: dict[Path, Rewrite | None] = {}

    @functools.cached_property
    def _index(self) -> LineIndex:
        return LineIndex([*map(self._plain, self._paths)], path=self._path)

    def lines_of(self, file: Path) -> Path | None:
        """Return a local file with the lines of one, or None if its lines are others.

        Those of JSON arrays and tables are rewritten.
        """
        return None if self._rewrite_of(file) else self._plain(file)

    def _rewrite_of(self, file: Path) -> Rewrite | None:
        """Return what turns a file into lines, if it has none of its own."""
        if file not in self._rewritten:
            self._rewritten[file] = self._find_rewrite(file)
        return self._rewritten[file]

    def _find_rewrite(self, file: Path) -> Rewrite | None:
        return None

    def _plain(self, file: Path) -> Path:
        """Return a local file in UTF-8, with a document a line."""
        with read_errors(file, path=self._path), name_file(file):
            return plain_copy(
                file,
                path=self._path,
                encoding=self._encoding,
                on_bad_text=self._on_bad_text,
                rewrite=self._rewrite_of(file),
            )

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
            with (
                read_errors(name, path=self._path),
                self._plain(name).open("rb") as opened,
            ):
                self._maps[file] = mmap.mmap(
                    opened.fileno(), 0, access=mmap.ACCESS_READ
                )
        return self._maps[file]

    def where(self, index: int, /) -> str:
        """Return FILE:LINE, or FILE: record NUMBER, for an error message."""
        file, start, _ = self._find(index)
        line = self._map(file)[:start].count(b"\n") + 1
        place = ": record " if self._rewrite_of(self._paths[file]) else ":"
        return f"{self._paths[file]}{place}{line}"


class JsonRecords(Lines):
    """One object for each line of JSON, or for each item of a JSON array."""

    def _find_rewrite(self, file: Path) -> Rewrite | None:
        blocks = read_plain(file, path=self._path, encoding=self._encoding)
        return array_to_lines if begins_array(next(blocks, b"")) else None


class JsonLines(JsonRecords):
    """One document for each record of JSON, or row of a table: the text in one field.

    Args:
      paths: the files.
      field: its name.
      table: "csv", "tsv", or "" for JSON.
      options: see `TextFiles`.
    """

    def __init__(
        self, paths: Sequence[Path], *, field: str, table: str = "", **options: Any
    ) -> None:
        super().__init__(paths, **options)
        self._field = field
        self._table = table

    def _find_rewrite(self, file: Path) -> Rewrite | None:
        return TABLES[self._table] if self._table else super()._find_rewrite(file)

    def __getitem__(self, index: int, /) -> str:
        return self.text_of(index, self.record(index))

    def record(self, index: int, /) -> dict[str, Any]:
        """Return all fields of one record."""
        line = super().__getitem__(index)
        return parse_json_line(line, where=lambda: self.where(index))

    def text_of(self, index: int, record: dict[str, Any], /) -> str:
        """Return the text in a record, which has this index."""
        if record.get(self._field, "") is None and self._on_bad_text == "replace":
            return ""
        if not isinstance(record.get(self._field), str):
            raise UserError(self._explain_no_text(index, record))
        text: str = record[self._field]
        return text if _is_unicode(text) else self._replace_surrogates(index, text)

    def size(self, index: int, /) -> int:
        """Return the bytes of one record's text."""
        return len(self[index].encode())

    def fingerprint(self) -> str:
        """Hash the contents of the files and the name of the field."""
        return hash_json(self._table or "jsonl", self._field, super().fingerprint())

    def _explain_no_text(self, index: int, record: dict[str, Any]) -> str:
        place = f"{self.where(index)}: {self._path}.field = {self._field!r}"
        if self._field in record:
            if record[self._field] is None:
                return f"{place}: {explain_null(self._path)}"
            kind = type(record[self._field]).__name__
            return f"{place}: holds {kind}, not a string"
        hint = nearest(self._field, list(record))
        what = "table" if self._table else "line"
        return f"{place}: no such field{hint}; the {what} has {', '.join(record)}"

    def _replace_surrogates(self, index: int, text: str) -> str:
        """Replace lone surrogates, which JSON can hold; or raise.

        Raises:
          UserError: `on_bad_text` is "error".
        """
        raw = text.encode("utf-16-le", "surrogatepass")
        if self._on_bad_text == "replace":
            return raw.decode("utf-16-le", "replace")
        bad = next((c for c in text if "\udc80" <= c <= "\udcff"), "")
        escaped = bad and self._rewrite_of(self._paths[self._find(index)[0]])
        what = f"not UTF-8 ({ord(bad) - 0xDC00:#04x})" if escaped else ""
        raise UserError(
            f"{self.where(index)}: {what or 'half of a surrogate pair is not text'}; "
            f"to read it as U+FFFD set {self._path}.on_bad_text='replace'"
        )


def explain_null(path: str) -> str:
    """Return the error text of a document that is null."""
    return f"holds null, which {path}.on_bad_text='replace' reads as no text"


@contextlib.contextmanager
def name_file(file: Path) -> Iterator[None]:
    """Put the file before the text of a `UserError` that begins with a place in it."""
    try:
        yield
    except UserError as error:
        text = str(error)
        raise error if str(file) in text else UserError(f"{file}: {text}") from error


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _hash_files(files: Sequence[Path], *, path: str, skip: bool) -> Iterator[str]:
    """Yield the hash of each file: whole if the corpus is small, else size and ends.

    Names, times and byte order marks do not count, so a corpus may be copied or moved.

    Args:
      files: the files.
      path: dotted path of the source in the config.
      skip: a file that cannot be read has a hash too.

    Raises:
      UserError: a file cannot be read.
    """
    sizes: dict[Path, int] = {}
    for file in files:
        try:
            with read_errors(file, path=path):
                size = file.stat().st_size
                if not file.is_file():
                    raise UserError(f"{path}: {file} is not a regular file")
                sizes[file] = size
        except UserError:
            if not skip:
                raise
    whole = sum(sizes.values()) <= _WHOLE_BYTES
    for file in files:
        try:
            yield _hash_file(file, whole=whole, path=path) if file in sizes else ""
        except UserError:
            if not skip:
                raise
            yield ""


def _hash_file(file: Path, *, whole: bool, path: str) -> str:
    with read_errors(file, path=path), file.open("rb") as opened:
        stop = file.stat().st_size
        start = len(BOM) if opened.read(len(BOM)) == BOM else 0
        opened.seek(start)
        sha256 = hashlib.sha256(str(stop - start).encode())
        sha256.update(opened.read(stop if whole else _END_BYTES))
        opened.seek(max(opened.tell(), stop - _END_BYTES))
        sha256.update(opened.read())
    return sha256.hexdigest()
