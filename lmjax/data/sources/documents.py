"""What a source gives: documents, each one a string of text, read at random."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lmjax.errors import ConfigError


class Documents(Protocol):
    """Documents in a fixed order, any of which can be read at any time."""

    def __len__(self) -> int:
        """Return the number of documents."""

    def __getitem__(self, index: int, /) -> str:
        """Return the text of one document."""

    def size(self, index: int, /) -> int:
        """Return the bytes of one document's text, without decoding where it can."""

    def fingerprint(self) -> str:
        """Return a hash that changes when the documents do; cheap to compute."""


class HeldOut:
    """Every n-th document of others, or all but those."""

    def __init__(self, documents: Documents, *, every: int, held_out: bool) -> None:
        self._documents = documents
        self._every = every
        self._held_out = held_out

    def __len__(self) -> int:
        num_held_out = -(-len(self._documents) // self._every)
        return num_held_out if self._held_out else len(self._documents) - num_held_out

    def __getitem__(self, index: int, /) -> str:
        return self._documents[self._place(index)]

    def size(self, index: int, /) -> int:
        """Return the bytes of one document's text."""
        return self._documents.size(self._place(index))

    def fingerprint(self) -> str:
        """Hash the whole, and which part this is."""
        return digest(self._documents.fingerprint(), self._every, self._held_out)

    def _place(self, index: int) -> int:
        """Return where among all a document stands."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._held_out:
            return index * self._every
        return index + index // (self._every - 1) + 1


class Checked:
    """Documents that are looked at once, when they are first counted.

    Until then nothing is read: a store that is there is found by the fingerprint.

    Args:
      documents: those of one split.
      none: what to say if there are none.
      no_text: what to say if all are empty.
    """

    def __init__(self, documents: Documents, *, none: str, no_text: str) -> None:
        self._documents = documents
        self._none = none
        self._no_text = no_text
        self._count = -1

    def __len__(self) -> int:
        if self._count < 0:
            count = len(self._documents)
            if not count:
                raise ConfigError(self._none)
            if not any(self._documents[i] for i in range(count)):  # ends at the first
                raise ConfigError(self._no_text)
            self._count = count
        return self._count

    def __getitem__(self, index: int, /) -> str:
        return self._documents[index]

    def size(self, index: int, /) -> int:
        """Return the bytes of one document's text."""
        return self._documents.size(index)

    def fingerprint(self) -> str:
        """Hash the documents."""
        return self._documents.fingerprint()


def estimate_bytes(documents: Documents, *, num_samples: int = 1024) -> int:
    """Estimate the bytes of all documents from some spread evenly over them."""
    count = len(documents)
    sampled = np.unique(np.linspace(0, count - 1, num_samples).astype(np.int64))
    total = sum(documents.size(int(i)) for i in sampled)
    return round(total * count / len(sampled))


def expanded(path: str, *, leaf: str) -> Path:
    """Return the path that a leaf of the config names, which may begin with a home.

    Raises:
      ConfigError: it is nobody's home, or no path.
    """
    try:
        home = Path(path).expanduser()
    except RuntimeError as error:
        user = path.partition("/")[0]
        raise ConfigError(f"{leaf} = {path!r}: there is no user {user}") from error
    if "\0" in path:
        raise ConfigError(f"{leaf} = {path!r}: no path has such a character")
    return home


@contextlib.contextmanager
def reading(file: Path, *, path: str) -> Iterator[None]:
    """Name the file that the system does not let us read, and its place in the config.

    Raises:
      ConfigError: in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path}: cannot read {file}: {error.strerror}") from error


def chunks(text: str, *, size: int) -> Iterator[str]:
    """Cut a text into parts of about `size` characters; "" is one part.

    A part ends at a line end where there is one before it is twice as long; else at a
    space or tab, and in what has none, anywhere. Only the text decides.
    """
    start = 0
    while len(text) - start > 2 * size:
        low, high = start + size, start + 2 * size
        space = max(text.rfind(mark, low, high) for mark in " \t")
        stop = text.find("\n", low, high) + 1 or space + 1 or high
        yield text[start:stop]
        start = stop
    yield text[start:]


def decode(raw: bytes, *, where: Callable[[], str], on_bad_text: str, path: str) -> str:
    """Decode UTF-8.

    Args:
      raw: the bytes.
      where: names their place, for an error.
      on_bad_text: "error", or "replace" with U+FFFD.
      path: where the source stands in the config.

    Raises:
      ConfigError: the bytes are not UTF-8.
    """
    try:
        return raw.decode("utf-8", "strict" if on_bad_text == "error" else "replace")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{where()}: not UTF-8 at byte {error.start} ({raw[error.start]:#04x}); to "
            f"read such bytes as U+FFFD set {path}.on_bad_text='replace'"
        ) from error


def digest(*parts: Any) -> str:
    """Hash JSON values."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
