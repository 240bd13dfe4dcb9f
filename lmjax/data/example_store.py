"""Encoded examples on disk: ragged columns of int32, memory-mapped, built once.

NAME.values.npy  the column's numbers, one example after another
NAME.starts.npy  int64, where each example's begin, and the end
manifest.json    written last; without it there is no store
"""

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.config import ConfigError
from lmjax.data.directory import locked, one_line_errors
from lmjax.data.documents import digest
from lmjax.data.examples import Examples
from lmjax.data.features import Features, Row
from lmjax.data.token_store import MANIFEST
from lmjax.data.tokenizer import Tokenizer

VERSION = 1
_AT_ONCE = 1024  # examples that are encoded together

_log = logging.getLogger(__name__)


class ExampleStore:
    """A finished store, open for reading.

    Raises:
      FileNotFoundError: there is no manifest.
      ValueError: it is not the manifest of such a store.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        manifest = json.loads((self.directory / MANIFEST).read_text())
        try:
            if manifest["examples"] != VERSION:
                raise ValueError(f"version {manifest['examples']}, not {VERSION}")
            self.made_from: str = manifest["made_from"]
            self.num_truncated: int = manifest["num_truncated"]
            self.num_skipped: int = manifest["num_skipped"]
            names: list[str] = manifest["columns"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{MANIFEST} is not one of examples: {error!r}") from error
        self._values = {n: self._load(f"{n}.values.npy") for n in names}
        self._starts = {n: self._load(f"{n}.starts.npy") for n in names}

    def __len__(self) -> int:
        return len(self._starts["tokens"]) - 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return the columns of one example."""
        return {
            name: self._values[name][starts[index] : starts[index + 1]]
            for name, starts in self._starts.items()
        }

    @property
    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each example."""
        return np.diff(self._starts["tokens"])

    @property
    def num_tokens(self) -> int:
        """Count the tokens of all examples."""
        return int(self._starts["tokens"][-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return tokens [start, stop) of all examples, one after another, int32."""
        return np.asarray(self._values["tokens"][start:stop])

    def describe(self) -> str:
        """Return what there is, for people to read."""
        return (
            f"{len(self):,} examples, {self.num_tokens:,} tokens; "
            f"{self.num_truncated:,} cut to fit, {self.num_skipped:,} left out"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return ExampleStore, (self.directory,)  # memory maps would travel as copies

    def _load(self, name: str) -> np.ndarray:
        return np.load(self.directory / name, mmap_mode="r")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LabelledPart:
    """Examples, and what a task makes of them; to a tokenizer, documents."""

    examples: Examples
    features: Features
    on_bad_example: str

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int, /) -> str:
        """Return the text of one example; of one that cannot be read "" if skipped."""
        try:
            return "\n".join(self.features.texts(self.examples[index]))
        except ConfigError as error:
            if self.on_bad_example == "skip":
                return ""
            raise placed(error, self.examples.where(index)) from error

    def size(self, index: int, /) -> int:
        """Return the bytes of one example's text."""
        return len(self[index].encode())

    def fingerprint(self) -> str:
        """Hash the examples, and what decides the rows."""
        identity = self.features.identity()
        return digest(self.examples.fingerprint(), identity, self.on_bad_example)

    def identity(self, tokenizer: Tokenizer) -> str:
        """Hash what decides the rows of a store."""
        return digest(VERSION, self.fingerprint(), tokenizer.fingerprint())


def build_store(
    directory: str | Path, *, part: LabelledPart, tokenizer: Tokenizer, label: str
) -> ExampleStore:
    """Return the store of some examples: the one that is there, or a new one.

    Args:
      directory: where the store is, or will be.
      part: what it holds.
      tokenizer: what its tokens mean.
      label: what to call it.

    Raises:
      ConfigError: an example cannot be used (with `on_bad_example="error"`), or none
        can, or the directory cannot be written.
    """
    directory = Path(directory)
    with one_line_errors(directory), locked(directory):
        store = _open_if_current(directory, part.identity(tokenizer))
        if store is None:
            (directory / MANIFEST).unlink(missing_ok=True)
            _write(directory, part, tokenizer)
            store = ExampleStore(directory)
    _log.info("%s: %s", label, store.describe())
    return store


def encoded(part: LabelledPart, tokenizer: Tokenizer, bad: list[str]) -> Iterator[Row]:
    """Yield the rows of examples; what is wrong with those left out goes to `bad`."""
    for first in range(0, len(part), _AT_ONCE):
        readings = []
        for i in range(first, min(first + _AT_ONCE, len(part))):
            try:
                readings.append(part.features.read(part.examples[i]))
            except ConfigError as error:
                told = placed(error, part.examples.where(i))
                if part.on_bad_example == "error":
                    hint = "config.data.on_bad_example='skip' leaves such examples out"
                    raise ConfigError(f"{told} ({hint})") from error
                bad.append(str(told))
        yield from part.features.encode(readings, tokenizer)


def placed(error: ConfigError, where: str) -> ConfigError:
    """Return the error with the example's place before it, if it is not yet there."""
    text = str(error)
    return ConfigError(text if text.startswith(where) else f"{where}: {text}")


def _write(directory: Path, part: LabelledPart, tokenizer: Tokenizer) -> None:
    bad: list[str] = []
    columns: dict[str, list[np.ndarray]] = {}
    num_truncated = 0
    for row in encoded(part, tokenizer, bad):
        num_truncated += row.truncated
        for name, values in row.columns.items():
            columns.setdefault(name, []).append(values)
    if bad:
        _log.warning("left out %d of %d examples: %s", len(bad), len(part), bad[0])
    if not columns:
        raise ConfigError(f"no example can be used; the first: {bad[0]}")
    for name, arrays in columns.items():
        _save(directory, name, arrays)
    manifest = {
        "examples": VERSION,
        "made_from": part.identity(tokenizer),
        "num_truncated": num_truncated,
        "num_skipped": len(bad),
        "columns": [*columns],
    }
    _write_whole(directory / MANIFEST, manifest)


def _save(directory: Path, name: str, values: Sequence[np.ndarray]) -> None:
    starts = np.cumsum([0, *map(len, values)], dtype=np.int64)
    joined = np.concatenate(values).astype(np.int32)
    for file, array in ((f"{name}.starts.npy", starts), (f"{name}.values.npy", joined)):
        with (directory / f"{file}.partial").open("wb") as out:
            np.save(out, array)
        (directory / f"{file}.partial").replace(directory / file)


def _write_whole(file: Path, manifest: Mapping[str, Any]) -> None:
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(json.dumps(manifest, indent=1) + "\n")
    partial.replace(file)


def _open_if_current(directory: Path, made_from: str) -> ExampleStore | None:
    try:
        store = ExampleStore(directory)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("%s: damaged, will be built again: %s", directory, error)
        return None
    return store if store.made_from == made_from else None


def is_one(directory: str | Path) -> bool:
    """Return whether a directory holds examples, not a stream of tokens."""
    try:
        return "examples" in json.loads((Path(directory) / MANIFEST).read_text())
    except (OSError, ValueError, TypeError):
        return False
