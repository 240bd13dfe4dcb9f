"""Documents: texts in a fixed order, read at random. Sources open them."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lmjax.errors import ConfigError
from lmjax.storage.paths import open_path

_MAX_SAMPLES = 1024  # documents from which a size is estimated


class Documents(Protocol):
    """Documents in a fixed order, any of which can be read at any time."""

    def __len__(self) -> int:
        """Return the number of documents."""

    def __getitem__(self, index: int, /) -> str:
        """Return the text of one document."""

    def size(self, index: int, /) -> int:
        """Return the bytes of one document's text, if possible without decoding it."""

    def fingerprint(self) -> str:
        """Return a hash of the documents; cheap to compute."""


class HoldoutSplit:
    """Every n-th document of a source, or all others.

    Args:
      documents: of the whole source.
      every: n.
      held_out: every n-th, counted from the first; else the others.
    """

    def __init__(self, documents: Documents, *, every: int, held_out: bool) -> None:
        self._documents = documents
        self._every = every
        self._held_out = held_out

    def __len__(self) -> int:
        num_held_out = -(-len(self._documents) // self._every)
        return num_held_out if self._held_out else len(self._documents) - num_held_out

    @property
    def num_files(self) -> int:
        """Count the files, 0 where there are none."""
        return getattr(self._documents, "num_files", 0)

    def __getitem__(self, index: int, /) -> str:
        return self._documents[self._whole_index(index)]

    def size(self, index: int, /) -> int:
        """Return the bytes of one document's text."""
        return self._documents.size(self._whole_index(index))

    def fingerprint(self) -> str:
        """Hash the whole source and the choice of documents."""
        return hash_json(self._documents.fingerprint(), self._every, self._held_out)

    def _whole_index(self, index: int) -> int:
        """Return the index of a document in the whole source."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._held_out:
            return index * self._every
        return index + index // (self._every - 1) + 1


class NonEmptyDocuments:
    """Documents that must hold some text, checked when they are first counted.

    Nothing is read before that: an existing store is found by the fingerprint alone.

    Args:
      documents: of one split.
      none: the error message if there are none.
      no_text: the error message if all are empty.
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
            if not any(self._documents[i] for i in range(count)):  # stops at the first
                raise ConfigError(self._no_text)
            self._count = count
        return self._count

    @property
    def num_files(self) -> int:
        """Count the files, 0 where there are none."""
        return getattr(self._documents, "num_files", 0)

    def __getitem__(self, index: int, /) -> str:
        return self._documents[index]

    def size(self, index: int, /) -> int:
        """Return the bytes of one document's text."""
        return self._documents.size(index)

    def fingerprint(self) -> str:
        """Hash the documents."""
        return self._documents.fingerprint()


def estimate_bytes(documents: Documents) -> int:
    """Estimate the bytes of all documents from evenly spaced samples."""
    count = len(documents)
    sampled = np.unique(np.linspace(0, count - 1, _MAX_SAMPLES).astype(np.int64))
    total = sum(documents.size(int(i)) for i in sampled)
    return round(total * count / len(sampled))


def expand_path(path: str, *, leaf: str) -> Path:
    """Return the path in a leaf of the config, with `~` and `~USER` expanded.

    Raises:
      ConfigError: there is no such user, or the text is no path.
    """
    try:
        home = open_path(path).expanduser()
    except RuntimeError as error:
        user = path.partition("/")[0]
        raise ConfigError(f"{leaf} = {path!r}: there is no user {user}") from error
    if "\0" in path:
        raise ConfigError(f"{leaf} = {path!r}: a path cannot hold the character \\0")
    return home


def split_into_chunks(text: str, *, size: int) -> Iterator[str]:
    """Cut a text into chunks of `size` to 2 * `size` characters; "" is one chunk.

    The last one may be shorter. A chunk ends at a line end if there is one in that
    range, else at a space or tab, else anywhere. Only the text decides.
    """
    start = 0
    while len(text) - start > 2 * size:
        low, high = start + size, start + 2 * size
        space = max(text.rfind(mark, low, high) for mark in " \t")
        stop = text.find("\n", low, high) + 1 or space + 1 or high
        yield text[start:stop]
        start = stop
    yield text[start:]


def hash_json(*parts: Any) -> str:
    """Hash JSON values."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
