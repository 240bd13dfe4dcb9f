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
# CoNLL-U (universaldependencies.org/format.html): comments, and the ids of tokens of
# several words, and of words that are not in the text.
_COMMENT = re.compile(r"#\s*(?:[\w.:\[\]-]+\s*=|newdoc\b|newpar\b)")
_SPACES = re.compile(r"[ \t]+")
_NOT_A_WORD = re.compile(r"[0-9]+[-.][0-9]+")
_CONLLU_COLUMNS = 10


class ConllExamples(InMemoryExamples):
    """One example for each sentence.

    A sentence ends at a blank line, and at a line that begins with -DOCSTART-, "#begin
    document" or "#end document". Columns are separated by tabs in a file whose lines
    have tabs, else by spaces. Comments before a sentence, and in CoNLL-U the lines of
    tokens of several words and of empty nodes, are left out.

    Args:
      paths: the files.
      layouts: names of the columns, which are the fields of an example. A file has the
        first layout, or another one if that has as many columns as the file.
      options: see `TextFiles`.
    """

    fingerprint_name = "ConllExamples"

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        layouts: Sequence[Sequence[str]],
        **options: Any,
    ) -> None:
        super().__init__(paths, **options)
        self._columns = tuple(layouts[0])
        self._layouts = {len(names): tuple(names) for names in reversed(layouts)}
        numbered = self._read_files(
            self._paths, lambda file: self._parse(self._lines(file))
        )
        self._examples = [(file, *example) for file, example in numbered]

    def fingerprint(self) -> str:
        """Hash the contents of the files, and the names of the columns."""
        return hash_json("conll", self._columns, super().fingerprint())

    def _parse(self, lines: Sequence[str]) -> Iterator[tuple[int, Example | str]]:
        """Yield the line of each sentence, and its example or an error text."""
        sentences = [*_split_sentences(lines)]
        widths = (len(row) for sentence in sentences for _, row in sentence)
        known = (self._layouts[width] for width in widths if width in self._layouts)
        names = next(known, self._columns)
        for sentence in sentences:
            yield self._make_example(sentence, names)

    def _make_example(
        self, sentence: "Sentence", names: Sequence[str]
    ) -> tuple[int, Example | str]:
        for line, row in sentence:
            if len(row) != len(names):
                return line, self._describe_width(row, names)
            if "" in row:
                return line, f"its column {names[row.index('')]!r} is empty"
        columns = map(list, zip(*(row for _, row in sentence), strict=True))
        return sentence[0][0], dict(zip(names, columns, strict=True))

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

    def _parse(self, lines: Sequence[str]) -> Iterator[tuple[int, Example | str]]:
        """Yield the line of each predicate, and its example or an error text."""
        for sentence in _split_sentences(lines):
            names = self._layouts.get(len(sentence[0][1]), self._columns)
            yield from self._make_examples(sentence, names)

    def _make_examples(
        self, sentence: "Sentence", names: Sequence[str]
    ) -> Iterator[tuple[int, Example | str]]:
        numbers, rows = zip(*sentence, strict=True)
        width, tags = len(rows[0]), self._fields.tags
        for line, row in sentence:
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
                    yield numbers[index], spans
                    continue
                labels = {} if spans is None else {tags: spans}
                yield numbers[index], {**example, name: index, **labels}
        except UserError as error:
            yield numbers[0], str(error)

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


# The number and the cells of each line.
Sentence = list[tuple[int, list[str]]]


def _split_sentences(lines: Sequence[str]) -> Iterator[Sentence]:
    """Yield the lines of each sentence that are words."""
    words = [x for x in lines if x.strip(" \t") and not _COMMENT.match(x)]
    words = [line for line in words if line[0] != "#"] or words
    by_tabs = 2 * sum("\t" in line for line in words) >= max(len(words), 1)
    has_ids = any(re.match(r"#\s*global\.columns\s*=\s*ID\b", line) for line in lines)
    block: list[tuple[int, str]] = []
    for number, line in enumerate([*lines, ""], start=1):
        start = _SPACES.split(line.strip(" \t"))[:2]
        if start != [""] and start[0] != "-DOCSTART-" and start not in _DOCUMENT_LINES:
            block.append((number, line))
        elif block:
            if sentence := _parse_block(block, by_tabs=by_tabs, has_ids=has_ids):
                yield sentence
            block = []


def _parse_block(
    block: Sequence[tuple[int, str]], *, by_tabs: bool, has_ids: bool
) -> Sentence:
    """Return the cells of the lines between blank ones that are words.

    Args:
      block: numbers and lines.
      by_tabs: the lines of words in this file have tabs.
      has_ids: the first column of the file has ids, as in CoNLL-U.
    """
    rows = [(number, _split_cells(line, by_tabs=by_tabs)) for number, line in block]
    width = next((len(row) for _, row in rows if not row[0].startswith("#")), 0)
    first = 0
    for (_, line), (_, row) in zip(block, rows, strict=True):
        # A word may be or begin with "#": then it is followed by what others are.
        same = len(row) == (width or len(row)) and ("\t" in line) == by_tabs
        if not line.startswith("#") or (same and not _COMMENT.match(line)):
            break
        first += 1
    has_ids |= by_tabs and width == _CONLLU_COLUMNS
    return [
        (number, row)
        for number, row in rows[first:]
        if not (has_ids and _NOT_A_WORD.fullmatch(row[0]))
    ]


def _split_cells(line: str, *, by_tabs: bool) -> list[str]:
    if by_tabs or "\t" in line:
        # A cell is stripped, unless it is nothing but spaces.
        return [cell.strip(" ") or cell for cell in line.rstrip(" \t").split("\t")]
    return [cell for cell in line.split(" ") if cell]
