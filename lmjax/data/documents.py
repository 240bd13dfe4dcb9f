"""What a source gives: documents, each one a string of text, read at random."""

import hashlib
import json
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from lmjax.config import ConfigError


class Documents(Protocol):
    """Documents in a fixed order, any of which can be read at any time."""

    def __len__(self) -> int:
        """Return the number of documents."""

    def __getitem__(self, index: int, /) -> str:
        """Return the text of one document."""

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
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._held_out:
            return self._documents[index * self._every]
        return self._documents[index + index // (self._every - 1) + 1]

    def fingerprint(self) -> str:
        """Hash the whole, and which part this is."""
        return digest(self._documents.fingerprint(), self._every, self._held_out)


def estimate_bytes(documents: Documents, *, num_samples: int = 1024) -> int:
    """Estimate the bytes of all documents from some spread evenly over them."""
    count = len(documents)
    sampled = np.unique(np.linspace(0, count - 1, num_samples).astype(np.int64))
    total = sum(len(documents[int(i)].encode()) for i in sampled)
    return round(total * count / len(sampled))


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
