"""Examples in files: dicts of named parts, read at random.

Whatever the format, `examples[i]` is a dict, and `examples.where(i)` says FILE:LINE.
"""

import csv
import functools
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from lmjax.data.sources.documents import decode_utf8, hash_json, read_errors
from lmjax.data.sources.files import Lines, TextFiles
from lmjax.errors import ConfigError, UserError
from lmjax.fileio import parse_json_line

Example = Mapping[str, Any]


class Examples(Protocol):
    """Examples in a fixed order, any of which can be read at any time."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def __getitem__(self, index: int, /) -> Example:
        """Return one example.

        Raises:
          ConfigError: it cannot be read; says where it is.
        """

    def where(self, index: int, /) -> str:
        """Return FILE:LINE."""

    def fingerprint(self) -> str:
        """Return a hash that changes when the examples do; cheap to compute."""


class JsonExamples(Lines):
    """One example for each line of JSON that is not blank."""

    # Lines are texts; here each is read further.
    def __getitem__(self, index: int, /) -> Example:  # type: ignore[override]
        text = super().__getitem__(index).removeprefix("\ufeff")
        return parse_json_line(text, where=lambda: self.where(index))

    def fingerprint(self) -> str:
        """Hash the contents of the files."""
        return hash_json("json examples", super().fingerprint())


class InMemory(TextFiles):
    """Examples of files small enough to be held whole, each with its line's number."""

    _found: list[tuple[Path, int, Example | str]]  # or what is wrong with it
    # Enters the fingerprint, by which stores know their examples: never change it.
    fingerprint_name: ClassVar[str]

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, index: int, /) -> Example:
        example = self._found[index][2]
        if isinstance(example, str):
            raise ConfigError(f"{self.where(index)}: {example}")
        return example

    def where(self, index: int, /) -> str:
        """Return FILE:LINE."""
        file, line, _ = self._found[index]
        return f"{file}:{line}"

    def fingerprint(self) -> str:
        """Hash the contents of the files."""
        return hash_json(self.fingerprint_name, self._on_bad_text, self._contents)

    def _text(self, file: Path) -> str:
        with read_errors(file, path=self._path):
            raw = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
        return "\n".join(
            decode_utf8(
                line,
                where=functools.partial("{}:{}".format, file, number),
                on_bad_text=self._on_bad_text,
                path=self._path,
            )
            for number, line in enumerate(raw.split(b"\n"), start=1)
        )


class TableExamples(InMemory):
    """One example for each row of a table whose first row names the columns.

    Args:
      paths: the files.
      delimiter: "," of a csv, in which quotes may hold line ends, or a tab, where they
        mean nothing.
      on_bad_text: as in `SourceConfig`.
      path: where the source stands in the config.
    """

    fingerprint_name = "TableExamples"

    def __init__(
        self, paths: Sequence[Path], *, delimiter: str, on_bad_text: str, path: str
    ) -> None:
        super().__init__(paths, on_bad_text=on_bad_text, path=path)
        self._delimiter = delimiter
        self._found = [(file, *row) for file in paths for row in self._rows(file)]

    def _rows(self, file: Path) -> Iterator[tuple[int, Example | str]]:
        csv.field_size_limit(1 << 30)
        lines = io.StringIO(self._text(file), newline="")
        table = csv.reader(lines, strict=True)
        if self._delimiter == "\t":
            table = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        names: list[str] = []
        while True:
            line = table.line_num + 1
            try:
                row = next(table, None)
            except csv.Error as error:
                why = _no_row(line, table.line_num, error)
                if not names:
                    raise ConfigError(f"{file}:{line}: {why}") from error
                yield line, why
                continue
            if row is None:
                return
            if names and row:
                yield line, _row(names, row)
            elif row:
                names = _checked_header(row, where=f"{file}:{line}")


def _no_row(first: int, last: int, error: csv.Error) -> str:
    what = "not a row of a table"
    if last > first:  # a quote runs over line ends
        what = f"lines {first:,} to {last:,} are {what}"
    return f"{what}: {error}"


def _checked_header(names: list[str], *, where: str) -> list[str]:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{where}: the column {name!r} is there more than once")
    return names


def _row(names: list[str], row: list[str]) -> Example | str:
    if len(row) == len(names):
        return dict(zip(names, row, strict=True))
    return f"has {len(row)} columns, the header {len(names)}"


class ParallelExamples(InMemory):
    """Line i of each of several files.

    Args:
      paths: the files.
      names: what the line of each is called in the example.
      on_bad_text: as in `SourceConfig`.
      on_bad_example: as there: of lines that some file lacks.
      path: where the source stands in the config.

    Raises:
      ConfigError: the files are not equally long, and that is an error.
    """

    fingerprint_name = "ParallelExamples"

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        names: Sequence[str],
        on_bad_text: str,
        on_bad_example: str,
        path: str,
    ) -> None:
        super().__init__(paths, on_bad_text=on_bad_text, path=path)
        texts = [self._text(f).replace("\r\n", "\n").split("\n") for f in paths]
        for lines in texts:
            if lines[-1] == "":
                lines.pop()
        longest = max(zip(paths, texts, strict=True), key=lambda found: len(found[1]))
        counts = (f"{f} has {len(t):,}" for f, t in zip(paths, texts, strict=True))
        told = f"unequal lines: {', '.join(counts)}"
        if len({*map(len, texts)}) > 1 and on_bad_example == "error":
            raise ConfigError(
                f"{told} ({path}.on_bad_example='skip' leaves out those that one of "
                "them lacks)"
            )
        self._found = [
            (
                longest[0],
                i,
                told if None in pair else dict(zip(names, pair, strict=True)),
            )
            for i, pair in enumerate(itertools.zip_longest(*texts), start=1)
        ]


def add_location(error: UserError, where: str) -> UserError:
    """Return the error with FILE:LINE before its text, if it is not there yet."""
    text = str(error)
    return type(error)(text if text.startswith(where) else f"{where}: {text}")


def explain_bad_example(error: UserError, where: str) -> UserError:
    """Return the error with its location, and how to train without the example."""
    hint = "config.data.on_bad_example='skip' leaves such examples out"
    return type(error)(f"{add_location(error, where)} ({hint})")
