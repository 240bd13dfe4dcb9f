"""Encoded examples on disk: ragged columns of int32, memory-mapped, built once.

NAME.values.npy  the column's numbers, one row after another
NAME.starts.npy  int64, where each row's begin, and the end
size.npy         int32, the length of the shortest batch that holds a row
examples.jsonl   the examples, where evaluation compares predictions with them
rows.npy         int32 (N, 2), together with those: how many rows of each of N examples
                 are in the store, one after another, and how many it was encoded as
manifest.json    written last; without it there is no store
"""

import contextlib
import functools
import json
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.data.features.dataset import VERSION, ExamplePart
from lmjax.data.features.features import Row
from lmjax.data.formats.examples import (
    Example,
    Examples,
    JsonExamples,
    add_location,
    explain_bad_example,
)
from lmjax.data.stores.store_manifest import (
    MANIFEST,
    open_if_current,
    parse_checksums,
    read_manifest,
    write_manifest,
)
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import ConfigError, UserError
from lmjax.fileio import (
    crc32_of_file,
    lock,
    open_atomic,
    remove_partial_files,
    write_errors,
)
from lmjax.storage.cache import local_copy
from lmjax.storage.paths import open_path

EXAMPLES = "examples.jsonl"
ROWS = "rows.npy"
# The columns of tokens.
_TOKENS = ("tokens", "source", "target", "rejected_tokens")
_ENCODE_BATCH = 1024  # examples that are encoded together

_log = logging.getLogger(__name__)


