"""Records of JSON arrays and of tables, rewritten as lines of JSON: one mechanism reads
them at random. `plain.plain_copy` keeps what is written.
"""

import codecs
import csv
import json
from collections.abc import Callable, Iterator
from typing import Any

from lmjax.data.sources.plain import Rewrite
from lmjax.data.sources.text import BOM
from lmjax.errors import UserError

_SPACE = " \t\n\r"


def begins_array(head: bytes) -> bool:
    """Return whether the first bytes of a file are those of a JSON array."""
    return head.removeprefix(BOM).lstrip().startswith(b"[")


def array_to_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the objects of a JSON array, one a line; memory holds one block of them.

    Raises:
      UserError: it is not JSON, or an item is no object.
    """
    decode, scanner = json.JSONDecoder().raw_decode, _Scanner(blocks)
    if scanner.peek() != "[":
        raise UserError("not a JSON array")
    scanner.position += 1
    number = 0
    if scanner.peek() == "]":
        return
    while True:
        if scanner.peek() != "{":
            raise UserError(f"record {number + 1} is not a JSON object")
        value = scanner.take(decode, number=number + 1)
        number += 1
        yield json.dumps(value).encode() + b"\n"
        mark = scanner.peek()
        scanner.position += 1
        if mark == "]":
            return
        if mark != ",":
            why = "the file ends" if not mark else f"{mark!r} follows"
            raise UserError(f"not JSON: {why} after record {number}, not ',' or ']'")


class _Scanner:
    """A text that is decoded block by block, and forgotten where it was read."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._texts = _decode(blocks)
        self._text = ""
        self.position = 0

    def peek(self) -> str:
        """Return the next character that is not white space; "": there is none."""
        while True:
            while self.position < len(self._text):
                if self._text[self.position] not in _SPACE:
                    return self._text[self.position]
                self.position += 1
            if not self._more(1):
                return ""

    def take(
        self, decode: Callable[[str, int], tuple[Any, int]], *, number: int
    ) -> Any:
        """Return the next value, which reads as much as it needs."""
        size = 1
        while True:
            try:
                value, self.position = decode(self._text, self.position)
                return value
            except (json.JSONDecodeError, RecursionError) as error:
                if isinstance(error, RecursionError) or not self._more(size):
                    why = f"not JSON in record {number}: {error}"
                    raise UserError(why.partition(": line ")[0]) from error
                size *= 2

    def _more(self, count: int) -> bool:
        """Read so many further blocks; return whether there was one."""
        read = [text for text, _ in zip(self._texts, range(count), strict=False)]
        self._text = self._text[self.position :] + "".join(read)
        self.position = 0
        return bool(read)


def _decode(blocks: Iterator[bytes]) -> Iterator[str]:
    """Yield text without a byte order mark; bytes that are not UTF-8 stay marked."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    for block in blocks:
        yield decoder.decode(block)
    yield decoder.decode(b"", final=True)


def _split_lines(blocks: Iterator[bytes]) -> Iterator[str]:
    """Yield lines with their ends, of which LF is the only one."""
    rest = ""
    for text in _decode(blocks):
        *lines, rest = (rest + text).split("\n")
        yield from (f"{line}\n" for line in lines)
    if rest:
        yield rest


def _csv_rows(lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(1 << 30)
    table = csv.reader(lines, strict=True)
    while True:
        number = table.line_num + 1
        try:
            row = next(table, None)
        except csv.Error as error:
            raise UserError(f"line {number}: not a row of a table: {error}") from error
        if row is None:
            return
        yield number, row


def _tsv_rows(lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(lines, start=1):
        text = line.removesuffix("\n").removesuffix("\r")
        yield number, text.split("\t") if text else []


def _table_to_lines(
    blocks: Iterator[bytes],
    read: Callable[[Iterator[str]], Iterator[tuple[int, list[str]]]],
) -> Iterator[bytes]:
    names: list[str] = []
    for number, row in read(_split_lines(blocks)):
        if not row:
            continue
        if not names:
            if len({*row}) < len(row):
                name = next(n for n in row if row.count(n) > 1)
                raise UserError(f"line {number}: the column {name!r} is repeated")
            names = row
        elif len(row) != len(names):
            raise UserError(
                f"line {number}: has {len(row)} columns, the header {len(names)}"
            )
        else:
            record = dict(zip(names, row, strict=True))
            yield json.dumps(record).encode() + b"\n"


def csv_to_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the rows of a table, separated by commas, as lines of JSON."""
    return _table_to_lines(blocks, _csv_rows)


def tsv_to_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the rows of a table, separated by tabs, as lines of JSON."""
    return _table_to_lines(blocks, _tsv_rows)


TABLES: dict[str, Rewrite] = {"csv": csv_to_lines, "tsv": tsv_to_lines}
