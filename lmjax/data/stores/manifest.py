"""Which stores a run reads, noted in its workdir, so that it stands alone."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmjax.data.stores import example_store
from lmjax.data.stores.example_store import ExampleStore
from lmjax.data.stores.token_store import TokenStore
from lmjax.errors import ConfigError
from lmjax.fileio import lock, write_errors, write_json

_NOTE = "stores.json"


def note(workdir: str | Path, stores: Mapping[str, Sequence[Any]]) -> None:
    """Note the directories of the stores of each split, from WORKDIR/store on."""
    directory = Path(workdir) / "store"
    noted = {
        split: [_name(store.directory, directory) for store in parts]
        for split, parts in stores.items()
    }
    with write_errors(directory), lock(directory):
        write_json(directory / _NOTE, noted, indent=1)


def open_held_out(workdir: str | Path) -> dict[str, list[Any]] | None:
    """Open the stores of the valid and the test split that a run has; None: no note.

    Raises:
      ConfigError: the note or a store is missing or damaged.
    """
    directory = Path(workdir) / "store"
    try:
        noted = json.loads((directory / _NOTE).read_text())
        return {
            split: [_open(directory / name) for name in noted[split]]
            for split in ("valid", "test")
            if split in noted
        }
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{directory / _NOTE}: cannot be used: {error}") from error


def _open(directory: Path) -> Any:
    try:
        kind = ExampleStore if example_store.is_example_store(directory) else TokenStore
        return kind(directory)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{directory}: cannot be read: {error}") from error


def _name(store: Path, directory: Path) -> str:
    """Return a store's place within `directory`, or where it is on the machine."""
    return store.name if store.parent == directory else str(store.absolute())