class ExampleStore:
    """A finished store, open for reading.

    Raises:
      FileNotFoundError: there is no manifest.
      ValueError: the manifest is not that of an example store.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = open_path(directory)
        manifest = read_manifest(self.directory)
        self.checksums = parse_checksums(manifest)
        try:
            if manifest["examples"] != VERSION:
                raise ValueError(f"version {manifest['examples']}, not {VERSION}")
            self.fingerprint: str = manifest["made_from"]
            self.num_examples: int = manifest["num_examples"]
            self.num_truncated: int = manifest["num_truncated"]
            self.num_skipped: int = manifest["num_skipped"]
            self._has_row_counts: bool = manifest.get("row_counts", False)
            names: list[str] = manifest["columns"]
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{MANIFEST} is not that of an example store: {error!r}"
            ) from error
        self._values = {n: self._load(f"{n}.values.npy") for n in names}
        self._starts = {n: self._load(f"{n}.starts.npy") for n in names}
        self.sizes = self._load("size.npy")

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return the columns of one row."""
        return {
            name: self._values[name][starts[index] : starts[index + 1]]
            for name, starts in self._starts.items()
        }

    @functools.cached_property
    def examples(self) -> Examples:
        """Open the examples that the rows were encoded from, if they are stored."""
        file = self.directory / EXAMPLES
        return JsonExamples([file], on_bad_text="error", path=str(file))

    @functools.cached_property
    def rows_of_examples(self) -> list[range] | None:
        """Return the rows of each example; an empty range where some are not here.

        None where the store has no `rows.npy`: it holds no examples, or was built by
        an earlier version.
        """
        if not self._has_row_counts:
            return None
        here_N, encoded_N = self._load(ROWS).T
        stops_N = np.cumsum(here_N)
        return [
            range(stop - count, stop) if count == encoded else range(0)
            for stop, count, encoded in zip(
                stops_N.tolist(), here_N.tolist(), encoded_N.tolist(), strict=True
            )
        ]

    @property
    def num_tokens(self) -> int:
        """Count the tokens of all rows."""
        return sum(map(len, self._texts))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return tokens [start, stop) of all rows, one after another, int32."""
        pieces, before = [], 0
        for values in self._texts:
            pieces.append(values[max(start - before, 0) : max(stop - before, 0)])
            before += len(values)
        return np.concatenate(pieces)

    @property
    def _texts(self) -> list[np.ndarray]:
        """Return the columns of tokens."""
        return [values for name, values in self._values.items() if name in _TOKENS]

    def describe(self) -> str:
        """Return a summary of the counts."""
        rows = f" in {len(self):,} rows" if len(self) != self.num_examples else ""
        return (
            f"{self.num_examples:,} examples{rows}, {self.num_tokens:,} tokens; "
            f"{self.num_truncated:,} truncated, {self.num_skipped:,} left out"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return ExampleStore, (self.directory,)  # memory maps would be pickled as copies

    def _load(self, name: str) -> np.ndarray:
        file = local_copy(self.directory / name, crc32=self.checksums.get(name))
        return np.load(file, mmap_mode="r")


def build_example_store(
    directory: str | Path, *, part: ExamplePart, tokenizer: Tokenizer, label: str
) -> ExampleStore:
    """Open the store of some examples; build it unless it exists and is up to date.

    Args:
      directory: of the store.
      part: the examples, and the features that encode them.
      tokenizer: encodes their texts.
      label: name of the store in the log.

    Raises:
      UserError: an example cannot be used (with `on_bad_example="error"`), or none
        can, or the directory cannot be written.
    """
    directory = open_path(directory)
    with write_errors(directory), lock(directory):
        fingerprint = part.identity(tokenizer)
        store = open_if_current(ExampleStore, directory, fingerprint)
        if store is None:
            (directory / MANIFEST).unlink(missing_ok=True)
            remove_partial_files(directory)
            _write_store(directory, part, tokenizer)
            store = ExampleStore(directory)
    _log.info("%s: %s", label, store.describe())
    return store


def _encode_examples(
    part: ExamplePart, tokenizer: Tokenizer, bad: list[str]
) -> Iterator[tuple[Example, Sequence[Row]]]:
    """Yield examples and their rows; `bad` takes what is wrong with those left out."""
    features = part.features
    if not part.keeps_examples:
        features = features.for_training_alone()
    for first in range(0, len(part), _ENCODE_BATCH):
        numbers, examples, parsed = [], [], []
        for i in range(first, min(first + _ENCODE_BATCH, len(part))):
            try:
                example = part.examples[i]
                parsed.append(features.parse(example))
                examples.append(example)
                numbers.append(i)
            except UserError as error:
                _leave_out(error, part, i, bad)
        try:
            rows = features.encode(parsed, tokenizer)
        except ConfigError:
            raise
        except UserError:  # one of them cannot be encoded: find it
            good = []
            for i, example, one in zip(numbers, examples, parsed, strict=True):
                try:
                    features.encode([one], tokenizer)
                    good.append((example, one))
                except UserError as error:
                    _leave_out(error, part, i, bad)
            # Together, since their rows may depend on each other.
            rows = features.encode([one for _, one in good], tokenizer)
            examples = [example for example, _ in good]
        yield from zip(examples, rows, strict=True)


def _leave_out(error: UserError, part: ExamplePart, index: int, bad: list[str]) -> None:
    """Note what is wrong with an example; raise it if that is an error."""
    where = part.examples.where(index)
    if part.on_bad_example == "error":
        raise explain_bad_example(error, where) from error
    bad.append(str(add_location(error, where)))


def _write_store(directory: Path, part: ExamplePart, tokenizer: Tokenizer) -> None:
    bad: list[str] = []
    columns: dict[str, list[np.ndarray]] = {}
    sizes: list[int] = []
    row_counts: list[tuple[int, int]] = []
    num_truncated = 0
    skipped = () if part.keeps_examples else part.features.prediction_columns
    with _open_examples_file(directory, part) as write_example:
        for example, rows in _encode_examples(part, tokenizer, bad):
            write_example(example)
            num_truncated += any(row.truncated for row in rows)
            trained = [row for row in rows if row.used_for_training]
            row_counts.append((len(trained), len(rows)))
            sizes += [row.size for row in trained]
            for row in trained:
                for name, values in row.columns.items():
                    if name not in skipped:
                        columns.setdefault(name, []).append(values)
    if bad:
        _log.warning("left out %d of %d examples: %s", len(bad), len(part), bad[0])
    if not columns:
        why = "their targets are cut off or have no loss, or (KTO) all have one prompt"
        raise UserError(
            f"no example can be used; {f'the first: {bad[0]}' if bad else why}"
        )
    for name, arrays in columns.items():
        starts = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
        _save(directory / f"{name}.starts.npy", starts)
        _save(directory / f"{name}.values.npy", np.concatenate(arrays, dtype=np.int32))
    _save(directory / "size.npy", np.array(sizes, np.int32))
    if part.keeps_examples:
        _save(directory / ROWS, np.array(row_counts, np.int32))
    files = [EXAMPLES, ROWS] if part.keeps_examples else []
    files += [f"{name}.{kind}.npy" for name in columns for kind in ("starts", "values")]
    manifest = {
        "examples": VERSION,
        "made_from": part.identity(tokenizer),
        "num_examples": len(row_counts),
        "num_truncated": num_truncated,
        "num_skipped": len(bad),
        "columns": [*columns],
        "row_counts": part.keeps_examples,
        "checksums": {
            name: crc32_of_file(directory / name) for name in ["size.npy", *files]
        },
    }
    write_manifest(directory, manifest)


@contextlib.contextmanager
def _open_examples_file(
    directory: Path, part: ExamplePart
) -> Generator[Callable[[Example], None], None, None]:
    """Yield a function that writes an example; it does nothing if none are stored."""
    if not part.keeps_examples:
        yield lambda example: None
        return
    with (directory / EXAMPLES).open("w", encoding="utf-8") as out:
        yield lambda example: print(json.dumps(example), file=out)


def _save(file: Path, array: np.ndarray) -> None:
    with open_atomic(file) as out:
        np.save(out, array)
