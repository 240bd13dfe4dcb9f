"""The directory of a saved tokenizer: its files, then a manifest."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmjax.errors import UserError
from lmjax.fileio import read_json, write_bytes
from lmjax.storage.paths import open_path

MANIFEST = "lmjax_tokenizer.json"


def read_manifest(directory: str | Path) -> dict[str, Any] | None:
    """Return the manifest of a saved tokenizer; None if there is none.

    Raises:
      UserError: it cannot be read or is damaged.
    """
    file = open_path(directory) / MANIFEST
    return read_json(file) if file.exists() else None


def write_manifest(directory: str | Path, **fields: Any) -> None:
    """Write the manifest, which shows the other files to be complete."""
    text = json.dumps({"version": 1, **fields}, indent=2) + "\n"
    write_files(directory, {MANIFEST: text.encode()})


def write_files(directory: str | Path, files: Mapping[str, bytes]) -> None:
    """Write files by their names, each atomically."""
    open_path(directory).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_bytes(open_path(directory) / name, content)


def read_file(file: Path) -> bytes:
    """Return the content of a file.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
