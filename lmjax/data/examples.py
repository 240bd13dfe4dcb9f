"""Labelled examples in files: dicts of named parts, read at random.

Whatever the format, `examples[i]` is a dict, and `examples.where(i)` says FILE:LINE.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lmjax.config import ConfigError, SourceConfig
from lmjax.data.documents import HeldOut, digest
from lmjax.data.files import Lines, OnDisk, files_of
from lmjax.data.squad import SquadExamples

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

    def __getitem__(self, index: int, /) -> Example:  # type: ignore[override]
        text = super().__getitem__(index)
        return json_object(text, where=lambda: self.where(index))

    def fingerprint(self) -> str:
        """Hash the contents of the files."""
        return digest("json examples", super().fingerprint())


class _InMemory(OnDisk):
    """Examples of files small enough to be held whole, each with its line's number."""

    _found: list[tuple[Path, int, Example | str]]  # or what is wrong with it

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
        return digest(type(self).__name__, self._on_bad_text, self._contents)


class TableExamples(_InMemory):
    """One example for each row of a table whose first row names the columns.

    Args:
      paths: the files.
      delimiter: "," of a csv, in which quotes may hold line ends, or a tab, where they
        mean nothing.
      on_bad_text: as in `SourceConfig`.
      path: where the source stands in the config.
    """

    def __init__(
        self, paths: Sequence[Path], *, delimiter: str, on_bad_text: str, path: str
    ) -> None:
        super().__init__(paths, on_bad_text=on_bad_text, path=path)
        self._delimiter = delimiter
        self._found = [(file, *row) for file in paths for row in self._rows(file)]

    def _rows(self, file: Path) -> Iterator[tuple[int, Example | str]]:
        csv.field_size_limit(1 << 30)
        lines = self._text(file).removeprefix("\ufeff").splitlines(keepends=True)
        table = csv.reader(lines)
        if self._delimiter == "\t":
            table = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        names: list[str] = []
        while True:
            line = table.line_num + 1
            try:
                row = next(table, None)
            except csv.Error as error:
                raise ConfigError(f"{file}:{line}: not a table: {error}") from error
            if row is None:
                return
            if names and row:
                yield line, _row(names, row)
            names = names or row


def _row(names: list[str], row: list[str]) -> Example | str:
    if len(row) == len(names):
        return dict(zip(names, row, strict=True))
    return f"has {len(row)} columns, the header {len(names)}"


class ConllExamples(_InMemory):
    """One example for each sentence of files with a word a line, in columns.

    A blank line ends a sentence; lines that begin with -DOCSTART- say nothing.

    Args:
      paths: the files.
      columns: what their columns are called; each is a list in the example.
      on_bad_text: as in `SourceConfig`.
      path: where the source stands in the config.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        columns: Sequence[str],
        on_bad_text: str,
        path: str,
    ) -> None:
        super().__init__(paths, on_bad_text=on_bad_text, path=path)
        self._columns = tuple(columns)
        self._found = [
            (file, *self._example(first, rows))
            for file in paths
            for first, rows in _sentences(self._text(file).removeprefix("\ufeff"))
        ]

    def fingerprint(self) -> str:
        """Hash the contents of the files, and the names of the columns."""
        return digest("conll", self._columns, super().fingerprint())

    def _example(self, first: int, rows: list[list[str]]) -> tuple[int, Example | str]:
        for line, row in enumerate(rows, start=first):
            if len(row) != len(self._columns):
                return line, (
                    f"has {len(row)} columns; {self._path}.columns names "
                    f"{len(self._columns)}: {', '.join(self._columns)}"
                )
        columns = zip(*rows, strict=True)
        names = self._columns
        return first, {n: list(c) for n, c in zip(names, columns, strict=True)}


def _sentences(text: str) -> Iterator[tuple[int, list[list[str]]]]:
    """Yield the number of each sentence's first line, and the words of its lines."""
    rows: list[list[str]] = []
    lines = [*text.split("\n"), ""]
    for number, line in enumerate(lines, start=1):
        row = line.split()
        if row and row[0] != "-DOCSTART-":
            rows.append(row)
        elif rows:
            yield number - len(rows), rows
            rows = []


