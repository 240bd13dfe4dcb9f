"""Files with a word a line, in columns, and a blank line after each sentence."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lmjax.config.data import FieldsConfig
from lmjax.data.formats.examples import Example, InMemory
from lmjax.data.sources.documents import hash_json
from lmjax.errors import ConfigError, UserError

_CELL = re.compile(r"(?:\(([^()*]+))?\*([^()*]*\))?")
_NO_PREDICATE = ("-", "_")


def propositions(
    predicates: Sequence[str], arguments: Sequence[Sequence[str]] | None
) -> Iterator[tuple[int, list[str] | str | None]]:
    """Yield each predicate's word, by its number, and its tags, or what is wrong.

    Args:
      predicates: the predicate at each word, or "-".
      arguments: of each predicate in turn, a column of brackets; None where nobody
        knows them, and there are no tags.

    Raises:
      ConfigError: there are not as many columns as predicates.
    """
    places = [i for i, name in enumerate(predicates) if name not in _NO_PREDICATE]
    if arguments is None:
        yield from ((place, None) for place in places)
        return
    if len(places) != len(arguments):
        raise ConfigError(
            f"has {len(places)} predicates, but {len(arguments)} columns of arguments"
        )
    for place, column in zip(places, arguments, strict=True):
        try:
            yield place, bio(column)
        except UserError as error:
            yield place, f"its arguments: {error}"


def bio(column: Sequence[str]) -> list[str]:
    """Return the tags that brackets stand for: B-A0, I-A0, O of (A0*, *), *.

    Raises:
      ConfigError: brackets that are within others, or do not pair.
    """
    tags, inside = [], ""
    for i, cell in enumerate(column):
        found = _CELL.fullmatch(cell)
        if found is None:
            raise ConfigError(f"{cell!r} at token {i} is not as (A0*, *, *) or (A0*)")
        begun, ended = found.groups()
        if begun and inside:
            raise ConfigError(f"{cell!r} at token {i} is within ({inside}*")
        if ended and not (begun or inside):
            raise ConfigError(f"{cell!r} at token {i} ends what has not begun")
        inside = begun or inside
        tags.append(f"B-{begun}" if begun else f"I-{inside}" if inside else "O")
        inside = "" if ended else inside
    if inside:
        raise ConfigError(f"({inside}* does not end")
    return tags


_AROUND_DOCUMENTS = (["#begin", "document"], ["#end", "document"])


class ConllExamples(InMemory):
    """One example for each sentence of files with a word a line, in columns.

    A blank line ends a sentence, and so does one that begins with -DOCSTART-, "#begin
    document" or "#end document". Columns are divided by tabs where there are any, else
    by spaces.

    Args:
      paths: the files.
      layouts: what their columns are called; each is a list in the example. A file has
        the first layout, or another one that is as wide as its lines are.
      on_bad_text: as in `SourceConfig`.
      path: where the source stands in the config.
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
        self._found = [
            (file, *found) for file in paths for found in self._read(self._text(file))
        ]

    def fingerprint(self) -> str:
        """Hash the contents of the files, and the names of the columns."""
        return hash_json("conll", self._columns, super().fingerprint())

    def _read(self, text: str) -> Iterator[tuple[int, Example | str]]:
        """Yield the line and the example of each sentence of a file."""
        sentences = [*_sentences(text)]
        widths = (len(row) for _, rows in sentences for row in rows)
        known = (self._layouts[width] for width in widths if width in self._layouts)
        names = next(known, self._columns)
        for first, rows in sentences:
            yield self._example(first, rows, names)

    def _example(
        self, first: int, rows: list[list[str]], names: Sequence[str]
    ) -> tuple[int, Example | str]:
        for line, row in enumerate(rows, start=first):
            if len(row) != len(names):
                return line, self._of_other_width(row, names)
        columns = map(list, zip(*rows, strict=True))
        return first, dict(zip(names, columns, strict=True))

    def _of_other_width(self, row: list[str], names: Sequence[str]) -> str:
        if names != self._columns:
            return f"has {len(row)} columns, lines before it {len(names)}"
        others = [f"({', '.join(n)})" for n in self._layouts.values() if n != names]
        also = f"; also read: {', '.join(others)}" if others else ""
        return (
            f"has {len(row)} columns; {self._path}.columns names {len(names)}: "
            f"{', '.join(names)}{also}"
        )


class PropsExamples(ConllExamples):
    """One example for each predicate of each sentence; else as `ConllExamples`.

    The tags have as many columns as there are predicates, each with the arguments of
    one in brackets; in the example they are BIO tags, and the predicate is the number
    of its word. The layout is chosen for each sentence.

    Args:
      paths: the files.
      fields: what predicate and tags are called.
      more: as of `ConllExamples`.
    """

    fingerprint_name = "PropsExamples"

    def __init__(
        self, paths: Sequence[Path], *, fields: FieldsConfig, **more: Any
    ) -> None:
        self._fields = fields
        super().__init__(paths, **more)

    def fingerprint(self) -> str:
        """Hash the contents of the files, and what their columns are."""
        names = self._fields.predicate, self._fields.tags
        return hash_json("props", *names, super().fingerprint())

    def _read(self, text: str) -> Iterator[tuple[int, Example | str]]:
        """Yield the line and the example of each predicate of a file."""
        for first, rows in _sentences(text):
            names = self._layouts.get(len(rows[0]), self._columns)
            yield from self._examples(first, rows, names)

    def _examples(
        self, first: int, rows: list[list[str]], names: Sequence[str]
    ) -> Iterator[tuple[int, Example | str]]:
        width, tags = len(rows[0]), self._fields.tags
        for line, row in enumerate(rows, start=first):
            if len(row) < len(names) - (tags in names):
                yield line, self._of_other_width(row, names)
                return
            if len(row) != width:
                yield line, f"has {len(row)} columns, the sentence's first line {width}"
                return
        columns = [*map(list, zip(*rows, strict=True))]
        example, arguments = self._parted(columns, names)
        name = self._fields.predicate
        try:
            for place, found in propositions(example[name], arguments):
                known = {} if found is None else {tags: found}
                whole = {**example, name: place, **known}
                yield first + place, found if isinstance(found, str) else whole
        except UserError as error:
            yield first, str(error)

    def _parted(
        self, columns: list[list[str]], names: Sequence[str]
    ) -> tuple[dict[str, Any], list[list[str]] | None]:
        """Return the columns by their names, and those of arguments if there are."""
        if self._fields.tags not in names:
            return dict(zip(names, columns, strict=True)), None
        begin = names.index(self._fields.tags)
        end = begin + len(columns) - (len(names) - 1)
        others = [name for name in names if name != self._fields.tags]
        rest = columns[:begin] + columns[end:]
        return dict(zip(others, rest, strict=True)), columns[begin:end]


def unlabelled(columns: Sequence[str], fields: FieldsConfig) -> list[Sequence[str]]:
    """Return the layouts of files whose tags may be missing, and all that is not read.

    Args:
      columns: of a file that has all.
      fields: what the columns that are read are called.
    """
    read = fields.tokens, fields.predicate
    without = [name for name in columns if name != fields.tags]
    least = [name for name in without if name in read]
    return [columns, *filter(None, (without, least))]


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
