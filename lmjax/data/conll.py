"""Files with a word a line, in columns, and a blank line after each sentence."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lmjax.config import ConfigError, FieldsConfig
from lmjax.data import props
from lmjax.data.documents import digest
from lmjax.data.examples import Example, InMemory

_AROUND_DOCUMENTS = (["#begin", "document"], ["#end", "document"])


class ConllExamples(InMemory):
    """One example for each sentence of files with a word a line, in columns.

    A blank line ends a sentence, and so does one that begins with -DOCSTART-, "#begin
    document" or "#end document". Columns are divided by tabs where there are any, else
    by spaces.

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
            (file, *found)
            for file in paths
            for first, rows in _sentences(self._text(file))
            for found in self._examples(first, rows)
        ]

    def fingerprint(self) -> str:
        """Hash the contents of the files, and the names of the columns."""
        return digest("conll", self._columns, super().fingerprint())

    def _examples(
        self, first: int, rows: list[list[str]]
    ) -> Iterator[tuple[int, Example | str]]:
        """Yield the line and the example, or examples, of a sentence."""
        for line, row in enumerate(rows, start=first):
            if len(row) != len(self._columns):
                yield line, self._of_other_width(row)
                return
        columns = map(list, zip(*rows, strict=True))
        yield first, dict(zip(self._columns, columns, strict=True))

    def _of_other_width(self, row: list[str]) -> str:
        return (
            f"has {len(row)} columns; {self._path}.columns names "
            f"{len(self._columns)}: {', '.join(self._columns)}"
        )


class PropsExamples(ConllExamples):
    """One example for each predicate of each sentence; else as `ConllExamples`.

    The tags have as many columns as there are predicates, each with the arguments of
    one in brackets; in the example they are BIO tags, and the predicate is the number
    of its word.

    Args:
      paths: the files.
      fields: what predicate and tags are called.
      more: as of `ConllExamples`.
    """

    def __init__(
        self, paths: Sequence[Path], *, fields: FieldsConfig, **more: Any
    ) -> None:
        self._fields = fields
        super().__init__(paths, **more)

    def fingerprint(self) -> str:
        """Hash the contents of the files, and what their columns are."""
        names = self._fields.predicate, self._fields.tags
        return digest("props", *names, super().fingerprint())

    def _examples(
        self, first: int, rows: list[list[str]]
    ) -> Iterator[tuple[int, Example | str]]:
        width = len(rows[0])
        for line, row in enumerate(rows, start=first):
            if len(row) < len(self._columns) - 1:
                yield line, self._of_other_width(row)
                return
            if len(row) != width:
                yield line, f"has {len(row)} columns, the sentence's first line {width}"
                return
        columns = [*map(list, zip(*rows, strict=True))]
        begin = self._columns.index(self._fields.tags)
        end = begin + width - (len(self._columns) - 1)
        names = [name for name in self._columns if name != self._fields.tags]
        example = dict(zip(names, columns[:begin] + columns[end:], strict=True))
        predicates = example[self._fields.predicate]
        try:
            for place, tags in props.propositions(predicates, columns[begin:end]):
                own = {self._fields.predicate: place, self._fields.tags: tags}
                found = tags if isinstance(tags, str) else {**example, **own}
                yield first + place, found
        except ConfigError as error:
            yield first, str(error)


def _sentences(text: str) -> Iterator[tuple[int, list[list[str]]]]:
    """Yield the number of each sentence's first line, and the cells of its lines."""
    rows: list[list[str]] = []
    lines = [*text.split("\n"), ""]
    for number, line in enumerate(lines, start=1):
        line = line.strip(" \t\r")
        row = line.split("\t") if "\t" in line else line.split(" ")
        row = [cell for cell in row if cell]
        if row and row[0] != "-DOCSTART-" and row[:2] not in _AROUND_DOCUMENTS:
            rows.append(row)
        elif rows:
            yield number - len(rows), rows
            rows = []