class ParallelExamples(_InMemory):
    """Line i of each of several files, by the files' last names.

    Args:
      stem: what their names have in common: `train` of `train.en` and `train.de`.
      names: their last names.
      on_bad_text: as in `SourceConfig`.
      path: where the source stands in the config.

    Raises:
      ConfigError: the files are not equally long.
    """

    def __init__(
        self, stem: str, *, names: Sequence[str], on_bad_text: str, path: str
    ) -> None:
        files = [Path(f"{stem}.{name}").expanduser() for name in names]
        super().__init__(files, on_bad_text=on_bad_text, path=path)
        texts = [self._text(f).removeprefix("\ufeff").split("\n") for f in files]
        for lines in texts:
            if lines[-1] == "":
                lines.pop()
        if len({*map(len, texts)}) > 1:
            counts = (
                f"{file} has {len(lines):,}"
                for file, lines in zip(files, texts, strict=True)
            )
            raise ConfigError(f"{path}.path: unequal lines: {', '.join(counts)}")
        self._found = [
            (files[0], i, dict(zip(names, lines, strict=True)))
            for i, lines in enumerate(zip(*texts, strict=True), start=1)
        ]


class HeldOutExamples(HeldOut):
    """Every n-th example of others, or all but those."""

    def where(self, index: int, /) -> str:
        """Return FILE:LINE."""
        return self._documents.where(self._place(index))  # type: ignore[attr-defined]


def open_examples(
    config: SourceConfig, *, split: str, path: str = "config.data"
) -> Examples | None:
    """Open the examples of one split; None where the source has no such split.

    Args:
      config: one of the sources of `FORMATS`.
      split: "train", "valid" or "test".
      path: where `config` stands, for the text of errors.

    Raises:
      ConfigError: no file, or one that cannot be read as what it should be.
    """
    leaf = {"train": "path", "valid": "valid_path", "test": "test_path"}[split]
    if split == "test" and not config.test_path:
        return None
    held_out = not config.valid_path and split != "test"
    leaf = "path" if held_out else leaf
    pattern = getattr(config, leaf)
    found = FORMATS[config.source](config, pattern, path=path, leaf=f"{path}.{leaf}")
    if held_out:
        every = config.holdout_every
        found = HeldOutExamples(found, every=every, held_out=split == "valid")
    if not len(found):
        raise ConfigError(f"{path}.{leaf} = {pattern!r}: no example for {split}")
    return found


def _of_files(kind: Any, **more: Callable[[SourceConfig], Any]) -> Callable[..., Any]:
    def opened(config: SourceConfig, pattern: str, *, path: str, leaf: str) -> Any:
        options = {name: value(config) for name, value in more.items()}
        files = files_of(pattern, path=leaf)
        return kind(files, on_bad_text=config.on_bad_text, path=path, **options)

    return opened


def _parallel(config: SourceConfig, stem: str, *, path: str, leaf: str) -> Examples:
    names = config.fields.source, config.fields.target
    return ParallelExamples(
        stem, names=names, on_bad_text=config.on_bad_text, path=path
    )


FORMATS: dict[str, Callable[..., Any]] = {
    "jsonl": _of_files(JsonExamples),
    "tsv": _of_files(TableExamples, delimiter=lambda _: "\t"),
    "csv": _of_files(TableExamples, delimiter=lambda _: ","),
    "conll": _of_files(ConllExamples, columns=lambda config: config.columns),
    "parallel": _parallel,
    "squad": _of_files(SquadExamples),
}


def json_object(text: str, *, where: Callable[[], str]) -> dict[str, Any]:
    """Return the object that a line of JSON holds; `where` names the line.

    Raises:
      ConfigError: it holds none.
    """
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where()}: not JSON: {error}") from error
    except (ValueError, RecursionError) as error:  # huge numbers, deep brackets
        raise ConfigError(f"{where()}: cannot be read: {error}") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{where()}: not a JSON object")
    return record
