"""Records in columns: Parquet and Arrow files, read through pyarrow.

A file is read as a stream of batches of some megabytes. What is read next is mostly
what follows, so the open batch is kept, and the stream it is of goes on from there; a
jump reads a row group of Parquet from its beginning, and a batch of Arrow at once.
"""

import bisect
import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lmjax.data.sources.arrow import (
    ARROW,
    PARQUET,
    class_names,
    flatten,
    has_bytes,
    import_pyarrow,
    is_damage,
    is_text,
    leaf_types,
    open_table,
    to_json,
)
from lmjax.data.sources.documents import hash_json
from lmjax.data.sources.files import SourceFiles, explain_null
from lmjax.data.sources.text import decode_utf8, read_errors
from lmjax.errors import ConfigError, UserError, nearest
from lmjax.storage.cache import local_copy
from lmjax.storage.paths import is_remote


class ColumnRecords(SourceFiles):
    """One record for each row of Parquet and Arrow files: a dict of JSON values.

    Columns with bytes, such as images, are left out. A nested field has both names with
    a slash (answers/text). A class label, as the library `datasets` declares it, is its
    name, or None if it is unknown.
    """

    def __init__(self, paths: Sequence[Path], **options: Any) -> None:
        super().__init__(paths, **options)
        self._close()

    def __len__(self) -> int:
        return self._first[-1]

    def __getitem__(self, index: int, /) -> Any:
        with self._errors(index):
            return self._find(index)

    def where(self, index: int, /) -> str:
        """Return FILE: row NUMBER, counted from 1."""
        file = bisect.bisect_right(self._first, index) - 1
        return f"{self._paths[file]}: row {index - self._first[file] + 1}"

    def fingerprint(self) -> str:
        """Hash the contents of the files."""
        return hash_json("columns", self._on_bad_text, self._contents)

    def __getstate__(self) -> dict[str, Any]:
        closed = {"_file": -1, "_part": -1, "_table": None, "_batches": iter(())}
        return self.__dict__ | closed | {"_rows": range(0), "_values": []}

    def _close(self) -> None:
        self._file, self._part = -1, -1  # those that are open
        self._table: Any = None
        self._batches: Iterator[Any] = iter(())
        self._rows = range(0)  # of the part: those of the batch that is open
        self._values: list[Any] = []

    @functools.cached_property
    def _first(self) -> list[int]:
        """Return the index of the first row of each file, then the number of rows."""
        return [0, *itertools.accumulate(map(self._count_rows, self._paths))]

    def _count_rows(self, file: Path) -> int:
        with self._open_errors(file), _open_footer(file) as footer:
            return sum(open_table(footer).num_rows)

    def _find_fault(self, file: Path) -> str:
        if file.exists() and not file.is_file():
            return "is not a regular file"
        with self._open_errors(file), _open_footer(file) as footer:
            schema = open_table(footer).schema
        return self._find_schema_fault(file, schema)

    def _find_schema_fault(self, file: Path, schema: Any) -> str:
        return ""

    def _columns(self, schema: Any) -> list[str]:
        """Return the columns that are read."""
        return [field.name for field in schema if not has_bytes(field.type)]

    def _convert(self, batch: Any, schema: Any) -> list[Any]:
        """Return the values of the rows of a batch."""
        labels = class_names(schema)
        return [
            dict(flatten({k: to_json(v, labels.get(k)) for k, v in row.items()}))
            for row in batch.to_pylist()
        ]

    def _find(self, index: int) -> Any:
        """Return a row, reading on from the row before if that is near."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        file = bisect.bisect_right(self._first, index) - 1
        if file != self._file:
            self._close()
            self._table = open_table(local_copy(self._paths[file]))
            self._file = file
        row, part = index - self._first[file], 0
        while row >= self._table.num_rows[part]:
            row -= self._table.num_rows[part]
            part += 1
        if part != self._part or row < self._rows.start:
            columns = self._columns(self._table.schema)
            self._batches = self._table.read(part, columns)
            self._part, self._rows = part, range(0)
        while row >= self._rows.stop:
            batch = next(self._batches)
            self._rows = range(self._rows.stop, self._rows.stop + batch.num_rows)
            if row < self._rows.stop:
                self._values = self._convert(batch, self._table.schema)
        return self._values[row - self._rows.start]

    @contextlib.contextmanager
    def _errors(self, index: int) -> Iterator[None]:
        """Turn what pyarrow says of a row into a `UserError`."""
        try:
            yield
        except (IndexError, UserError):
            raise
        except Exception as error:
            self._close()
            if not is_damage(error):
                raise
            raise UserError(
                f"{self.where(index)}: cannot be read: {_one_line(error)}"
            ) from error

    @contextlib.contextmanager
    def _open_errors(self, file: Path) -> Iterator[None]:
        """Turn what pyarrow says of a file into a `UserError`."""
        try:
            with read_errors(file, path=self._path), file.open("rb") as opened:
                head = opened.read(8)
            yield
        except UserError:
            raise
        except Exception as error:
            if not is_damage(error):
                raise
            kind = "Parquet" if head.startswith(PARQUET) else "Arrow"
            known = head.startswith((PARQUET, ARROW, b"\xff\xff\xff\xff"))
            what = f"is cut off or damaged ({kind})" if known else _NEITHER
            raise UserError(
                f"{self._path}: {file} {what}: {_one_line(error)}"
            ) from error


_NEITHER = "is neither Parquet nor Arrow"


class ColumnTexts(ColumnRecords):
    """One document for each row of Parquet and Arrow files: the text in one column.

    Args:
      paths: the files.
      field: the column, or outer/inner for a nested one.
      options: see `SourceFiles`.
    """

    def __init__(self, paths: Sequence[Path], *, field: str, **options: Any) -> None:
        super().__init__(paths, **options)
        self._field = field

    def __getitem__(self, index: int, /) -> str:
        raw = super().__getitem__(index)
        if raw is None and self._on_bad_text == "replace":
            return ""
        if raw is None:
            place = f"{self.where(index)}: {self._path}.field = {self._field!r}"
            raise UserError(f"{place}: {explain_null(self._path)}")
        return decode_utf8(
            raw,
            where=lambda: self.where(index),
            on_bad_text=self._on_bad_text,
            path=self._path,
        )

    def size(self, index: int, /) -> int:
        """Return the bytes of one row's text."""
        return len(super().__getitem__(index) or b"")

    def fingerprint(self) -> str:
        """Hash the contents of the files and the name of the column."""
        return hash_json("column", self._field, super().fingerprint())

    def _columns(self, schema: Any) -> list[str]:
        return [self._field]

    def _convert(self, batch: Any, schema: Any) -> list[Any]:
        pa = import_pyarrow()
        outer, *inner = self._field.split("/")
        column = batch.column(outer)
        for name in inner:
            column = pa.compute.struct_field(column, name)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        return column.cast(pa.large_binary()).to_pylist()

    def _find_schema_fault(self, file: Path, schema: Any) -> str:
        leaf = f"{self._path}.field = {self._field!r}"
        names = dict(leaf_types(schema))
        if self._field not in names:
            hint = nearest(self._field, [*names])
            raise ConfigError(
                f"{leaf}: {file} has no such column{hint}; it has {', '.join(names)}"
            )
        if not is_text(names[self._field]):
            kind, texts = (
                names[self._field],
                [n for n, t in names.items() if is_text(t)],
            )
            there = f"; text is in {', '.join(texts)}" if texts else ""
            raise ConfigError(f"{leaf}: {file} holds {kind}, not text{there}")
        return ""


@contextlib.contextmanager
def _open_footer(file: Path) -> Iterator[Any]:
    """Yield a local path, or a remote file of which only parts are fetched."""
    if is_remote(file):
        with file.open("rb") as opened:
            yield opened
    else:
        yield file


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")
