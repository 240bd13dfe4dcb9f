"""Files of word vectors, read as a stream: only the wanted vectors are parsed.

In the text format of GloVe (Pennington et al. 2014) each line is a word and its
numbers. The format of word2vec (Mikolov et al. 2013) adds a first line of two counts,
and may hold the numbers as float32. The first bytes tell the formats apart.
"""

import dataclasses
import hashlib
import logging
import mmap
import re
from collections.abc import Callable, Iterator

import numpy as np

from lmjax.data.sources.documents import expand_path
from lmjax.data.sources.plain import plain_copy
from lmjax.data.sources.text import BOM, find_fault, read_errors
from lmjax.errors import ConfigError, UserError

log = logging.getLogger(__name__)
_HEADER = re.compile(rb"([0-9]{1,18}) ([0-9]{1,9}) *\r?\n")
_TEXT = frozenset(b"\t\n\r" + bytes(range(32, 127)))
_NUMBER_BYTES = b"0123456789+-.eE "


@dataclasses.dataclass(frozen=True)
class Entry:
    """One word of a file, and its numbers, not yet parsed."""

    word: str
    raw: bytes
    number: int  # of its line; in a binary file, of the word


class WordVectors:
    """A file of word vectors.

    Args:
      path: the file.
      leaf: dotted path of the leaf that names it.

    Raises:
      ConfigError: there is no such file, or it does not begin with a vector.
    """

    def __init__(self, path: str, *, leaf: str) -> None:
        self.name, self._leaf = path, leaf
        self._file = expand_path(path, leaf=leaf)
        try:
            self._plain = plain_copy(self._file, path=leaf)
            with self._plain.open("rb") as file:
                if file.read(len(BOM)) != BOM:
                    file.seek(0)
                start = file.tell()
                first = file.readline(1 << 20)
                following = file.read(1 << 16)
        except OSError as error:
            why = f"cannot be read: {error.strerror}"
            raise ConfigError(f"{leaf} = {path!r}: {why}") from error
        self._header, self._binary = _HEADER.fullmatch(first), False
        self._start = start + (self._header.end() if self._header else 0)
        self._warned = False
        if self._header:
            self.dim = int(self._header[2])
            numbers = following.partition(b" ")[2]
            self._binary = not _TEXT.issuperset(numbers[: 2 * self.dim])
            is_valid = bool(numbers)
        else:
            parts = first.split()[1:]
            self.dim, is_valid = len(parts), all(map(_is_number, parts))
        if self.dim < 1 or not is_valid:
            fault = find_fault(self._file, path=leaf)
            why = (
                "must begin with a word and numbers, in the format of GloVe or word2vec"
                f"{'; it ' if fault else ''}{fault}"
            )
            raise ConfigError(f"{leaf} = {path!r}: {why}")

    def words(self) -> Iterator[str]:
        """Yield the words, in the order of the file."""
        return (entry.word for entry in self._entries())

    def select(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the wanted words with their vectors, float32 (dim,).

        Raises:
          UserError: FILE:LINE of an entry that is not like the first ones.
        """
        for entry in self._entries():
            if wanted(entry.word):
                yield entry.word, self._parse_numbers(entry)

    def fingerprint(self) -> str:
        """Hash the file."""
        with read_errors(self._file, path=self._leaf), self._plain.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def check_dim(self, dim: int) -> None:
        """Raise unless the vectors have the dim of a model.

        Raises:
          ConfigError: they have not.
        """
        if self.dim != dim:
            raise ConfigError(
                f"{self._leaf}: {self._file}:1: vectors of {self.dim} numbers, but "
                f"config.model.dim = {dim}"
            )

    def check(self) -> None:
        """Check all of the file, in a few seconds for each gigabyte.

        Numbers in text are not parsed unless they hold an unusual character.

        Raises:
          UserError: as of `select`, if every word were wanted.
        """
        for entry in self._entries():
            if self._binary or entry.raw.translate(None, _NUMBER_BYTES):
                self._parse_numbers(entry)

    def _entries(self) -> Iterator[Entry]:
        return self._binary_entries() if self._binary else self._text_entries()

    def _text_entries(self) -> Iterator[Entry]:
        first, number = 1 + bool(self._header), 0
        with self._plain.open("rb") as file:
            file.seek(self._start)
            for number, line in enumerate(file, first):
                line = line.rstrip(b" \t\r\n").replace(b"\t", b" ")
                extra = line.count(b" ") - self.dim
                word, _, raw = line.partition(b" ")
                if extra:
                    word, raw = self._split_spaced_word(line, extra, number)
                yield Entry(self._decode(word, number), raw, number)
        if self._header and (count := number + 1 - first) < int(self._header[1]):
            why = f"the file ends after {count} of {int(self._header[1])} words"
            raise self._make_error(number, why)

    def _split_spaced_word(
        self, line: bytes, extra: int, number: int
    ) -> tuple[bytes, bytes]:
        """Split a line of GloVe whose word has spaces in it into word and numbers."""
        parts = line.split(b" ")
        if extra < 0 or any(map(_is_number, parts[1 : 1 + extra])):
            why = f"{len(parts) - 1} numbers, where others have {self.dim}"
            raise self._make_error(number, why)
        return b" ".join(parts[: 1 + extra]), b" ".join(parts[1 + extra :])

    def _binary_entries(self) -> Iterator[Entry]:
        assert self._header is not None
        size, start = 4 * self.dim, self._start
        count = int(self._header[1])
        with (
            self._plain.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            for number in range(1, count + 1):
                space = data.find(b" ", start)
                stop = space + 1 + size
                if space < 0 or stop > len(data):
                    why = f"the file ends within this word of {count}"
                    raise self._make_error(number, why)
                word = self._decode(data[start:space].lstrip(b"\n"), number)
                yield Entry(word, data[space + 1 : stop], number)
                start = stop

    def _decode(self, word: bytes, number: int) -> str:
        """Return a word; one that is not UTF-8 has U+FFFD in it, and the first is told.

        Published files have such words, which no tokenizer finds in a text.
        """
        try:
            return word.decode()
        except UnicodeDecodeError:
            if not self._warned:
                why = "is not UTF-8, nor may others be; read with U+FFFD"
                log.warning("%s", self._make_error(number, f"the word {word!r} {why}"))
                self._warned = True
            return word.decode(errors="replace")

    def _parse_numbers(self, entry: Entry) -> np.ndarray:
        if self._binary:
            vector = np.frombuffer(entry.raw, "<f4").astype(np.float32)
        else:
            try:
                vector = np.array(entry.raw.split(b" "), np.float32)
            except ValueError as error:
                why = f"{entry.word!r} is followed by text that is not a number"
                raise self._make_error(entry.number, why) from error
        if not np.isfinite(vector).all():
            why = f"{entry.word!r} has a number that is not finite"
            raise self._make_error(entry.number, why)
        return vector

    def _make_error(self, number: int, why: str) -> UserError:
        """Return the error of a line, or of a word of a binary file."""
        place = f" word {number}" if self._binary else number
        return UserError(f"{self._leaf}: {self._file}:{place}: {why}")


def _is_number(part: bytes) -> bool:
    try:
        float(part)
    except ValueError:
        return False
    return True
