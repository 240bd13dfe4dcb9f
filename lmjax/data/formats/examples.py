"""Labelled examples in files: JSON lines, tables, and parallel files.

In every format `examples[i]` is a dict, and `examples.where(i)` its FILE:LINE.
"""

import csv
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from lmjax.data.sources.documents import hash_json
from lmjax.data.sources.files import JsonRecords, TextFiles
from lmjax.data.sources.text import read_lines
from lmjax.errors import UserError
from lmjax.fileio import parse_json_line

Example = Mapping[str, Any]


class Examples(Protocol):
    """Examples in a fixed order, with random access."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def __getitem__(self, index: int, /) -> Example:
        """Return one example.

        Raises:
          UserError: it cannot be read; names its FILE:LINE.
        """

    def where(self, index: int, /) -> str:
        """Return FILE:LINE."""

    def fingerprint(self) -> str:
        """Return a hash that changes when the examples do; cheap to compute."""


class JsonExamples(JsonRecords):
    """One example for each line of JSON that is not blank, or item of an array."""

    # `Lines` returns text, which is parsed here.
    def __getitem__(self, index: int, /) -> Example:  # type: ignore[override]
        text = super().__getitem__(index)
        return parse_json_line(text, where=lambda: self.where(index))

    def fingerprint(self) -> str:
        """Hash the contents of the files."""
        return hash_json("json examples", super().fingerprint())


class InMemoryExamples(TextFiles):
    """Examples of files that are small enough to be kept in memory."""

    # File, line, and the example or an error text.
    _examples: list[tuple[Path, int, Example | str]]
    # Part of the fingerprint that stores have on disk: never change it.
    fingerprint_name: ClassVar[str]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int, /) -> Example:
        example = self._examples[index][2]
        if isinstance(example, str):
            raise UserError(f"{self.where(index)}: {example}")
        return example

    def where(self, index: int, /) -> str:
        """Return FILE:LINE."""
        file, line, _ = self._examples[index]
        return f"{file}:{line}"

    def fingerprint(self) -> str:
        """Hash the contents of the files."""
        return hash_json(self.fingerprint_name, self._on_bad_text, self._contents)

    def _lines(self, file: Path, *, keep_ends: bool = False) -> list[str]:
        """Return the lines of a file; see `read_lines`."""
        return read_lines(
            file,
            path=self._path,
            on_bad_text=self._on_bad_text,
            source=self._path,
            keep_ends=keep_ends,
            encoding=self._encoding,
        )


class TableExamples(InMemoryExamples):
    """One example for each row of a table; the first row has the names of the columns.

    Args:
      paths: the files.
      delimiter: "," for CSV, where line ends may be quoted, or a tab for TSV, where
        quotes have no meaning.
      keep_blank: a blank line is an example, too: {}.
      options: see `TextFiles`.
    """

    fingerprint_name = "TableExamples"

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        delimiter: str,
        keep_blank: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(paths, **options)
        self._keep_blank = keep_blank
        parse = self._parse_tsv if delimiter == "\t" else self._parse_csv
        rows = self._read_files(self._paths, parse)
        self._examples = [(file, *row) for file, row in rows]

    def _parse_tsv(self, file: Path) -> Iterator[tuple[int, Example | str]]:
        names: list[str] = []
        for number, line in enumerate(self._lines(file), start=1):
            row = line.split("\t")
            if names and (line or self._keep_blank):
                yield number, _make_example(names, row) if line else {}
            elif line:
                names = _check_header(row, where=f"{file}:{number}")

    def _parse_csv(self, file: Path) -> Iterator[tuple[int, Example | str]]:
        csv.field_size_limit(1 << 30)
        table = csv.reader(self._lines(file, keep_ends=True), strict=True)
        names: list[str] = []
        while True:
            line = table.line_num + 1
            try:
                row = next(table, None)
            except csv.Error as error:
                why = _describe_bad_row(line, table.line_num, error)
                if not names:
                    raise UserError(f"{file}:{line}: {why}") from error
                yield line, why
                continue
            if row is None:
                return
            if names and (row or self._keep_blank):
                yield line, _make_example(names, row) if row else {}
            elif row:
                names = _check_header(row, where=f"{file}:{line}")


def _describe_bad_row(first: int, last: int, error: csv.Error) -> str:
    what = "not a row of a table"
    if last > first:  # an open quote spans line ends
        what = f"lines {first:,} to {last:,} are {what}"
    why = "CR within a line" if "new-line character" in str(error) else error
    return f"{what}: {why}"


def _check_header(names: list[str], *, where: str) -> list[str]:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: the column {name!r} is repeated")
    return names


def _make_example(names: list[str], row: list[str]) -> Example | str:
    if len(row) == len(names):
        return dict(zip(names, row, strict=True))
    return f"has {len(row)} columns, the header {len(names)}"


class ParallelExamples(InMemoryExamples):
    """Line i of each of several files.

    Args:
      paths: the files.
      names: the fields that their lines are in the example.
      on_bad_example: see `SourceConfig`; for lines that another file does not have.
      options: see `TextFiles`.

    Raises:
      UserError: the files have different numbers of lines, and that is an error.
    """

    fingerprint_name = "ParallelExamples"

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        names: Sequence[str],
        on_bad_example: str,
        **options: Any,
    ) -> None:
        super().__init__(paths, **options)
        texts = [*map(self._lines, self._paths)]
        counts = [len(lines) for lines in texts]
        sizes = (f"{f} has {n:,}" for f, n in zip(paths, counts, strict=True))
        unequal = f"unequal lines: {', '.join(sizes)}"
        if len({*counts}) > 1 and on_bad_example == "error":
            raise UserError(
                f"{unequal} ({self._path}.on_bad_example='skip' skips the lines that "
                "one of them does not have)"
            )
        longest = paths[counts.index(max(counts))]
        self._examples = [
            (
                longest,
                i,
                unequal if None in pair else dict(zip(names, pair, strict=True)),
            )
            for i, pair in enumerate(itertools.zip_longest(*texts), start=1)
        ]


def add_location(error: UserError, where: str) -> UserError:
    """Return the error with FILE:LINE before its text, unless it is there already."""
    text = str(error)
    return type(error)(text if text.startswith(where) else f"{where}: {text}")


def explain_bad_example(error: UserError, where: str) -> UserError:
    """Return the error with its location, and how to train without the example."""
    hint = "config.data.on_bad_example='skip' skips such examples"
    return type(error)(f"{add_location(error, where)} ({hint})")
