"""The stores of a run, listed in WORKDIR/store/stores.json, relative where possible.

With this list the held-out splits of a workdir can be evaluated without its corpus.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmjax.data.stores.example_store import ExampleStore
from lmjax.data.stores.store_manifest import is_example_store
from lmjax.data.stores.token_store import TokenStore
from lmjax.errors import UserError
from lmjax.fileio import lock, write_errors, write_json
from lmjax.storage.paths import is_remote, open_path

_NOTE = "stores.json"


def write_run_stores(workdir: str | Path, stores: Mapping[str, Sequence[Any]]) -> None:
    """Write the list of the stores of each split."""
    directory = open_path(workdir) / "store"
    names = {
        split: [_name_store(store.directory, directory) for store in opened]
        for split, opened in stores.items()
    }
    with write_errors(directory), lock(directory):
        write_json(directory / _NOTE, names, indent=1)


def open_held_out_stores(workdir: str | Path) -> dict[str, list[Any]] | None:
    """Open the stores of the valid and the test split of a run, those it has.

    Returns:
      None where the workdir has no list of stores.

    Raises:
      UserError: the list or a store is missing or damaged.
    """
    directory = open_path(workdir) / "store"
    try:
        names = json.loads((directory / _NOTE).read_text())
        return {
            split: [_open_store(_join(directory, name)) for name in names[split]]
            for split in ("valid", "test")
            if split in names
        }
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{directory / _NOTE}: cannot be used: {error}") from error


def copy_held_out_stores(source: str | Path, target: str | Path) -> None:
    """Copy the held-out stores of a run, those it has, into another workdir.

    Stores that lie outside of `source` are shared.
    """
    before, after = open_path(source) / "store", open_path(target) / "store"
    copied: dict[str, list[Any]] = {}
    for split, stores in (open_held_out_stores(source) or {}).items():
        for store in stores:
            directory = store.directory
            if directory.parent == before and not is_remote(directory):
                directory = after / directory.name
                shutil.copytree(store.directory, directory, dirs_exist_ok=True)
            copied.setdefault(split, []).append(_open_store(directory))
    if copied:
        write_run_stores(target, copied)


def _open_store(directory: Path) -> Any:
    try:
        kind = ExampleStore if is_example_store(directory) else TokenStore
        return kind(directory)
    except (OSError, ValueError) as error:
        raise UserError(f"{directory}: cannot be read: {error}") from error


def _join(directory: Path, name: str) -> Path:
    """Return a store inside `directory`, or at an absolute path or address."""
    named = open_path(name)
    remote = is_remote(named)
    return named if remote else directory / name


def _name_store(store: Path, directory: Path) -> str:
    """Return the name of a store inside `directory`, or its absolute path."""
    return store.name if store.parent == directory else str(store.absolute())
