"""Documents in text files: one for each file, line, or line of JSON."""

import functools
import glob
import hashlib
import logging
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from lmjax.data.sources.documents import expand_path, hash_json
from lmjax.data.sources.line_index import LineIndex
from lmjax.data.sources.text import BOM, decode_utf8, find_fault, read_errors
from lmjax.errors import ConfigError, UserError, nearest
from lmjax.fileio import parse_json_line
from lmjax.storage.cache import local_copy
from lmjax.storage.paths import glob_remote, is_remote, open_path

_WHOLE_BYTES = 256 << 20  # a smaller corpus is hashed whole
_END_BYTES = 64 << 10  # of a larger one only so many at both ends of each file
_MAX_NAMED = 20  # files that are left out and named
T = TypeVar("T")
_log = logging.getLogger(__name__)


def find_files(pattern: str, *, path: str) -> list[Path]:
    """Return the files that match a glob, sorted; directories are left out.

    Args:
      pattern: the glob, in which `~` is expanded.
      path: dotted path of the pattern in the config.

    Raises:
      ConfigError: there is none.
    """
    whole = expand_path(pattern, leaf=path)
    remote = is_remote(whole)
    if remote:
        return _find_remote_files(whole, path=path)
    names = glob.glob(str(whole), recursive=True)  # noqa: PTH207
    matches = [Path(name) for name in names]
    files = sorted(file for file in matches if not file.is_dir())
    if not files:
        why = "matches only directories" if matches else "matches no file"
        raise ConfigError(f"{path} = {pattern!r}: {why}")
    return files


def _find_remote_files(pattern: Path, *, path: str) -> list[Path]:
    with read_errors(pattern, path=path):
        matches = glob_remote(pattern)
        bucket = open_path("/".join(str(pattern).split("/")[:3]))
        if not matches and not bucket.exists():
            raise ConfigError(f"{path} = {str(pattern)!r}: there is no {bucket}")
    if not matches:
        raise ConfigError(f"{path} = {str(pattern)!r}: matches no file")
    return matches


class TextFiles:
    """Text files, and hashes of their contents.

    Files are looked at when the first of them is needed.

    Args:
      paths: the files.
      on_bad_text: "error", or "replace" bytes that are not UTF-8 with U+FFFD.
      path: dotted path of the source in the config.
      on_bad_file: "error", or "skip" a file that is not text, and name it in the log.
    """

    by_line: ClassVar[bool] = True  # files are read line by line

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
        """Return the files that are text.

        Raises:
          UserError: one is not, and that is an error.
        """
        whole = self._on_bad_file == "skip" and self._on_bad_text == "error"

        def check(file: Path) -> list[Path]:
            fault = find_fault(file, path=self._path, lines=self.by_line, all=whole)
            if fault:
                raise UserError(f"{self._path}: {file} {fault}")
            return [file]

        return [file for _, file in self._read_files(self._matched, check)]

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

    def _text(self, file: Path) -> str:
        """Return the whole text of a file."""
        with read_errors(file, path=self._path):
            raw = file.read_bytes().removeprefix(BOM)
        return decode_utf8(
            raw,
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

    def __init__(self, paths: Sequence[Path], **options: Any) -> None:
        super().__init__(paths, **options)
        self._maps: dict[int, mmap.mmap] = {}

    @functools.cached_property
    def _index(self) -> LineIndex:
        return LineIndex(self._paths, path=self._path)

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
                local_copy(name).open("rb") as opened,
            ):
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

    def __init__(self, paths: Sequence[Path], *, field: str, **options: Any) -> None:
        super().__init__(paths, **options)
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
