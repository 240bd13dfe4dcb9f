"""The directory that a tokenizer is saved in: its files, then a manifest."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmjax.errors import ConfigError
from lmjax.fileio import read_json, write_bytes

MANIFEST = "lmjax_tokenizer.json"


def read_manifest(directory: str | Path) -> dict[str, Any] | None:
    """Return what `save` noted; None where no tokenizer is."""
    file = Path(directory) / MANIFEST
    return read_json(file) if file.exists() else None


def write_manifest(directory: str | Path, **fields: Any) -> None:
    """Write the manifest, which makes the files beside it count."""
    text = json.dumps({"version": 1, **fields}, indent=2) + "\n"
    write_files(directory, {MANIFEST: text.encode()})


def write_files(directory: str | Path, files: Mapping[str, bytes]) -> None:
    """Write files, each of them whole or not at all."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_bytes(Path(directory) / name, content)


def read_file(file: Path) -> bytes:
    """Return the content of a file.

    Raises:
      ConfigError: it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
