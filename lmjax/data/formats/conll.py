"""CoNLL files: one word per line, in columns, and a blank line after each sentence."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lmjax.config.data import FieldsConfig
from lmjax.data.formats.examples import Example, InMemoryExamples
from lmjax.data.sources.documents import hash_json
from lmjax.errors import UserError

_CELL = re.compile(r"(?:\(([^()*]+))?\*([^()*]*\))?")
_NO_PREDICATE = ("-", "_")
_DOCUMENT_LINES = (["#begin", "document"], ["#end", "document"])


class ConllExamples(InMemoryExamples):
    """One example for each sentence.

    A sentence ends at a blank line, and at a line that begins with -DOCSTART-, "#begin
    document" or "#end document". Columns are separated by tabs in a line that has a
    tab, else by spaces.

    Args:
      paths: the files.
      layouts: names of the columns, which are the fields of an example. A file has the
        first layout, or another one if that has as many columns as the file.
      on_bad_text: see `SourceConfig`.
      path: the dotted path of the source in the config.
    """

    fingerprint_name = "ConllExamples"

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        layouts: Sequence[Sequence[str]],
        on_bad_text: str,
        path: str,
    ) -> None:
        super().__init__(paths, on_bad_text=on_bad_text, path=path)
        self._columns = tuple(layouts[0])
        self._layouts = {len(names): tuple(names) for names in reversed(layouts)}
        self._examples = [
            (file, *numbered)
            for file in paths
            for numbered in self._parse(self._text(file))
        ]

    def fingerprint(self) -> str:
        """Hash the contents of the files, and the names of the columns."""
        return hash_json("conll", self._columns, super().fingerprint())

    def _parse(self, text: str) -> Iterator[tuple[int, Example | str]]:
        """Yield the line of each sentence, and its example or an error text."""
        sentences = [*_split_sentences(text)]
        widths = (len(row) for _, rows in sentences for row in rows)
        known = (self._layouts[width] for width in widths if width in self._layouts)
        names = next(known, self._columns)
        for first, rows in sentences:
            yield self._make_example(first, rows, names)

    def _make_example(
        self, first: int, rows: list[list[str]], names: Sequence[str]
    ) -> tuple[int, Example | str]:
        for line, row in enumerate(rows, start=first):
            if len(row) != len(names):
                return line, self._describe_width(row, names)
        columns = map(list, zip(*rows, strict=True))
        return first, dict(zip(names, columns, strict=True))

    def _describe_width(self, row: list[str], names: Sequence[str]) -> str:
        """Return the error text for a line with a wrong number of columns."""
        if names != self._columns:
            return f"has {len(row)} columns, lines before it {len(names)}"
        others = [f"({', '.join(n)})" for n in self._layouts.values() if n != names]
        also = f"; also allowed: {', '.join(others)}" if others else ""
        return (
            f"has {len(row)} columns; {self._path}.columns names {len(names)}: "
            f"{', '.join(names)}{also}"
        )


class PropsExamples(ConllExamples):
    """One example for each predicate of each sentence (CoNLL-2005); see ConllExamples.

    A file has a column of arguments, in brackets, for each predicate of the sentence.
    In an example they are BIO tags, and the predicate is the index of its word. The
    layout is chosen for each sentence.

    Args:
      paths: the files.
      fields: the names of predicate and tags.
      options: see `ConllExamples`.
    """

    fingerprint_name = "PropsExamples"

    def __init__(
        self, paths: Sequence[Path], *, fields: FieldsConfig, **options: Any
    ) -> None:
        self._fields = fields
        super().__init__(paths, **options)

    def fingerprint(self) -> str:
        """Hash the contents of the files, and the names of the columns."""
        names = self._fields.predicate, self._fields.tags
        return hash_json("props", *names, super().fingerprint())

    def _parse(self, text: str) -> Iterator[tuple[int, Example | str]]:
        """Yield the line of each predicate, and its example or an error text."""
        for first, rows in _split_sentences(text):
            names = self._layouts.get(len(rows[0]), self._columns)
            yield from self._make_examples(first, rows, names)

    def _make_examples(
        self, first: int, rows: list[list[str]], names: Sequence[str]
    ) -> Iterator[tuple[int, Example | str]]:
        width, tags = len(rows[0]), self._fields.tags
        for line, row in enumerate(rows, start=first):
            if len(row) < len(names) - (tags in names):
                yield line, self._describe_width(row, names)
                return
            if len(row) != width:
                yield line, f"has {len(row)} columns, the sentence's first line {width}"
                return
        columns = [*map(list, zip(*rows, strict=True))]
        example, arguments = self._split_columns(columns, names)
        name = self._fields.predicate
        try:
            for index, spans in parse_propositions(example[name], arguments):
                if isinstance(spans, str):
                    yield first + index, spans
                    continue
                labels = {} if spans is None else {tags: spans}
                yield first + index, {**example, name: index, **labels}
        except UserError as error:
            yield first, str(error)

    def _split_columns(
        self, columns: list[list[str]], names: Sequence[str]
    ) -> tuple[dict[str, Any], list[list[str]] | None]:
        """Return the columns by name, and those of arguments, or None without any."""
        if self._fields.tags not in names:
            return dict(zip(names, columns, strict=True)), None
        begin = names.index(self._fields.tags)
        end = begin + len(columns) - (len(names) - 1)
        others = [name for name in names if name != self._fields.tags]
        rest = columns[:begin] + columns[end:]
        return dict(zip(others, rest, strict=True)), columns[begin:end]


def parse_propositions(
    predicates: Sequence[str], arguments: Sequence[Sequence[str]] | None
) -> Iterator[tuple[int, list[str] | str | None]]:
    """Yield the index of each predicate, and its BIO tags or an error text.

    Args:
      predicates: for each word the predicate, or "-".
      arguments: for each predicate a column of brackets; None: the arguments are
        unknown, and the tags are None.

    Raises:
      UserError: the number of columns is not that of predicates.
    """
    indices = [i for i, name in enumerate(predicates) if name not in _NO_PREDICATE]
    if arguments is None:
        yield from ((index, None) for index in indices)
        return
    if len(indices) != len(arguments):
        raise UserError(
            f"has {len(indices)} predicates, but {len(arguments)} columns of arguments"
        )
    for index, column in zip(indices, arguments, strict=True):
        try:
            yield index, brackets_to_bio(column)
        except UserError as error:
            yield index, f"the arguments of its predicate: {error}"


def brackets_to_bio(column: Sequence[str]) -> list[str]:
    """Convert brackets to BIO tags: (A0*, *), * become B-A0, I-A0, O.

    Raises:
      UserError: brackets that are nested or do not match.
    """
    tags, inside = [], ""
    for i, cell in enumerate(column):
        match = _CELL.fullmatch(cell)
        if match is None:
            raise UserError(f"{cell!r} at token {i}: must be as (A0*, *, *) or (A0*)")
        begun, ended = match.groups()
        if begun and inside:
            raise UserError(f"{cell!r} at token {i}: is nested in ({inside}*")
        if ended and not (begun or inside):
            raise UserError(f"{cell!r} at token {i}: closes a bracket that is not open")
        inside = begun or inside
        tags.append(f"B-{begun}" if begun else f"I-{inside}" if inside else "O")
        inside = "" if ended else inside
    if inside:
        raise UserError(f"({inside}*: is not closed")
    return tags


def list_layouts(columns: Sequence[str], fields: FieldsConfig) -> list[Sequence[str]]:
    """List the layouts that a file to predict may have: also without tags.

    Args:
      columns: the names of all columns.
      fields: the names of those that a task reads.

    Returns:
      All columns; those without the tags; only tokens and predicate.
    """
    inputs = fields.tokens, fields.predicate
    without_tags = [name for name in columns if name != fields.tags]
    least = [name for name in without_tags if name in inputs]
    return [columns, *filter(None, (without_tags, least))]


def _split_sentences(text: str) -> Iterator[tuple[int, list[list[str]]]]:
    """Yield the number of each sentence's first line, and the cells of its lines."""
    rows: list[list[str]] = []
    lines = [*text.split("\n"), ""]
    for number, line in enumerate(lines, start=1):
        line = line.strip(" \t\r")
        row = line.split("\t") if "\t" in line else line.split(" ")
        row = [cell for cell in row if cell]
        if row and row[0] != "-DOCSTART-" and row[:2] not in _DOCUMENT_LINES:
            rows.append(row)
        elif rows:
            yield number - len(rows), rows
            rows = []
