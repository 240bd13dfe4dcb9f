"""The manifest of a store: written last, and so the proof that the store is complete.

It holds the fingerprint of everything that decides the content of the store. A store
is reused while that fingerprint is the same.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

MANIFEST = "manifest.json"

_log = logging.getLogger(__name__)


class _Store(Protocol):
    fingerprint: str


AnyStore = TypeVar("AnyStore", bound=_Store)


def open_if_current(
    store: Callable[[Path], AnyStore], directory: Path, fingerprint: str
) -> AnyStore | None:
    """Open the store of a directory if it has this fingerprint; warn if it is damaged.

    Args:
      store: the class of the store.
      directory: of the store.
      fingerprint: the one that the store must have.
    """
    try:
        opened = store(directory)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("%s: damaged, will be built again: %s", directory, error)
        return None
    return opened if opened.fingerprint == fingerprint else None


def read_fingerprint(directory: str | Path) -> str:
    """Return the fingerprint of the store in a directory; "" if there is none."""
    try:
        return str(json.loads((Path(directory) / MANIFEST).read_text())["made_from"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def is_example_store(directory: str | Path) -> bool:
    """Return whether a directory holds a store of examples, not of running text."""
    try:
        return "examples" in json.loads((Path(directory) / MANIFEST).read_text())
    except (OSError, ValueError, TypeError):
        return False
