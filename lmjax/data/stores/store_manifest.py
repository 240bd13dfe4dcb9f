"""The manifest of a store: written last, and so the proof that the store is complete.

It holds the fingerprint of everything that decides the content of the store, and a
checksum of each file and of itself. A store is reused while the fingerprint is the
same. The manifests of earlier versions have no checksums.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lmjax.fileio import has_intact_seal, read_json, seal, write_json
from lmjax.storage.paths import open_path

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


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest of a store.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged.
    """
    file = directory / MANIFEST
    if not file.exists():
        raise FileNotFoundError(file)
    manifest = read_json(file)
    has_intact_seal(manifest, file=file)
    return manifest


def write_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a store, with a checksum of itself.

    Raises:
      UserError: it cannot be written.
    """
    write_json(directory / MANIFEST, seal(manifest), indent=1)


def parse_checksums(manifest: Mapping[str, Any]) -> dict[str, int]:
    """Return the CRC-32 of files by their names; none in those of earlier versions."""
    checksums = manifest.get("checksums", {})
    if not isinstance(checksums, dict):
        raise ValueError(f"{MANIFEST}: checksums: not an object")
    return checksums


def read_fingerprint(directory: str | Path) -> str:
    """Return the fingerprint of the store in a directory; "" if there is none."""
    try:
        return str(read_manifest(open_path(directory))["made_from"])
    except (OSError, ValueError, KeyError):
        return ""


def is_example_store(directory: str | Path) -> bool:
    """Return whether a directory holds a store of examples, not of running text."""
    try:
        return "examples" in read_manifest(open_path(directory))
    except (OSError, ValueError):
        return False
