"""Files of word vectors, read in a stream: only what is asked for is made numbers.

GloVe's text (Pennington et al. 2014) has a word and its numbers on each line;
word2vec's (Mikolov et al. 2013) the same after a line of two counts, as text or with
the numbers as float32. Which it is shows in the first bytes.
"""

import dataclasses
import hashlib
import mmap
import re
from collections.abc import Callable, Iterator

import numpy as np

from lmjax.data.sources.documents import expand_path, read_errors
from lmjax.errors import ConfigError

_HEADER = re.compile(rb"([0-9]{1,18}) ([0-9]{1,9}) *\r?\n")
_TEXT = frozenset(b"\t\n\r" + bytes(range(32, 127)))
_OF_NUMBERS = b"0123456789+-.eE "


@dataclasses.dataclass(frozen=True)
class Entry:
    """One word of a file, and its numbers as they are written there."""

    word: str
    raw: bytes
    number: int  # of its line, or among the words of a binary file


class WordVectors:
    """A file of word vectors.

    Args:
      path: the file.
      leaf: what the config calls it.

    Raises:
      ConfigError: there is no such file, or it begins with no vector.
    """

    def __init__(self, path: str, *, leaf: str) -> None:
        self.name, self._leaf = path, leaf
        self._file = expand_path(path, leaf=leaf)
        try:
            with self._file.open("rb") as file:
                first = file.readline(1 << 20)
                following = file.read(1 << 16)
        except OSError as error:
            why = f"cannot be read: {error.strerror}"
            raise ConfigError(f"{leaf} = {path!r}: {why}") from error
        self._header, self._binary = _HEADER.fullmatch(first), False
        if self._header:
            self.dim = int(self._header[2])
            numbers = following.partition(b" ")[2]
            self._binary = not _TEXT.issuperset(numbers[: 2 * self.dim])
            right = bool(numbers)
        else:
            parts = first.split()[1:]
            self.dim, right = len(parts), all(map(_is_number, parts))
        if self.dim < 1 or not right:
            told = "begins with no word and numbers after it, as GloVe's and word2vec's"
            raise ConfigError(f"{leaf} = {path!r}: {told} files do")

    def words(self) -> Iterator[str]:
        """Yield the words, in the order of the file."""
        return (entry.word for entry in self._entries())

    def select(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the wanted words with their vectors, float32 (dim,).

        Raises:
          ConfigError: an entry is not what the first ones are; its line is named.
        """
        for entry in self._entries():
            if wanted(entry.word):
                yield entry.word, self._numbers(entry)

    def fingerprint(self) -> str:
        """Hash the file."""
        with read_errors(self._file, path=self._leaf), self._file.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def check_dim(self, dim: int) -> None:
        """Raise if the vectors are not as wide as a model's.

        Raises:
          ConfigError: both widths are named.
        """
        if self.dim != dim:
            raise ConfigError(
                f"{self._leaf}: {self._file}:1: vectors of {self.dim} numbers, but "
                f"config.model.dim = {dim}"
            )

    def check(self) -> None:
        """Look through the file, which takes some seconds a gigabyte.

        Raises:
          ConfigError: as of `select`, whatever is wanted; but of numbers in a text only
            what they are spelled with is looked at.
        """
        for entry in self._entries():
            if self._binary or entry.raw.translate(None, _OF_NUMBERS):
                self._numbers(entry)

    def _entries(self) -> Iterator[Entry]:
        return self._entries_of_binary() if self._binary else self._entries_of_text()

    def _entries_of_text(self) -> Iterator[Entry]:
        first, number = 1 + bool(self._header), 0
        with self._file.open("rb") as file:
            file.seek(self._header.end() if self._header else 0)
            for number, line in enumerate(file, first):
                line = line.rstrip(b" \t\r\n").replace(b"\t", b" ")
                more = line.count(b" ") - self.dim
                word, _, raw = line.partition(b" ")
                if more:
                    word, raw = self._with_spaces(line, more, number)
                yield Entry(word.decode(errors="replace"), raw, number)
        if self._header and (found := number + 1 - first) < int(self._header[1]):
            told = f"the file ends after {found} of {int(self._header[1])} words"
            raise self._bad(number, told)

    def _with_spaces(self, line: bytes, more: int, number: int) -> tuple[bytes, bytes]:
        """Return a word with spaces in it, as some of GloVe's have, and the rest."""
        parts = line.split(b" ")
        if more < 0 or any(map(_is_number, parts[1 : 1 + more])):
            told = f"{len(parts) - 1} numbers, where others have {self.dim}"
            raise self._bad(number, told)
        return b" ".join(parts[: 1 + more]), b" ".join(parts[1 + more :])

    def _entries_of_binary(self) -> Iterator[Entry]:
        assert self._header is not None
        size, start = 4 * self.dim, self._header.end()
        count = int(self._header[1])
        with (
            self._file.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            for number in range(1, count + 1):
                space = data.find(b" ", start)
                stop = space + 1 + size
                if space < 0 or stop > len(data):
                    told = f"the file ends within this word of {count}"
                    raise self._bad(number, told)
                word = data[start:space].lstrip(b"\n").decode(errors="replace")
                yield Entry(word, data[space + 1 : stop], number)
                start = stop

    def _numbers(self, entry: Entry) -> np.ndarray:
        if self._binary:
            vector = np.frombuffer(entry.raw, "<f4").astype(np.float32)
        else:
            try:
                vector = np.array(entry.raw.split(b" "), np.float32)
            except ValueError as error:
                told = f"{entry.word!r} is followed by what is no number"
                raise self._bad(entry.number, told) from error
        if not np.isfinite(vector).all():
            raise self._bad(entry.number, f"{entry.word!r} has a number not finite")
        return vector

    def _bad(self, number: int, why: str) -> ConfigError:
        """Return the error of one line, or of one word of a binary file."""
        place = f" word {number}" if self._binary else number
        return ConfigError(f"{self._leaf}: {self._file}:{place}: {why}")


def _is_number(part: bytes) -> bool:
    try:
        float(part)
    except ValueError:
        return False
    return True
