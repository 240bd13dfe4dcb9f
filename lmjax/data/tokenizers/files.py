"""The directory that a tokenizer is saved in: its files, then a manifest."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmjax.errors import ConfigError

MANIFEST = "lmjax_tokenizer.json"


def read_manifest(directory: str | Path) -> dict[str, Any] | None:
    """Return what `save` noted; None where no tokenizer is."""
    file = Path(directory) / MANIFEST
    try:
        manifest = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error
    if not isinstance(manifest, dict):
        raise ConfigError(f"{file}: cannot be used: holds {type(manifest).__name__}")
    return manifest


def write_manifest(directory: str | Path, **fields: Any) -> None:
    """Write the manifest, which makes the files beside it count."""
    text = json.dumps({"version": 1, **fields}, indent=2) + "\n"
    write_files(directory, {MANIFEST: text.encode()})


def write_files(directory: str | Path, files: Mapping[str, bytes]) -> None:
    """Write files, each of them whole or not at all."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        partial = Path(directory) / f"{name}.partial"
        partial.write_bytes(content)
        partial.replace(Path(directory) / name)


def read_file(file: Path) -> bytes:
    """Return the content of a file.

    Raises:
      ConfigError: it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
